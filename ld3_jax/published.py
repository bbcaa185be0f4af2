"""Grids that others have published, as lists of noise levels, and lists of the user's own."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ld3_jax.schedules import NoiseSchedule


@dataclass(frozen=True)
class Levels:
    """A descending list of noise levels.

    Attributes:
        values: sigma / alpha, or sigma for a flow.
        flow: whether they are the levels of a flow.
        source: where they were published.
        others: lists for numbers of steps other than that of `values`.

    Raises:
        ValueError: unless there are at least three, descending, above 0, and for a flow at most 1.
    """

    values: tuple[float, ...]
    flow: bool = False
    source: str = ""
    others: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        levels, most = np.asarray(self.values, float), 1.0 if self.flow else np.inf
        descends = levels.ndim == 1 and len(levels) > 2 and bool(np.all(np.diff(levels) < 0))
        if not descends or not 0 < levels[-1] < levels[0] <= most:
            raise ValueError(
                f"noise levels must be at least three descending numbers above 0{' and at most 1' * self.flow}, "
                f"got {list(self.values)}{if_timesteps(levels.max(initial=0), most)}"
            )

    def times(self, schedule: NoiseSchedule, u: Float[Array, "n_points"]) -> Float[Array, "n_points"]:
        """The times at u in [0, 1] along the list, which has the ends of the noise schedule.

        Between its numbers, the logarithm is interpolated linearly. If a list has as many numbers as u, the result is
        that list.

        Args:
            schedule: the noise schedule, whose levels they are.
            u: positions.

        Raises:
            ValueError: if the list has another range, or is for another kind of noise schedule.
        """
        self._check(schedule)
        values = {len(one): one for one in self.others}.get(len(u), self.values)
        ends = jnp.asarray([schedule.t_max, schedule.t_min], u.dtype)
        ends = schedule.log_sigma(ends) if self.flow else -schedule.lam(ends)
        logs = jnp.concatenate([ends[:1], jnp.log(jnp.asarray(values[1:-1], u.dtype)), ends[1:]])
        level = jnp.interp(u, jnp.linspace(0.0, 1.0, len(logs), dtype=u.dtype), logs)
        return schedule.inverse_lam(jnp.log1p(-jnp.exp(level)) - level if self.flow else -level)

    def _check(self, schedule: NoiseSchedule) -> None:
        with jax.ensure_compile_time_eval():
            ends = jnp.asarray([schedule.t_max, schedule.t_min])
            alpha, sigma = np.asarray(schedule.alpha(ends)), np.asarray(schedule.sigma(ends))
        here, mine = sigma if self.flow else sigma / alpha, (self.values[0], self.values[-1])
        if self.flow and not np.allclose(alpha + sigma, 1, atol=1e-3):
            raise ValueError(
                f"these noise levels are of a flow, alpha + sigma = 1, and not of a {type(schedule).__name__}"
            )
        if not np.allclose(here, mine, rtol=SAME_END) or not here[0] > self.values[1] > self.values[-2] > here[1]:
            raise ValueError(
                f"these noise levels run from {mine[0]:g} to {mine[1]:g}, but the noise schedule's from "
                f"{here[0]:g} to {here[1]:g}{if_timesteps(mine[0], here[0])}"
            )


def if_timesteps(largest: float | np.floating, most: float | np.floating) -> str:
    """The remedy for a number so far above the largest allowed one that it may be a timestep; "" for others."""
    remedy = "; if these are timesteps: timestep i of N is at t = (i + 1) / N, of a flow at i / N"
    return remedy * bool(2 * most < largest < np.inf)


SAME_END = 0.05  # how far, relatively, a list's end may be from the noise schedule's

_AYS = "Align Your Steps, Sabour et al., arXiv:2404.14507; the figures of ComfyUI's AlignYourStepsScheduler"
_GITS = "GITS, Chen et al., arXiv:2405.11326; the lists of ComfyUI's GITSScheduler, coefficient 1.15"
_OSS = "Optimal Steps, Pei et al., arXiv:2503.21774; the figures of ComfyUI's OptimalStepsScheduler"

# The inner levels of GITS's lists of 2 to 20 steps, as the noise of Stable Diffusion 1 at this percentage of its time.
_GITS_PERCENTS = (
    (30,), (54, 21), (83, 49, 18), (83, 55, 30, 10), (83, 62, 42, 21, 6), (83, 66, 48, 29, 13, 3),
    (83, 66, 49, 32, 17, 6, 1), (86, 68, 54, 39, 26, 14, 5, 1), (86, 68, 55, 42, 29, 18, 10, 4, 1),
    (88, 79, 67, 55, 42, 29, 18, 10, 4, 1), (88, 79, 68, 57, 45, 34, 25, 16, 9, 4, 1),
    (88, 79, 68, 58, 48, 38, 29, 21, 14, 8, 4, 1), (88, 79, 68, 58, 48, 38, 29, 21, 15, 10, 6, 3, 1),
    (88, 79, 68, 59, 50, 42, 34, 27, 21, 15, 10, 6, 3, 1), (88, 79, 69, 62, 53, 44, 36, 29, 23, 17, 12, 8, 5, 3, 1),
    (88, 79, 69, 62, 53, 44, 36, 29, 23, 18, 13, 9, 6, 4, 2, 1),
    (88, 79, 69, 62, 54, 46, 39, 32, 26, 21, 16, 12, 9, 6, 4, 2, 1),
    (88, 79, 69, 62, 54, 46, 39, 32, 26, 21, 17, 13, 10, 7, 5, 3, 2, 1),
    (88, 79, 69, 62, 54, 46, 39, 32, 26, 21, 17, 13, 10, 8, 6, 4, 3, 2, 1),
)  # fmt: skip
_LOG_ALPHA_2 = np.log(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
_OF_SD = np.sqrt(np.expm1(-np.interp(9.99 * np.arange(101), np.arange(1000), _LOG_ALPHA_2)))
_GITS_LISTS = tuple(tuple(_OF_SD[[100, *inner, 0]].tolist()) for inner in _GITS_PERCENTS)

PUBLISHED = {
    "ays-sd15": Levels(
        (14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904,
         0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
        source=_AYS,
    ),
    "ays-sdxl": Levels(
        (14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289,
         0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
        source=_AYS,
    ),
    "ays-svd": Levels((700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002), source=_AYS),
    "gits-sd15": Levels(_GITS_LISTS[-1], source=_GITS, others=_GITS_LISTS),
    "optimal-flux": Levels(
        (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001), flow=True, source=_OSS
    ),
    "optimal-wan": Levels(
        (1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973, 0.968, 0.96, 0.946, 0.927, 0.902,
         0.864, 0.776, 0.539, 0.208, 0.001),
        flow=True,
        source=_OSS,
    ),
}  # fmt: skip
