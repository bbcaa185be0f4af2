"""Starts below full noise, for image to image, inpainting and refiners: a noise schedule that starts at a time t_s.

    from_start = starting_at(schedule, strength=0.6)
    x_s = noised(key, x_0, from_start)  # alpha(t_s) x_0 + sigma(t_s) eps

To grids, solvers, teacher and learners `from_start` is a noise schedule like any other, with t_max = t_s.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ld3_jax.batches import count_of
from ld3_jax.grids import edm
from ld3_jax.noise_schedule import NoiseSchedule
from ld3_jax.ranges import NUMBER, POSITIVE, STATES, Range, check, entrance, instance, settle
from ld3_jax.solvers.record import noise_level, process_of_schedule
from ld3_jax.teacher import draw_noise

_KINDS = {"t": NUMBER, "sigma": POSITIVE, "strength": Range(0, 1, above=True)}


@dataclass(frozen=True)
class StartingAt(NoiseSchedule):
    """Another noise schedule that starts at the time `t_start`; see `starting_at`.

    Initial states are not pure noise, so `prior_scale` is the standard deviation of the noise that they hold.

    Attributes:
        of: the other noise schedule; if it starts below full noise itself, the whole one is kept.
        t_start: the time at which the range starts, between t_min and t_max of the other.

    Raises:
        ValueError: if t_start is not between them, or states are not vectors with one time for all.
    """

    of: NoiseSchedule
    t_start: float

    def __post_init__(self) -> None:
        settle(self, {"of": instance(NoiseSchedule), "t_start": NUMBER})
        self.of.space.require_vectors("a start below full noise")
        if len(self.of.parts) > 1:
            raise ValueError(f"a start below full noise is for states with one time, got {self.of}")
        _check(self.of, self.t_start, f"t={self.t_start:g}")
        object.__setattr__(self, "of", self.of.whole)
        object.__setattr__(self, "space", self.of.space)

    def __str__(self) -> str:
        return f"{self.of} from t = {self.t_start:g} on"

    @property
    def whole(self) -> NoiseSchedule:
        return self.of

    @property
    def t_min(self) -> float:
        return self.of.t_min

    @property
    def t_max(self) -> float:
        return self.t_start

    @property
    def prior_scale(self) -> float:
        with jax.ensure_compile_time_eval():
            return float(self.of.sigma(jnp.asarray(self.t_start)))

    def log_alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self.of.log_alpha(t)

    def log_sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self.of.log_sigma(t)

    def inverse_lam(self, lam: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self.of.inverse_lam(lam)


@entrance(schedule=instance(NoiseSchedule))
def starting_at(
    schedule: NoiseSchedule, t: float | None = None, *, sigma: float | None = None, strength: float | None = None
) -> NoiseSchedule:
    """A noise schedule that starts at a time t_s below full noise, so that initial states are noised data.

    Args:
        schedule: the noise schedule; if it starts below full noise, t_s may be its start or below.
        t: t_s itself.
        sigma: or its noise level, as programs count it: sigma for flows (alpha + sigma = 1), sigma / alpha for others.
        strength: or a share s in (0, 1), as `strength` of diffusers and `denoise` of ComfyUI; 1 would be full noise.
            Variance-preserving noise, and any other not named here: t_s = s t_max, a share of the training steps.
            Flows: sigma = s, the level before a pipeline's shift. Variance-exploding noise: s of the way from sigma_min
            to sigma_max in sigma^(1/7), Karras' grid.

    Returns:
        The noise schedule with t_max = t_s.

    Raises:
        ValueError: if not exactly one of the three is given, it lies outside the range, or states are not vectors with
            one time for all.
    """
    given = {name: value for name, value in {"t": t, "sigma": sigma, "strength": strength}.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"a start below full noise is given by one of {list(_KINDS)}, got {given or 'none'}")
    ((name, value),) = check(given, {name: _KINDS[name] for name in given}).items()
    found = _TIMES[name](schedule.whole, value)
    if schedule.t_start is not None and math.isclose(found, schedule.t_start, rel_tol=1e-6):
        return schedule
    _check(schedule, found, f"{name}={value:g}")
    return StartingAt(schedule.whole, found)


def _check(schedule: NoiseSchedule, t: float, given: str) -> None:
    low, high = schedule.t_min, schedule.t_max
    if not low < t < high or not np.float32(low) < np.float32(t) < np.float32(high):  # times in tables are float32
        levels = [noise_level(schedule, float(end)) for end in (low, high)]
        raise ValueError(
            f"a start must lie above t_min = {low:g} (sigma = {levels[0]:.4g}) and below t_max = {high:g} "
            f"(sigma = {levels[1]:.4g}), got {given}" + f", which is t = {t:.6g}" * (given != f"t={t:g}")
        )


def _of_sigma(schedule: NoiseSchedule, sigma: float) -> float:
    flow = process_of_schedule(schedule) == "flow"
    if flow and sigma >= 1:
        return 1.0  # above any t_max
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        lam = math.log1p(-sigma) - math.log(sigma) if flow else -math.log(sigma)
        return float(schedule.inverse_lam(jnp.asarray(lam)))


def _of_strength(schedule: NoiseSchedule, strength: float) -> float:
    process = process_of_schedule(schedule)
    if process == "flow":
        return _of_sigma(schedule, strength)
    if process != "ve":
        return strength * float(schedule.t_max)
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return float(edm(schedule, jnp.asarray(1 - strength)))


_TIMES = {"t": lambda schedule, t: float(t), "sigma": _of_sigma, "strength": _of_strength}


def parse(text: str) -> dict[str, float]:
    """The argument of `starting_at` in a text such as "strength=0.6".

    Raises:
        ValueError: if it is not such an argument.
    """
    name, equals, value = text.partition("=")
    try:
        found = {name: float(value)} if equals and name in _KINDS else {}
    except ValueError:
        found = {}
    if not found:
        raise ValueError(f"it must be one of t=NUMBER, sigma=NUMBER and strength=NUMBER, got {text!r}")
    return check(found, {name: _KINDS[name]})


@entrance(x_0=STATES, schedule=instance(NoiseSchedule))
def noised(key: PRNGKeyArray, x_0: PyTree, schedule: NoiseSchedule, *, first: int = 0) -> PyTree:
    """Initial states x_s = alpha(t_s) x_0 + sigma(t_s) eps with eps ~ N(0, I).

    Args:
        key: of the noise.
        x_0: (n, ...) data, an array or a pytree of arrays.
        schedule: the noise schedule, which starts at t_s = t_max; see `starting_at`.
        first: number of the first one. Each noise depends only on the key and its number, not on what else is drawn.

    Returns:
        n states shaped like x_0.

    Raises:
        ValueError: if x_0 does not hold real floating-point numbers, or states are not vectors.
    """
    schedule.space.require_vectors("noised data")
    count, (leaves, structure) = count_of(x_0, "x_0"), jax.tree.flatten(x_0)
    keys = jax.random.split(key, len(leaves)) if len(leaves) > 1 else [key]
    noise = [draw_noise(one, count, leaf.shape[1:], first) for one, leaf in zip(keys, leaves, strict=True)]
    t = jnp.asarray(schedule.t_max, jnp.result_type(float))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return jax.tree.map(lambda x, eps: alpha * x + sigma * eps, x_0, jax.tree.unflatten(structure, noise))
