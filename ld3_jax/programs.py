"""What a model computes, told from what any other computes: by the program that JAX traces it to.

However a function is stated (a closure, an object, a decorator, globals), its program holds all that it computes: the
operations, and the arrays among them. Names, addresses and the state of the process are not in it.
"""

import dataclasses
import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatchmethod
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from ld3_jax.denoisers import Denoiser, Model
from ld3_jax.disk import digest
from ld3_jax.schedules import NoiseSchedule

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_WHERE = ("ctx_mesh",)  # parameters that say where an operation runs
_OURS = ("jax", "ld3_jax")  # whose operations their names tell
_NATIVE = "ffi_call"  # but this one's


class Program(NamedTuple):
    """A traced model.

    Attributes:
        digest: 16 hexadecimal digits of all that is computed, the same in every process.
        unseen: names of what JAX does not trace: callbacks to Python, native code, arrays that can be changed.
    """

    digest: str
    unseen: tuple[str, ...]


def of_model(model: Model, schedule: NoiseSchedule, t: Array, x: PyTree, cond: PyTree) -> Program:
    """The program of a model on a noise schedule; of the weights and states, shapes and dtypes count.

    Args:
        model: a pytree with its weights as leaves.
        schedule: its noise schedule.
        t: times, of which one alone is given to the model.
        x: a batch of states, or their `jax.ShapeDtypeStruct`s.
        cond: their conditions, likewise.
    """

    def call(model: Model, schedule: NoiseSchedule, t: Array, x: PyTree, cond: PyTree) -> PyTree:  # new: traced anew
        space, at = schedule.space, t.ravel()[0]
        prediction = model(x, space.join([at] * len(schedule.parts)), cond)
        formulas = [(part.log_alpha(at), part.log_sigma(at), part.inverse_lam(at)) for part in schedule.parts]
        return space.retract(x, prediction), space.tangent(x), formulas

    reader = _Reader()
    text = reader.text(jax.make_jaxpr(call)(model, schedule, t, x, cond))
    return Program(_short(text), tuple(sorted(reader.unseen)))


@dataclass(frozen=True)
class _As:
    """Calls a network. `jax.jit` takes two functions for one if they are equal, and a changed object for itself."""

    program: Program | None

    def __call__(self, network: Model, *args: PyTree) -> PyTree:
        return network(*args)


def marked(model: Model, program: Program | None) -> Model:
    """The same model, which `jax.jit` traces anew if its program is another one than the last time."""
    if isinstance(model, Denoiser):  # it stays one
        return dataclasses.replace(model, predict=Partial(_As(program), model.predict))
    return Partial(_As(program), model)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Reader:
    """Reads programs; `unseen` gathers the operations that run other code."""

    def __init__(self) -> None:
        self.unseen: set[str] = set()
        self._read: dict[core.Jaxpr, str] = {}  # a program that many others call is read once
        modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in _OURS]
        values = [value for module in modules for value in list(vars(module).values())]
        self._known = {value for value in values if isinstance(value, core.Primitive)}

    @singledispatchmethod
    def text(self, value: Any) -> str:
        """A part of a program in words that are the same in every process, arrays by their bytes."""
        return digest(value) if hasattr(value, "__array__") else repr(value)

    @text.register(tuple)
    @text.register(list)
    def _sequence(self, values: tuple | list) -> str:
        return f"[{', '.join(map(self.text, values))}]"

    @text.register
    def _closed(self, program: core.ClosedJaxpr) -> str:
        self.unseen.update(type(one).__name__ for one in program.consts if not hasattr(one, "__array__"))
        return f"{self.text(program.jaxpr)} of {self.text(program.consts)}"

    @text.register
    def _open(self, program: core.Jaxpr) -> str:
        if program not in self._read:
            numbers: dict[Any, int] = {}

            def name(atom: core.Var | core.Literal) -> str:
                is_value, aval = isinstance(atom, core.Literal), atom.aval
                called = self.text(atom.val) if is_value else numbers.setdefault(atom, len(numbers))
                return f"{called} {getattr(aval, 'dtype', aval)}{getattr(aval, 'shape', '')}"

            def names(atoms: Sequence[core.Var | core.Literal]) -> str:
                return ", ".join(map(name, atoms))

            lines = [names(program.constvars), names(program.invars)]
            lines += [f"{names(one.outvars)} = {self._operation(one)} {names(one.invars)}" for one in program.eqns]
            self._read[program] = _short("\n".join([*lines, names(program.outvars)]))
        return self._read[program]

    def _operation(self, one: core.JaxprEqn) -> str:
        name, has_program = one.primitive.name, any(True for _ in core.jaxprs_in_params(one.params))
        params = {key: value for key, value in sorted(one.params.items()) if key not in _WHERE}
        functions = [key for key, value in params.items() if callable(value) and not isinstance(value, type)]
        text = " ".join(f"{key}={self.text(value)}" for key, value in params.items() if key not in functions)
        # Beside the program of what is computed, functions only say how it is differentiated.
        hidden = not has_program and (functions or _ADDRESS.search(text))
        if hidden or name == _NATIVE or one.primitive not in self._known:
            self.unseen.add(name)
        return f"{name} {_ADDRESS.sub('', text)}"
