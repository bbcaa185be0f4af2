"""A learned solver as a scheduler of diffusers' pipelines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput

from ld3_jax.interop.standalone.table import State, Table, advanced, converted, from_record, read
from ld3_jax.interop.strength import Start

# Names of predictions in diffusers, which has none for x_0 - eps.
OUTPUTS = {"epsilon": "noise", "sample": "data", "v_prediction": "v", "flow_prediction": "flow"}
OUTPUTS |= {"reversed_flow": "reversed_flow"}
KINDS: dict[str | None, str] = {"vp": "variance-preserving noise", "ve": "variance-exploding noise", "flow": "a flow"}
FLOW_STEPS = 1000  # the factor of the time in flows' networks
_CLOSE = 0.05  # tolerance for two timesteps of the same noise level
_NOISE_ALONE = 1e-3  # alpha of a state without signal


class LearnedScheduler(SchedulerMixin, ConfigMixin):
    """Runs a learned solver in a pipeline: times, network times and coefficients, in any solver's form.

    The network gets fractional timesteps. `num_inference_steps` counts network calls, and must be the learned number. A
    solver that starts below full noise is for image to image and inpainting, with the strength that it was learned for
    and a `num_inference_steps` that gives the learned number of calls at this strength: pipelines leave out the
    timesteps before them. An error names both values. The configuration keeps the one of the replaced scheduler:
    `X.from_config(pipe.scheduler.config)` gives any other.

    Args:
        table: the table of a schedule.json.
        timesteps: the timesteps given to the network, one for each call.
        prediction_type: what the network predicts, by diffusers' names; flow_prediction is eps - x_0, reversed_flow x_0
            - eps.
        num_train_timesteps: the number of steps of its training.
        replaces: the diffusers class that it replaces.

    Raises:
        ValueError: if the table is damaged, or there is not one timestep for each of its rows.
    """

    __module__ = "ld3_jax.interop"  # named by a saved pipeline; diffusers looks there once it has been imported
    _compatibles: ClassVar = [*(one.name for one in KarrasDiffusionSchedulers), "FlowMatchEulerDiscreteScheduler"]
    order = 1

    @register_to_config
    def __init__(
        self,
        table: dict[str, Any],
        timesteps: list[float],
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        replaces: str | None = None,
    ):
        self._table = rows = from_record(table)
        if prediction_type not in [*OUTPUTS]:
            raise ValueError(f"prediction_type must be one of {sorted(OUTPUTS)}, got {prediction_type!r}")
        if np.shape(timesteps) != (rows.calls,) or not np.isfinite(np.asarray(timesteps, float)).all():
            raise ValueError(
                f"timesteps must be {rows.calls} finite numbers, one for each network call, got {timesteps!r:.80}"
            )
        self.num_inference_steps: int | None = None
        self.timesteps, self.begin_index, self._noised = torch.tensor(timesteps, dtype=torch.float32), 0, False
        self._mu: float | None = None
        ends, per_step = list(zip(rows.grid_alpha, rows.grid_sigma, strict=True)), rows.calls_per_step
        network = enumerate(zip(rows.alpha, rows.sigma, strict=True))
        # alpha and sigma of the state at each call
        self._states = [one if i % per_step else ends[i // per_step] for i, one in network]
        noise = [b if rows.process == "flow" else b / a for a, b in self._states]
        self.sigmas = torch.tensor([*noise, rows.levels[-1]])
        self.step_index: int | None = None
        self._state: State | None = None

    @classmethod
    def from_file(cls, path: str | Path, like: Any = None, prediction_type: str | None = None) -> "LearnedScheduler":
        """The scheduler of a schedule.json.

        Args:
            path: a schedule.json that holds its table, as `experiments.train` and `Learned.save(path, schedule)` write.
            like: the pipeline's scheduler. Its noise levels give each call its timestep; its configuration is kept.
            prediction_type: what the pipeline's network predicts. Without it, `like` and the file must agree.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it has no table; if `like` is not a scheduler; if the kind of noise, its levels or the
                prediction differ from `like`, or are unknown without it.
        """
        table = read(path)
        if not isinstance(like, SchedulerMixin | None):
            raise ValueError(f"like must be a scheduler of diffusers, such as pipe.scheduler, got {like!r:.80}")
        try:
            like = like.replaced() if isinstance(like, cls) else like
            config = dict(like.config) if like is not None else {}
            steps = config.get("num_train_timesteps", table.train_steps or FLOW_STEPS)
            timesteps, predicted = _timesteps(table, steps, like), _predicted(table, like, prediction_type)
            scheduler = cls(table._asdict(), timesteps, predicted, steps, like and type(like).__name__)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        defaults = [name for name in config.get("_use_default_values", []) if name not in scheduler.config]
        scheduler.register_to_config(**{**config, **scheduler.config, "_use_default_values": defaults})
        return scheduler

    def replaced(self) -> SchedulerMixin:
        """The scheduler that this one replaces, unchanged; a ValueError if diffusers has none with its name."""
        name, ours = self.config["replaces"], ("table", "timesteps", "replaces")
        if not hasattr(diffusers, str(name)):
            raise ValueError(f"it replaces {name}, which is not a diffusers scheduler: give the pipeline's own (like=)")
        return getattr(diffusers, name).from_config({key: self.config[key] for key in self.config if key not in ours})

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    @property
    def _start(self) -> Start:
        return Start.of(self._table, self.config, self._mu)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first state, if it is pure noise; otherwise a ValueError."""
        if self._table.prior_scale is None:
            raise ValueError(f"this solver starts from an image, not from noise alone; {self._start.remedy()}")
        return self._table.prior_scale

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Refuse a start other than the first learned call (image to image with another strength)."""
        if begin_index != len(self.timesteps) - self._table.calls:
            first = len(self.timesteps) - self._table.calls
            raise ValueError(
                f"this solver starts at its first call{f', number {first} here' * bool(first)}, not at call "
                f"{begin_index}; {self._start.remedy()}"
            )
        self.begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        sigmas: Any = None,
        timesteps: Any = None,
    ) -> None:
        """Start again. The times are always the learned ones; only the number of `sigmas` and `timesteps`, which
        pipelines pass by themselves, is read; `mu`, by which flows' pipelines shift them, only helps to find the
        strength.

        Raises:
            ValueError: if it was learned for another number.
        """
        calls, given = self._table.calls, [times for times in (sigmas, timesteps) if times is not None]
        if not all(hasattr(times, "__len__") and np.ndim(times) for times in given):
            raise ValueError(f"sigmas and timesteps must be lists, one number for each call, got {given!r:.80}")
        asked_for: list[Any] = [num_inference_steps, *map(len, given)]
        self._mu, number = mu, calls
        for asked in asked_for:
            if np.ndim(asked) or not (asked is None or self._start.fits(asked)):
                raise ValueError(f"learned for {calls} network calls: {self._start.of_number()}, got {asked}")
            number = number if asked is None else int(asked)
        before, learned, sigmas = number - calls, self.config["timesteps"], self.sigmas[-calls - 1 :]
        left_out = np.linspace(max(len(self) - 1, learned[0]), learned[0], before, endpoint=False)
        self.num_inference_steps = number
        self.timesteps = torch.tensor([*left_out, *learned], dtype=torch.float32, device=device)
        self.sigmas = torch.cat([sigmas[:1].expand(before), sigmas]).to(device)
        self.step_index, self._state, self.begin_index, self._noised = 0, None, 0, False

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        **options: Any,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """From one network call to the next; sums are at least in single precision.

        No noise is drawn, so the generator is not used, and eta and the options of other schedulers must not be set. A
        learned variance after the output is not used. Calls are counted; the timestep of another call is refused.

        Raises:
            ValueError: if all calls were made, or none was prepared, or the shapes differ; if an option is set.
        """
        i = self.step_index
        if i is None or i >= self._table.calls:
            raise ValueError(f"call set_timesteps({self._table.calls}) before each run of as many steps")
        for name, value in {"eta": eta, **options}.items():
            if value is not None and (isinstance(value, torch.Tensor) or value):
                raise ValueError(f"a learned solver draws no noise and has one time for all: leave {name} out")
        try:
            now = float(torch.as_tensor(timestep).flatten()[0])
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            raise ValueError(f"timestep must be one of {self.timesteps.tolist()}, got {timestep!r:.80}") from error
        calls = [call for call, t in enumerate(self.config["timesteps"]) if abs(t - now) < _CLOSE]
        below = self._start.strength is not None
        if (calls or below) and i not in calls:
            of = f"of call {calls[0]}" if calls else f"{now:g}, which was not learned"
            raise ValueError(f"call {i} got the timestep {of}; {self._start.remedy()}")
        if below and not (self.begin_index or self._noised):
            raise ValueError(f"this solver starts from an image, and none was noised; {self._start.remedy()}")
        if self.config.get("variance_type") in ("learned", "learned_range"):
            model_output = model_output[:, : sample.shape[1]]
        if model_output.shape != sample.shape:
            raise ValueError(
                f"the network's output must be shaped like the state, {sample.shape}, got {model_output.shape}"
            )
        x, output = (array.to(torch.promote_types(array.dtype, torch.float32)) for array in (sample, model_output))
        state = State(x, x) if self._state is None else self._state._replace(x=x)
        prediction = converted(self._table, i, x, output, OUTPUTS[self.config["prediction_type"]])
        self._state, self.step_index = advanced(self._table, i, state, prediction), i + 1
        previous = self._state.x.to(sample.dtype)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha x_0 + sigma eps at the states of these calls; a ValueError for a timestep that belongs to no call."""
        learned = self.timesteps[-self._table.calls :]
        away = (timesteps.to(learned).reshape(-1, 1) - learned[None]).abs()
        if not bool((away.amin(1) < _CLOSE).all()):
            raise ValueError(f"timesteps must be among {learned.tolist()}, got {timesteps.tolist()}")
        self._noised = True
        # Heun's second call has the time of the next step's first one, whose state is on the grid.
        rows = (self._table.calls - 1 - away.flip(1).argmin(1)).tolist()
        alpha, sigma = (
            original_samples.new_tensor(factor).reshape(-1, *[1] * (original_samples.ndim - 1))
            for factor in zip(*(self._states[row] for row in rows), strict=True)
        )
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.add_noise(sample, noise, timestep)


def described(like: Any) -> tuple[str | None, str | None]:
    """The kind of noise of a pipeline's scheduler, and what its network predicts, according to the scheduler."""
    config, said = like.config, like.config.get("prediction_type")
    discrete = None if getattr(like, "alphas_cumprod", None) is None else "vp"
    if config.get("timestep_type") == "continuous" or (config.get("sigma_max") and not discrete):
        return "ve", said
    if hasattr(like, "scale_noise") and "num_train_timesteps" in config:
        return "flow", "reversed_flow" if config.get("invert_sigmas") else "flow_prediction"
    return "flow" if config.get("use_flow_sigmas") or said == "flow_prediction" else discrete, said


def flow_timestep(config: Mapping[str, Any], steps: int, sigma: Any) -> Any:
    """The timestep that a flow's network gets at a noise level, for a number of training steps."""
    return steps * (1 - sigma if config.get("invert_sigmas") else sigma)


def _predicted(table: Table, like: Any, given: str | None) -> str:
    """What the network predicts: the given type, or the one of the file and of the pipeline's scheduler."""
    learned = next((name for name, output in OUTPUTS.items() if output == table.output), table.output)
    said = like and described(like)[1]
    if len(names := [given] if given is not None else [*{learned, said} - {None}]) != 1:
        raise ValueError(
            f"the network predicts {learned or 'unknown'} by the file, {said or 'unknown'} by like=: "
            f"give prediction_type=, one of {list(OUTPUTS)}; flow_prediction is eps - x_0, reversed_flow x_0 - eps"
        )
    return names.pop()


def _timesteps(table: Table, steps: int, like: Any) -> list[float]:
    """The timestep of each call, by its time, or by its noise level in the pipeline's scheduler."""
    config, kind = (like.config, described(like)[0]) if like is not None else ({}, table.process)
    if kind != table.process:
        learned, there = (KINDS.get(one, "other noise") for one in (table.process, kind))
        raise ValueError(
            f"it was learned for {learned}, and the pipeline's {type(like).__name__} is for {there}: give one of this "
            "model's; if its network is not what its scheduler says, as InstaFlow's, give prediction_type= and no like="
        )
    if kind == "flow":
        return [flow_timestep(config, steps, sigma) for sigma in table.sigma]
    if kind != "vp" or (table.train_steps is None and like is None):
        raise ValueError(
            "pipelines run flows, and variance-preserving noise by steps of training: give the pipeline's scheduler "
            f"(like=) for these, or use interop.solve; this one was learned for {KINDS.get(kind, 'other noise')}"
        )
    by_time = [table.train_steps * t - 1 for t in table.t] if table.train_steps else []
    if like is None:
        return by_time
    alphas, start = like.alphas_cumprod.double().cpu().numpy(), table.alpha[0]
    if table.full_noise is not None:
        start = (1 + table.full_noise**2) ** -0.5
    noise_alone = config.get("rescale_betas_zero_snr", False) and start > _NOISE_ALONE
    alphas = np.append(alphas[:-1], max(alphas[-1], min(start, _NOISE_ALONE) ** 2))  # some write 0, others 5e-8
    known, wanted = 0.5 * np.log(alphas), np.log([*table.alpha, start])
    found = np.interp(-wanted, -known, np.arange(len(known)))
    off = np.abs(np.interp(found, np.arange(len(known)), known) - wanted).max()
    found = found[:-1]
    if noise_alone or off > 1e-3 or (by_time and np.abs(found - by_time).max() > _CLOSE):
        why = " (rescale_betas_zero_snr; leave it out of like= if the network was not trained so)" * noise_alone
        raise ValueError(
            "it was learned for other noise levels than the pipeline's scheduler has: alpha begins at "
            f"{start:.3g}, and there at {alphas[-1] ** 0.5:.3g}{why}; give a schedule.json of this model"
        )
    return by_time or found.tolist()
