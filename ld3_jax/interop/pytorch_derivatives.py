"""How a PyTorch function changes along directions: in forward mode, in reverse mode twice, or by differences.

A function is call(x, t, cond) with x (batch, ...), a scalar t and a pytree cond of tensors with leading axis batch.
Each kind of derivative is a function of it and of a point, which gives a linear map of q directions dx (q, batch, ...)
and dt (q,).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Call = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]


class At(NamedTuple):
    """A function and the point where it is differentiated."""

    call: Call
    x: torch.Tensor
    t: torch.Tensor
    cond: Any


Linear = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def double_reverse(at: At) -> Linear:
    """J d is the gradient in u of <J^T u, d>: the network and its reverse mode once, then a pass for each direction."""
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        x, t = at.x.detach().requires_grad_(), at.t.detach().requires_grad_()
        output = at.call(x, t, at.cond)
        u = torch.zeros_like(output, requires_grad=True)
        back = torch.autograd.grad(output, (x, t), u, create_graph=True, materialize_grads=True)
    moving = [i for i in (0, 1) if back[i].requires_grad]
    sums = [back[i] for i in moving]

    def one(*direction: torch.Tensor) -> torch.Tensor:
        if not moving:
            return torch.zeros_like(u)
        weights = [direction[i] for i in moving]
        return torch.autograd.grad(sums, u, weights, retain_graph=True, materialize_grads=True)[0]

    return lambda dx, dt: torch.stack([one(*direction) for direction in zip(dx, dt, strict=True)])


def forward(at: At) -> Linear:
    """Forward mode: the network runs once for each set of directions, together with all of them."""

    def one(dx: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(lambda x, t: at.call(x, t, at.cond), (at.x, at.t), (dx, dt))[1]

    def linear(dx: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            return torch.func.vmap(one)(dx, dt)

    return linear


def difference(at: At) -> Linear:
    """Central differences, J_x dx of all directions in one batch, and J_t dt.

    A step is eps^0.4 of the states' size, and eps^0.5 of the time, whose embedding has high frequencies; with the eps
    of single precision at least, because many modules compute embeddings in it with any dtype.
    """
    single, call = torch.finfo(torch.float32).eps, torch.no_grad()(at.call)

    def of_states(dx: torch.Tensor) -> torch.Tensor:
        norms, share = dx.float().flatten(1).norm(dim=1), max(torch.finfo(dx.dtype).eps, single) ** 0.4
        steps = share * at.x.float().norm() / torch.where(norms > 0, norms, 1.0)
        h = steps.to(dx.dtype).reshape(-1, *[1] * at.x.ndim)
        moved = torch.cat([at.x + h * dx, at.x - h * dx]).flatten(0, 1)
        cond = jax.tree.map(lambda leaf: leaf.repeat(2 * len(dx), *[1] * (leaf.ndim - 1)), at.cond)
        up, down = call(moved, at.t, cond).reshape(2, *dx.shape)
        return (up - down) / (2 * h)

    def of_time(dt: torch.Tensor) -> torch.Tensor:
        h = single**0.5 * at.t.abs().clamp_min(1e-3)
        up, down = call(at.x, at.t + h, at.cond), call(at.x, at.t - h, at.cond)
        return dt.to(up.dtype).reshape(-1, *[1] * at.x.ndim) * ((up - down) / (2 * h))

    return lambda dx, dt: of_states(dx) + (of_time(dt) if dt.any() else 0)


# In the order in which they are tried: reverse mode twice is the fastest, and PyTorch has it for the most operations.
DERIVATIVES: dict[str, Callable[[At], Linear]] = {
    "double reverse": double_reverse,
    "forward": forward,
    "difference": difference,
}


def back(at: At, ct: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reverse mode: the gradients (q, *x.shape) and (q,) of q cotangents."""
    with torch.enable_grad():
        x, t = at.x.detach().requires_grad_(), at.t.detach().requires_grad_()
        output = at.call(x, t, at.cond)
        if not output.requires_grad:
            raise RuntimeError("its output does not depend on the states by operations that PyTorch differentiates")
        found = [
            torch.autograd.grad(output, (x, t), one, retain_graph=i + 1 < len(ct), materialize_grads=True)
            for i, one in enumerate(ct)
        ]
    of_x, of_t = zip(*found, strict=True)
    return torch.stack(of_x), torch.stack(of_t)
