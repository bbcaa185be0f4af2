"""A learned solver as a sampler of k-diffusion, which is ComfyUI's contract, too."""

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import trange

from .table import State, Table, advanced, converted

_TOLERANCE = 1e-3  # relative; programs keep their lists in single precision


@torch.no_grad()
def sample_learned(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    *,
    table: Table,
) -> torch.Tensor:
    """Integrate from x at sigmas[0] to sigmas[-1].

    Args:
        model: model(x, sigma, **extra_args) -> data, with x in units in which alpha = 1, or of flows as it is.
        x: (batch, ...) the first state in these units: of VP and VE noise times (prior_scale / alpha), which is
            sqrt(1 + sigma^2) of VP.
        sigmas: (n_steps + 1,) the levels of the table; any others are refused.
        extra_args: passed to the model.
        callback: called once a step with x, i, sigma, sigma_hat and denoised.
        disable: no progress bar.
        table: what was learned; see `table.read`.

    Returns:
        The last state in the same units; it still holds the noise of sigmas[-1].

    Raises:
        ValueError: if sigmas are not the table's, or its process is none that such samplers know.
    """
    if table.process is None:
        raise ValueError(
            "such a sampler knows noise schedules with alpha = 1, alpha^2 + sigma^2 = 1, alpha + sigma = 1"
        )
    _check(sigmas, table)
    flow, ends = table.process == "flow", (table.grid_alpha[0], table.grid_alpha[-1])
    start = x if flow else x * ends[0]
    state = State(start, start)
    for i in trange(table.calls, disable=disable):
        alpha, sigma = (1.0, table.sigma[i]) if flow else (table.alpha[i], table.sigma[i] / table.alpha[i])
        inputs = state.x / alpha
        denoised = model(inputs, inputs.new_full((len(x),), sigma), **(extra_args or {}))
        if callback is not None and i % table.calls_per_step == 0:
            step = i // table.calls_per_step
            callback({"x": inputs, "i": step, "sigma": sigmas[step], "sigma_hat": sigmas[step], "denoised": denoised})
        state = advanced(table, i, state, converted(table, i, state.x, denoised, "data"))
    return state.x if flow else state.x / ends[1]


def _check(sigmas: torch.Tensor, table: Table) -> None:
    given, wanted = [float(sigma) for sigma in sigmas], table.levels
    same = len(given) == len(wanted) and all(abs(a - b) <= _TOLERANCE * b for a, b in zip(given, wanted, strict=True))
    if not same:
        raise ValueError(f"it was learned for the sigmas {wanted}, got {given}")
