"""A learned solver as a sampler with the interface of k-diffusion, which ComfyUI also uses."""

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import trange

from .table import State, Table, advanced, converted

_TOLERANCE = 1e-3  # relative; programs store their lists in single precision
_SAME_RANGE = 0.05  # relative, of the ends of two ranges of noise
_MODEL = "process {}, output {}, sigma from {:.5g} to {:.3g}"

# ComfyUI's `model_sampling` and k-diffusion's wrappers show by their class which processes they are for and what the
# network predicts (None if it varies); the first matching class counts. Both give data, so a flow's sign does not
# matter.
_CONTINUOUS = ("vp or ve", None)
_KINDS: dict[str, tuple[str, str | None]] = {
    "CONST": ("flow", "flow"),
    "COSMOS_RFLOW": ("flow in units where alpha = 1", "flow"),
    "V_PREDICTION_DDPM": ("vp in its own units", "v"),  # its network gets the state as it is
    "IMG_TO_IMG": ("image to image", "data"),
    "ModelSamplingContinuousEDM": _CONTINUOUS,
    "EDM": _CONTINUOUS,
    "X0": ("vp", "data"),
    "LCM": ("vp", "data"),  # distilled: data by a formula of its own
    "V_PREDICTION": ("vp", "v"),
    "EPS": ("vp", "noise"),
    "VDenoiser": ("vp or ve", "v"),
    "DiscreteVDDPMDenoiser": ("vp", "v"),
    "DiscreteEpsDDPMDenoiser": ("vp", "noise"),
}


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
        model: model(x, sigma, **extra_args) -> data, with x in units in which alpha = 1, except for flows. What it says
            about its kind and its range of noise, as models of ComfyUI and k-diffusion do, must fit the table.
        x: (batch, ...) the first state in these units: for VP and VE, noise times (prior_scale / alpha), which is
            sqrt(1 + sigma^2) for VP. If the table starts below full noise, data + sigmas[0] times noise, and for flows
            (1 - sigmas[0]) data + sigmas[0] noise.
        sigmas: (n_steps + 1,) the levels of the table; any others are refused.
        extra_args: passed to the model.
        callback: called once a step with x, i, sigma, sigma_hat and denoised.
        disable: no progress bar.
        table: the learned solver; see `table.read`.

    Returns:
        The last state in the same units; it still holds the noise of sigmas[-1].

    Raises:
        ValueError: if sigmas or model do not fit the table, or such samplers do not know its process.
    """
    if table.process is None:
        raise ValueError(
            "such a sampler knows noise schedules with alpha = 1, alpha^2 + sigma^2 = 1, alpha + sigma = 1"
        )
    _check(sigmas, table)
    _check_model(model, table)
    _check_latent(model, table)
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
    levels = torch.as_tensor([] if sigmas is None else sigmas)
    listed = levels.tolist() if levels.ndim == 1 else []
    given, wanted = ([float(f"{sigma:.6g}") for sigma in some] for some in (listed, table.levels))
    same = len(given) == len(wanted) and all(abs(a - b) <= _TOLERANCE * b for a, b in zip(given, wanted, strict=True))
    if not same:
        raise ValueError(
            f"it was learned for the sigmas {wanted}, got {given}: give all of table.levels, in ComfyUI the output of "
            f"Learned sigmas with the same file, none of them split off; it was learned {_start(table)}"
        )


def _start(table: Table) -> str:
    if table.full_noise is None:
        return "from full noise (a denoise of 1)"
    return f"from an image with noise {table.levels[0]:.5g}, below the full {table.full_noise:.5g} (a denoise below 1)"


def _check_latent(model: Any, table: Table) -> None:
    """ComfyUI's sampler has the image as an attribute, which is zero for an empty image."""
    latent = getattr(model, "latent_image", None)
    if table.full_noise is not None and latent is not None and not torch.count_nonzero(latent):
        raise ValueError(
            f"it was learned {_start(table)}, got an empty latent: give a latent image, or another schedule"
        )


def _check_model(model: Any, table: Table) -> None:
    for _ in range(8):  # wrappers
        said = getattr(model, "model_sampling", model)
        names = {base.__name__ for base in type(said).__mro__}
        named = [kind for name, kind in _KINDS.items() if name in names]
        if named or hasattr(said, "sigma_data") or hasattr(said, "sigma_max"):
            break
        model = getattr(model, "inner_model", None)
    else:
        return
    process, output = [*named, _CONTINUOUS if hasattr(said, "sigma_data") else (str(table.process), None)][0]
    first, last, calls = (
        table.full_noise or table.levels[0],
        table.levels[-1],
        zip(table.sigma, table.alpha, strict=True),
    )
    most, least = float(getattr(said, "sigma_max", "inf")), float(getattr(said, "sigma_min", 0))
    if (times := getattr(said, "noise_scale", 1.0)) != 1:
        process += f" with {times:g} times the noise"
    fits = table.process in process.split(" or ")
    fits &= output is None or table.output is None or table.output.removeprefix("reversed_") == output
    # A range without a kind is what a network accepts, not where sampling starts; a flow's time shift moves its lower
    # end.
    fits &= abs(first - most) <= _SAME_RANGE * most or (not named and first < most)
    fits &= table.process == "flow" or min(sigma / alpha for sigma, alpha in calls) >= (1 - _SAME_RANGE) * least
    if not fits:
        ours, theirs = (table.process, table.output, first, last), (process, output, most, least)
        raise ValueError(
            f"it was learned for a model of {_MODEL.format(*ours)}, got one of {_MODEL.format(*theirs)}: "
            "take that model, or a schedule that was learned for this one"
        )
