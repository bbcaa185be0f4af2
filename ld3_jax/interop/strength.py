"""How diffusers pipelines ask for a start below full noise: by a strength, and a number of steps of which they skip
some.

An image-to-image pipeline makes int(number * strength) calls, and some round up; it skips the other timesteps.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ld3_jax.interop.standalone.table import Table

_WHOLE = "pass strength=1 (SDXL inpainting's default is 0.9999), no denoising_start, or use pipe.scheduler.replaced()"


class Start(NamedTuple):
    """Where a learned solver starts, in the terms of pipelines.

    Attributes:
        calls: the learned number of network calls.
        strength: the strength for image to image; None for full noise.
    """

    calls: int
    strength: float | None = None

    @classmethod
    def of(cls, table: Table, config: Mapping[str, Any], mu: float | None = None) -> "Start":
        """The strength that starts at the table's first level: the share of the training steps, or for flows of the
        levels before the pipeline's own shift.

        Args:
            table: the learned solver.
            config: the scheduler's configuration, with the timesteps of the calls and what it kept of the replaced one.
            mu: the shift of the levels that a pipeline uses for its image size.
        """
        if table.full_noise is None:
            return cls(table.calls)
        if table.process != "flow":
            return cls(table.calls, _short((config["timesteps"][0] + 1) / config["num_train_timesteps"]))
        shift, sigma = 1.0, table.grid_sigma[0]
        if not config.get("use_dynamic_shifting"):
            shift = config.get("shift", 1.0)
        elif mu is not None:
            shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        return cls(table.calls, _short(sigma / (shift - (shift - 1) * sigma)))

    def fits(self, number: Any) -> bool:
        """Whether a num_inference_steps makes all calls, in pipelines that round down or up."""
        if self.strength is None:
            return number == self.calls
        known = range(self.calls, math.ceil((self.calls + 1) / self.strength) + 1)
        return number in known and self.calls in self._rounded(number)

    def of_number(self) -> str:
        """What num_inference_steps must be."""
        return f"num_inference_steps must be {self.calls}" if self.strength is None else self.remedy()

    def remedy(self) -> str:
        """What to pass to a pipeline."""
        if self.strength is None:
            return _WHOLE
        numbers = range(self.calls, math.ceil(self.calls / self.strength) + 2)
        down = next(number for number in numbers if self._rounded(number)[0] == self.calls)
        up = next((number for number in reversed(numbers) if self._rounded(number)[1] == self.calls), down)
        rounded = f" ({up} where it rounds up, as Flux's and SD3's do)" * (up != down)
        return (
            f"in a pipeline of image to image or inpainting pass strength={self.strength:g} and "
            f"num_inference_steps={down}{rounded}"
        )

    def _rounded(self, number: int) -> tuple[int, int]:
        share = number * (self.strength or 1.0)
        return int(share), number - int(number - share)


def _short(strength: float) -> float:
    return float(f"{strength:.4g}")
