"""A network that JAX cannot trace, called back on the host, with derivatives that it computes itself.

Three operations refer to each other: the output, its derivative along q directions, and the gradient of q cotangents.
With their rules such a network is like any other under jit, grad, vmap, linearize, scan and rematerialisation. The time
is one scalar for the whole batch, as in every network here, so a map over times runs them one by one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from ld3_jax.batches import whole


@runtime_checkable
class Host(Protocol):
    """An object that computes on the host, with NumPy arrays; hashable, and its `repr` determines what it computes."""

    def value(self, x: np.ndarray, t: np.ndarray, *cond: np.ndarray) -> np.ndarray:
        """The output, shaped like x."""
        ...

    def along(self, dx: np.ndarray, dt: np.ndarray, x: np.ndarray, t: np.ndarray, *cond: np.ndarray) -> np.ndarray:
        """The derivatives (q, *x.shape) along q directions dx (q, *x.shape), dt (q,)."""
        ...

    def back(self, ct: np.ndarray, x: np.ndarray, t: np.ndarray, *cond: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradients (q, *x.shape) in x and (q,) in t of q cotangents ct (q, *x.shape)."""
        ...

    def require_gradients(self) -> None:
        """Refuse a network without gradients, with a ValueError."""
        ...


def apply(host: Host, x: Any, t: Any, *cond: Any) -> Array:
    """The output of a network on the host. It has derivatives in x and t only.

    Args:
        host: the object that computes it.
        x: (batch, ...) states.
        t: one time for all of them.
        *cond: arrays with a leading axis of samples.
    """
    return _value.bind(x, jnp.asarray(t, x.dtype), *cond, host=host)


def _call_back(method: str, outputs: Callable[..., Any], *args: Any, host: Host) -> Any:
    """A method of the host as a JAX operation."""
    shapes, args = outputs(*args), whole(args)  # one device of the mesh makes the call, and all get its result
    return whole(jax.pure_callback(lambda *arrays: getattr(host, method)(*map(np.asarray, arrays)), shapes, *args))


def _like(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _gradients(ct: Any, x: Any, *rest: Any) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    return _like(ct), jax.ShapeDtypeStruct(ct.shape[:1], x.dtype)


def _primitive(method: str, outputs: Callable[..., Any]) -> Primitive:
    """An operation that calls a method of the host, whose outputs have the shapes of `outputs(*args)`."""
    operation, several = Primitive(f"host_{method}"), method == "back"
    operation.multiple_results = several

    def abstract(*avals: Any, host: Host) -> Any:
        shapes = jax.tree.map(lambda one: ShapedArray(one.shape, one.dtype), outputs(*avals))
        return [*shapes] if several else shapes

    def compute(*args: Any, host: Host) -> Any:
        found = _call_back(method, outputs, *args, host=host)
        return [*found] if several else found

    operation.def_abstract_eval(abstract)
    operation.def_impl(compute)
    mlir.register_lowering(operation, mlir.lower_fun(compute, multiple_results=several))
    return operation


_value = _primitive("value", lambda x, *rest: _like(x))
_along = _primitive("along", lambda dx, *rest: _like(dx))
_back = _primitive("back", _gradients)


def _moved(tangent: Any, like: Any) -> Any:
    return jnp.zeros_like(like) if isinstance(tangent, ad.Zero) else tangent


def _require_constant(tangents: Sequence[Any], what: str) -> None:
    moving = [one for one in tangents if not isinstance(one, ad.Zero)]
    if any(jnp.issubdtype(one.dtype, jnp.floating) for one in moving):
        raise ValueError(f"a network on the host is differentiated in {what}")


def _value_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, host: Host) -> tuple[Any, Any]:
    _require_constant(tangents[2:], "states and times alone, not in its conditions")
    dx, dt = map(_moved, tangents[:2], primals[:2])
    return _value.bind(*primals, host=host), _along.bind(dx[None], dt[None], *primals, host=host)[0]


_ONCE = "states and times once: it has no second derivatives"


def _along_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, host: Host) -> tuple[Any, Any]:
    _require_constant(tangents[2:], _ONCE)
    dx, dt = map(_moved, tangents[:2], primals[:2])
    return _along.bind(*primals, host=host), _along.bind(dx, dt, *primals[2:], host=host)


def _back_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, host: Host) -> tuple[Any, Any]:
    _require_constant(tangents[1:], _ONCE)
    ct = _moved(tangents[0], primals[0])
    return _back.bind(*primals, host=host), _back.bind(ct, *primals[1:], host=host)


def _along_transposed(ct: Any, dx: Any, dt: Any, *where: Any, host: Host) -> Sequence[Any]:
    host.require_gradients()
    of_x, of_t = _back.bind(ct, *where, host=host)
    linear = (ad.is_undefined_primal(dx), ad.is_undefined_primal(dt))
    return [one if asked else None for one, asked in zip((of_x, of_t), linear, strict=True)] + [None] * len(where)


def _back_transposed(cts: Sequence[Any], ct: Any, *where: Any, host: Host) -> Sequence[Any]:
    of_x, of_t = (ad.instantiate_zeros(one) for one in cts)
    return [_along.bind(of_x, of_t, *where, host=host)] + [None] * len(where)


def _front(args: Sequence[Any], dims: Sequence[Any]) -> tuple[int, list[Any]]:
    """The length of the mapped axis, and all arguments with it in front."""
    size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
    return size, [batching.bdim_at_front(arg, dim, size) for arg, dim in zip(args, dims, strict=True)]


def _mapped(operation: Primitive, linear: int, args: Sequence[Any], dims: Sequence[Any], *, host: Host) -> Any:
    """The mapped axis joins the batch, or else the directions; with a time for each, they run one after the other.

    Args:
        operation: one of the three.
        linear: how many of its arguments have a leading axis of directions.
        args, dims: as in rules of `vmap`.
        host: the network.
    """
    bind, ahead = partial(operation.bind, host=host), [dim is not None for dim in dims]
    size, front = _front(args, dims)
    several = operation.multiple_results
    if not any(ahead[linear:]):  # the same states and time: more directions
        joined = [one.reshape(-1, *one.shape[2:]) for one in front[:linear]]
        out = bind(*joined, *args[linear:])
        out = jax.tree.map(lambda one: one.reshape(size, -1, *one.shape[1:]), out)
    elif operation is _value and not ahead[1]:  # the same time: more states
        out = bind(_merged(front[0]), args[1], *map(_merged, front[2:]))
        out = out.reshape(front[0].shape)
    elif operation is _along and not (ahead[1] or ahead[3]):
        dx, _, x, _, *cond = front
        out = bind(_merged(jnp.swapaxes(dx, 0, 1), 1), args[1], _merged(x), args[3], *map(_merged, cond))
        out = jnp.swapaxes(out.reshape(dx.shape[1], size, *dx.shape[2:]), 0, 1)
    else:
        out = jax.lax.map(lambda one: bind(*one), front)
    return out, [0] * len(out) if several else 0


def _merged(array: Array, axis: int = 0) -> Array:
    """An axis and the next one merged."""
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])


for _operation, _jvp, _linear in ((_value, _value_jvp, 0), (_along, _along_jvp, 2), (_back, _back_jvp, 1)):
    ad.primitive_jvps[_operation] = _jvp
    batching.primitive_batchers[_operation] = partial(_mapped, _operation, _linear)
ad.primitive_transposes[_along] = _along_transposed
ad.primitive_transposes[_back] = _back_transposed
