"""A PyTorch module as a network: called on the host, on its own device, with derivatives that PyTorch computes.

Its weights stay where they are. States have the shapes that the module expects, so images are (batch, channels, height,
width). If JAX shares the GPU, XLA_PYTHON_CLIENT_PREALLOCATE=false leaves memory for PyTorch.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, PyTree

from ld3_jax.interop import callbacks
from ld3_jax.interop.pytorch_derivatives import DERIVATIVES, At, Call, back
from ld3_jax.interop.pytorch_trial import PyTorchError, tried
from ld3_jax.interop.pytorch_weights import Weights, weights_of
from ld3_jax.ranges import ARRAYS, COUNT, POSITIVE, TEXT, Kind, entrance, one_of, shown

_AUTO = "auto"
# JAX logs an error of a callback with its traceback, and also raises it.
logging.getLogger("jax._src.callback").addFilter(
    lambda record: not (record.exc_info and isinstance(record.exc_info[1], PyTorchError))
)
_NAME = "ld3_jax.interop.pytorch"
# JAX calls back from several threads. PyTorch keeps a team of threads for each calling thread, and the teams slow each
# other down: with a small network on two cores, learning took three times as long. So modules run one at a time.
_THREAD = ThreadPoolExecutor(1, _NAME)
_MEMORY = "allocate memory"  # part of the errors of PyTorch's allocators


@dataclass(frozen=True, eq=False)
class _Host:
    """A module as `callbacks.Host`. Equal only to itself; its text identifies it in a traced program.

    Attributes:
        name: of the module.
        call: call(x, t, cond) -> tensor.
        weights: the weights that it uses.
        shape: shape of one state.
        like: the condition of one sample, as an example.
        derivative: one of DERIVATIVES.
        lacks: why there are no gradients in reverse mode; "" if there are.
        output: a digest of its output for fixed states, which stands for `call`.
    """

    name: str
    call: Call
    weights: Weights
    shape: tuple[int, ...]
    like: PyTree
    derivative: str = "difference"
    lacks: str = ""
    output: str = ""
    # The last point of `along` with the linear map there, if any.
    linear: list[Any] = field(default_factory=list, init=False)

    def __repr__(self) -> str:
        digest = self.weights.digest.hex()[:16]
        return f"{self.name}({digest}, {self.output}, derivative={self.derivative!r}, lacks={self.lacks!r})"

    def value(self, x: np.ndarray, t: np.ndarray, *cond: np.ndarray) -> np.ndarray:
        def compute(at: At) -> torch.Tensor:
            self.linear.clear()
            with torch.no_grad():
                return at.call(at.x, at.t, at.cond)

        return self._run(compute, x, t, cond)

    def along(self, dx: np.ndarray, dt: np.ndarray, x: np.ndarray, t: np.ndarray, *cond: np.ndarray) -> np.ndarray:
        where = [np.array(one) for one in (x, t, *cond)]

        def compute(at: At) -> torch.Tensor:
            if not any(all(map(np.array_equal, where, known)) for known, _ in self.linear):
                self.linear[:] = [(where, DERIVATIVES[self.derivative](at))]
            return self.linear[0][1](*self._tensors(dx, dt))

        return self._run(compute, x, t, cond, directions=len(dx))

    def back(self, ct: np.ndarray, x: np.ndarray, t: np.ndarray, *cond: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._run(lambda at: back(at, *self._tensors(ct)), x, t, cond, directions=len(ct))

    def require_gradients(self) -> None:
        if self.lacks:
            raise ValueError(
                f"{self.name} has no gradients in reverse mode ({self.lacks}): learn by Gauss-Newton, which needs none"
            )

    def _run(
        self,
        compute: Callable[[At], Any],
        x: np.ndarray,
        t: np.ndarray,
        cond: Sequence[np.ndarray],
        directions: int = 0,
    ) -> Any:
        """The result of PyTorch, as arrays of the states' dtype."""

        def run() -> Any:
            try:
                self.weights.require_unchanged(self.name)
                states, time, *leaves = self._tensors(x, t, *cond)
                condition = jax.tree.unflatten(jax.tree.structure(self.like), leaves)
                found = compute(At(self._checked, states, time, condition))
                if isinstance(found, tuple):
                    return tuple(_array(one, x.dtype) for one in found)
                return _array(found, x.dtype)
            except Exception as error:
                of = f"{directions} directions of {len(x)} states" if directions else f"{len(x)} states"
                raise PyTorchError(self._said(error, of)) from None

        return run() if threading.current_thread().name.startswith(_NAME) else _THREAD.submit(run).result()

    def _checked(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        """The module's output, in the states' dtype; the module may write into its inputs."""
        output = self.call(x.clone(), t.clone(), jax.tree.map(torch.clone, cond))
        if not isinstance(output, torch.Tensor):
            raise ValueError(
                f"it must give a tensor, got {type(output).__name__}: give call=, such as "
                "lambda x, t, cond: module(x, t).sample"
            )
        if output.shape != x.shape or not output.is_floating_point():
            raise ValueError(
                f"its output must be of floats shaped like the states, {tuple(x.shape)}, "
                f"got {output.dtype} {tuple(output.shape)}"
            )
        return output.to(x.dtype)

    def _tensors(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        """Tensors on the module's device; floats get its dtype, except the time, which needs its digits."""
        exact = torch.promote_types(self.weights.dtype, torch.float32)
        tensors = [torch.tensor(_plain(one), device=self.weights.device) for one in arrays]
        wanted = [exact if one.ndim < 2 else self.weights.dtype for one in tensors]
        return [one.to(of) if one.is_floating_point() else one for one, of in zip(tensors, wanted, strict=True)]

    def _said(self, error: Exception, of: str) -> str:
        """An exception on one line."""
        line = next(iter(str(error).strip().splitlines()), "")
        if isinstance(error, torch.OutOfMemoryError) or _MEMORY in line:
            return (
                f"{self.name} ran out of memory on {self.weights.device} for {of}: take fewer at a time "
                "(Teacher.batch_size; a learner's batch_size, valid_batch, tangents)"
            )
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return f"{self.name}, for {of}: {kind}{line:.300}"


def _plain(array: np.ndarray) -> np.ndarray:
    """An array that PyTorch takes: bfloat16 as single precision."""
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def _array(tensor: torch.Tensor, dtype: Any) -> np.ndarray:
    exact = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to("cpu", exact).numpy().astype(dtype, copy=False)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class PyTorchNetwork:
    """A module as a JAX network(x, t, cond); see `pytorch_network`. Its only leaf is a digest of the weights."""

    digest: Any
    host: _Host

    def __call__(self, x: Any, t: Any, cond: PyTree = None) -> Array:
        """The module's output, shaped like x."""
        host, given = self.host, jax.tree.map(lambda leaf: np.shape(leaf)[1:], cond)
        if np.shape(x)[1:] != host.shape or np.ndim(t) != 0 or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ValueError(
                f"{host.name} takes states (batch, {', '.join(map(str, host.shape))}) of floats and a scalar time, "
                f"got {shown(x)} and {shown(t)}"
            )
        rows = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(cond)} <= {np.shape(x)[:1]}
        known = jax.tree.structure(cond) == jax.tree.structure(host.like)
        if not rows or not known or given != jax.tree.map(np.shape, host.like):
            raise ValueError(f"{host.name} takes conditions ({len(x)}, ...) of {shown(host.like)}, got {shown(cond)}")
        return callbacks.apply(host, x, t, *jax.tree.leaves(cond))

    @property
    def derivative(self) -> str:
        """How it is differentiated along directions, one of DERIVATIVES."""
        return self.host.derivative

    def tree_flatten(self) -> tuple[tuple[Any], _Host]:
        return (self.digest,), self.host

    @classmethod
    def tree_unflatten(cls, host: _Host, leaves: Sequence[Any]) -> "PyTorchNetwork":
        return cls(leaves[0], host)


def _are_modules(value: Any) -> bool:
    several = value if isinstance(value, list | tuple) else [value]
    return bool(several) and all(isinstance(one, torch.nn.Module) for one in several)


_MODULES = Kind("a torch.nn.Module, or a list of several", _are_modules)
_SHAPE = Kind(
    "of one state, such as (4, 64, 64)",
    lambda shape: isinstance(shape, list | tuple) and bool(shape) and not any(map(COUNT.lacks, shape)),
)


@entrance(module=_MODULES, shape=_SHAPE, cond=ARRAYS, t=POSITIVE, derivative=one_of((_AUTO, *DERIVATIVES)), name=TEXT)
def pytorch_network(
    module: torch.nn.Module | Sequence[torch.nn.Module],
    shape: Sequence[int],
    cond: PyTree = None,
    *,
    call: Call | None = None,
    t: float = 0.5,
    derivative: str = _AUTO,
    name: str = "",
) -> PyTorchNetwork:
    """A PyTorch module as a JAX network that works under jit, grad, vmap, scan and every learner.

    It is first tried on fixed random states, and its derivatives are compared with finite differences. Reverse mode
    twice is used if PyTorch supports it for the whole module, otherwise forward mode, which needs less memory,
    otherwise central differences, which are good to about 1 % in single precision. There are only first derivatives, in
    states and times.

    Args:
        module: the module, in eval mode; or all modules whose weights `call` uses. It runs on the device of its first
            weight, in the dtype of most weights; t has at least single precision.
        shape: shape of one state for the module, for instance (4, 64, 64).
        cond: the condition of one sample: a pytree of arrays without the batch axis.
        call: call(x, t, cond) -> tensor, for tensors x (batch, *shape), a scalar t, and cond with a batch axis; by
            default module(x, t), or module(x, t, cond), with t (batch,).
        t: a time at which to try it, in the units of its noise schedule.
        derivative: one of DERIVATIVES, or "auto".
        name: name of the module in messages; by default its class.

    Returns:
        network(x, t, cond) -> the module's output; `to_noise` makes it a model. The weights must not change from here
        on.

    Raises:
        ValueError: if the module is in training mode, cannot be called like this, gives no tensor shaped like the
            states, gives numbers that are not finite or differ the second time; if the requested derivative does not
            work.
    """
    modules = [module] if isinstance(module, torch.nn.Module) else [*module]
    name = name or type(modules[0]).__name__
    usual = (lambda x, t, cond: modules[0](x, t.expand(len(x)))) if cond is None else _with_condition(modules[0])
    host = _Host(name, call or usual, weights_of(modules, name), tuple(shape), jax.tree.map(np.asarray, cond))
    try:
        host = tried(host, np.asarray(t, np.float32), [*DERIVATIVES] if derivative == _AUTO else [derivative])
    except PyTorchError as error:
        raise ValueError(str(error)) from None
    logging.getLogger(__name__).info("%s", host)
    return PyTorchNetwork(np.frombuffer(host.weights.digest, np.uint8), host)


def _with_condition(module: torch.nn.Module) -> Call:
    return lambda x, t, cond: module(x, t.expand(len(x)), cond)
