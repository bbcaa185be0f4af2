"""A learned solver as a scheduler of diffusers' pipelines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

from ld3_jax.interop.standalone.table import State, Table, advanced, converted, from_record, read

_OUTPUTS = {"epsilon": "noise", "sample": "data", "v_prediction": "v", "flow_prediction": "flow"}
_FLOW_STEPS = 1000  # what flows' networks multiply their time by
_CLOSE = 0.05  # of timesteps: two ways to the same noise level


class LearnedScheduler(SchedulerMixin, ConfigMixin):
    """Runs what was learned in a pipeline: times, network times and coefficients, in any solver's form.

    The network gets fractional timesteps. `num_inference_steps` counts network calls, and must be what was learned for.

    Args:
        table: of a schedule.json.
        timesteps: those given to the network, one for each call.
        prediction_type: what it predicts: epsilon, v_prediction, sample or flow_prediction.
        num_train_timesteps: of its training.

    Raises:
        ValueError: if the table is damaged, or there is not one timestep for each of its rows.
    """

    has_compatibles = False
    order = 1

    @register_to_config
    def __init__(
        self,
        table: dict[str, Any],
        timesteps: list[float],
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
    ):
        self._table = from_record(dict(table))
        if prediction_type not in _OUTPUTS:
            raise ValueError(f"prediction_type must be one of {sorted(_OUTPUTS)}, got {prediction_type!r}")
        if len(timesteps) != self._table.calls:
            raise ValueError(f"{len(timesteps)} timesteps for {self._table.calls} network calls")
        self.num_inference_steps: int | None = None
        self.timesteps = torch.tensor(timesteps, dtype=torch.float32)
        self._step_index: int | None = None
        self._state: State | None = None

    @classmethod
    def from_file(
        cls, path: str | Path, like: SchedulerMixin | None = None, prediction_type: str | None = None
    ) -> "LearnedScheduler":
        """The scheduler of a schedule.json.

        Args:
            path: a schedule.json that holds its table, as `experiments.train` and `Learned.save(path, schedule)` write.
            like: the pipeline's scheduler, whose noise levels give each call its timestep by alpha, and whose
                prediction type is taken over.
            prediction_type: what the network predicts; default that of `like`, or epsilon, or of flows
                flow_prediction.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it has no table, or the noise levels are not those of `like`, or not known without it.
        """
        table = read(path)
        config = dict(like.config) if like is not None else {}
        steps = config.get("num_train_timesteps", table.train_steps or _FLOW_STEPS)
        usual = config.get("prediction_type", "flow_prediction" if table.process == "flow" else "epsilon")
        try:
            timesteps = _timesteps(table, steps, getattr(like, "alphas_cumprod", None))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return cls(table._asdict(), timesteps, prediction_type or usual, steps)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def init_noise_sigma(self) -> float:
        """What normal noise is multiplied by."""
        return self._table.prior_scale

    @property
    def step_index(self) -> int | None:
        """How many calls have been made."""
        return self._step_index

    @property
    def begin_index(self) -> int:
        """0: a learned solver starts at its first call."""
        return 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Refuse another start than the first call (image to image with a strength below 1)."""
        if begin_index != 0:
            raise ValueError(f"what was learned starts at its first call, not at call {begin_index}")

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None, mu: float | None = None
    ) -> None:
        """Begin anew.

        Args:
            num_inference_steps: network calls; None: as learned.
            device: where timesteps go.
            mu: what flows' pipelines shift their times by; times that were learned are not shifted.

        Raises:
            ValueError: if it was learned for another number.
        """
        calls = self._table.calls
        if num_inference_steps not in (None, calls):
            raise ValueError(
                f"learned for {calls} network calls: num_inference_steps must be {calls}, got {num_inference_steps}"
            )
        self.num_inference_steps = calls
        self.timesteps = self.timesteps.to(device)
        self._step_index, self._state = 0, None

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The state as it is."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """From one network call to the next; sums are in single precision at least.

        Args:
            model_output: of the network, guided where the pipeline guides.
            timestep: that of the call; calls are counted, so it is not read.
            sample: the state that the network got.
            generator: not used; nothing is drawn.
            return_dict: whether to return a `SchedulerOutput`, or a tuple.

        Raises:
            ValueError: if all calls were made, or none was prepared, or the shapes differ.
        """
        i = self._step_index
        if i is None or i >= self._table.calls:
            raise ValueError(f"call set_timesteps({self._table.calls}) before each run of as many steps")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"the network's output must be shaped like the state, {sample.shape}, got {model_output.shape}"
            )
        x, output = (array.to(torch.promote_types(array.dtype, torch.float32)) for array in (sample, model_output))
        state = State(x, x) if self._state is None else self._state._replace(x=x)
        prediction = converted(self._table, i, x, output, _OUTPUTS[self.config.prediction_type])
        self._state, self._step_index = advanced(self._table, i, state, prediction), i + 1
        previous = self._state.x.to(sample.dtype)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha x_0 + sigma eps at the states of these calls.

        Args:
            original_samples: x_0, (batch, ...).
            noise: eps.
            timesteps: (batch,) or (1,), of this scheduler's.

        Raises:
            ValueError: if a timestep is none of this scheduler's.
        """
        away = (timesteps.to(self.timesteps).reshape(-1, 1) - self.timesteps[None]).abs()
        if not bool((away.amin(1) < _CLOSE).all()):
            raise ValueError(f"timesteps must be among {self.timesteps.tolist()}, got {timesteps.tolist()}")
        table, calls_per_step = self._table, self._table.calls_per_step
        # Heun's second call has the time of the next step's first one, whose state is on the grid.
        rows = (table.calls - 1 - away.flip(1).argmin(1)).tolist()

        def factor(network: Sequence[float], grid: Sequence[float]) -> torch.Tensor:
            values = [network[i] if i % calls_per_step else grid[i // calls_per_step] for i in rows]
            return original_samples.new_tensor(values).reshape(-1, *[1] * (original_samples.ndim - 1))

        alpha, sigma = factor(table.alpha, table.grid_alpha), factor(table.sigma, table.grid_sigma)
        return alpha * original_samples + sigma * noise


def _timesteps(table: Table, steps: int, alphas_cumprod: torch.Tensor | None) -> list[float]:
    """The timestep of each call, by its time, or by its noise level among those of the pipeline."""
    if table.process == "flow":
        return [steps * t for t in table.t]
    if table.process != "vp" or (table.train_steps is None and alphas_cumprod is None):
        raise ValueError(
            "its times are not those of a network of discrete steps: give the pipeline's scheduler (like=), whose "
            f"noise must be of the variance-preserving kind; this one is {table.process or 'of another kind'}"
        )
    by_time = [table.train_steps * t - 1 for t in table.t] if table.train_steps else None
    if alphas_cumprod is None:
        return by_time
    known, wanted = 0.5 * np.log(alphas_cumprod.double().cpu().numpy()), np.log(table.alpha)
    found = np.interp(-wanted, -known, np.arange(len(known)))
    off = np.abs(np.interp(found, np.arange(len(known)), known) - wanted).max()
    if off > 1e-3 or (by_time is not None and np.abs(found - by_time).max() > _CLOSE):
        raise ValueError("it was learned for other noise levels than those of the pipeline's scheduler")
    return by_time or found.tolist()
