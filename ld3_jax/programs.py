"""What a model computes, identified by the program that JAX traces it to.

However a function is written (a closure, an object, a decorator, globals), its program holds all that it computes: the
operations and their arrays. Names, addresses and the state of the process are not in it.
"""

import dataclasses
import hashlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from ld3_jax.denoisers import Denoiser, Model
from ld3_jax.disk import digest
from ld3_jax.schedules import NoiseSchedule

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_WHERE = ("ctx_mesh", "sharding", "out_sharding")  # parameters that say on which devices an operation runs
_OURS, _NATIVE = ("jax", "ld3_jax"), "ffi_call"  # packages whose operations are known by name, except this one


@jax.tree_util.register_static
@dataclass(frozen=True)
class Program:
    """A digest (16 hexadecimal digits) of all that a model computes, the same in every process; and what is not
    traced."""

    digest: str
    unseen: tuple[str, ...]  # names of callbacks to Python, native code, arrays that can be changed


def of_model(model: Model, schedule: NoiseSchedule, t: Array, x: PyTree, cond: PyTree) -> Program:
    """The program of a model, its weights as leaves, on a noise schedule; only shapes and dtypes of arrays count."""

    def call(model: Model, schedule: NoiseSchedule, t: Array, x: PyTree, cond: PyTree) -> PyTree:  # new: traced anew
        space, at = schedule.space, t.ravel()[0]
        prediction = model(x, space.join([at] * len(schedule.parts)), cond)
        formulas = [(part.log_alpha(at), part.log_sigma(at), part.inverse_lam(at)) for part in schedule.parts]
        return space.retract(x, prediction), space.tangent(x), formulas

    reader = _Reader()
    text = reader.text(jax.make_jaxpr(call)(model, schedule, t, x, cond))
    return Program(_short([text]), tuple(sorted(reader.unseen)))


def marked(model: Model, program: Program) -> Model:
    """The same model, which `jax.jit` traces again with its program; otherwise a changed object would look the same."""
    if isinstance(model, Denoiser):  # it stays a Denoiser
        return dataclasses.replace(model, predict=Partial(_call, program, model.predict))
    return Partial(_call, program, model)


def _call(program: Program, network: Model, *args: PyTree) -> PyTree:
    return network(*args)


def _short(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


class _Reader:
    """Writes programs as text that is the same in every process, arrays by their bytes; `unseen` as in `Program`."""

    def __init__(self) -> None:
        self.unseen: set[str] = set()
        self._read: dict[core.Jaxpr, str] = {}  # a program that many others call is read only once
        modules = [vars(module) for name, module in list(sys.modules.items()) if name.split(".")[0] in _OURS]
        self._known = {one for module in modules for one in list(module.values()) if isinstance(one, core.Primitive)}

    def text(self, value: Any) -> str:
        program, consts = getattr(value, "jaxpr", value), getattr(value, "consts", ())
        if isinstance(program, core.Jaxpr):
            self.unseen.update(type(one).__name__ for one in consts if not hasattr(one, "__array__"))
            return f"{self._program(program)} {digest([one for one in consts if hasattr(one, '__array__')])}"
        return digest(value) if hasattr(value, "__array__") else repr(value)

    def _program(self, program: core.Jaxpr) -> str:
        if program not in self._read:
            numbers: dict[Any, int] = {}

            def name(atom: Any) -> str:
                is_value = isinstance(atom, core.Literal)
                return f"{self.text(atom.val) if is_value else numbers.setdefault(atom, len(numbers))} {atom.aval}"

            words = [*map(name, (*program.constvars, *program.invars))]
            for one in program.eqns:
                words += [self._operation(one), *map(name, one.invars), "gives", *map(name, one.outvars)]
            self._read[program] = _short([*words, "returns", *map(name, program.outvars)])
        return self._read[program]

    def _operation(self, one: core.JaxprEqn) -> str:
        name, params = one.primitive.name, {key: value for key, value in one.params.items() if key not in _WHERE}
        leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda value: value is None or callable(value))
        seen = [(path, value) for path, value in leaves if isinstance(value, type) or not callable(value)]
        text = " ".join(f"{jax.tree_util.keystr(path)}={self.text(value)}" for path, value in seen)
        # Apart from the program of what is computed, functions only say how it is differentiated.
        has_program = any(True for _ in core.jaxprs_in_params(params))
        hidden = not has_program and (len(seen) < len(leaves) or _ADDRESS.search(text))
        if hidden or name == _NATIVE or one.primitive not in self._known:
            self.unseen.add(name)
        return f"{name} {_ADDRESS.sub('', text)}"
