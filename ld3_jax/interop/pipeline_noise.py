"""What the scheduler of a diffusers pipeline says about its network: noise schedule, prediction, timesteps."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ld3_jax.interop.diffusers import FLOW_STEPS, KINDS, OUTPUTS, described, flow_timestep
from ld3_jax.schedules import NoiseSchedule, RectifiedFlow, VPDiscrete

_LEAST_SNR = 2.0**-24  # alpha^2 where there is no signal, in some schedulers; others have 0
BY_HAND = "write the network's call yourself, and hand it to ld3_jax.interop.pytorch_network"


class Noise(NamedTuple):
    """What a pipeline's scheduler says about its network.

    Attributes:
        schedule: the noise schedule. Karras' and other sigmas, spacings and shifts only move the scheduler's own times.
        prediction: what the network predicts, by this library's names.
        timestep: timestep(t) -> the timestep that the pipeline gives its network at the time t.
    """

    schedule: NoiseSchedule
    prediction: str
    timestep: Callable[[Any], Any]


def noise(scheduler: Any) -> Noise:
    """Read a scheduler of diffusers; a flow's time is its noise level, from 0.999 to 0.001.

    Raises:
        ValueError: if its noise is neither variance preserving nor a flow; if it does not say what its network
            predicts, or the network predicts noise where a state is pure noise.
    """
    kind, said = described(scheduler)
    name, config = type(scheduler).__name__, scheduler.config
    if kind not in ("vp", "flow") or said not in OUTPUTS:
        raise ValueError(
            f"{name} must be a scheduler of variance-preserving noise or of a flow, whose network predicts one of "
            f"{[*OUTPUTS]}, got one of {KINDS.get(kind, 'other noise')}, which predicts {said}: {BY_HAND}"
        )
    if kind == "flow":
        steps = config.get("num_train_timesteps", FLOW_STEPS)
        return Noise(RectifiedFlow(), OUTPUTS[said], lambda t: flow_timestep(config, steps, t))
    alphas = scheduler.alphas_cumprod.double().cpu().numpy()
    if config.get("rescale_betas_zero_snr") or alphas[-1] <= 0:
        if OUTPUTS[said] == "noise":
            raise ValueError(f"{name} ends without signal (rescale_betas_zero_snr), where predicted noise says nothing")
        alphas[-1] = min(_LEAST_SNR, alphas[-2] / 2)  # sampling starts where there is some
    return Noise(VPDiscrete(alphas), OUTPUTS[said], lambda t: len(alphas) * t - 1)
