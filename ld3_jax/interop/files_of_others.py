"""Files in which other programs store learned solvers, each read as a `Sampler`; no code of a file is run.

A new format is a row of FORMATS.
"""

import ast
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ld3_jax.interop import samplers_of_others as samplers
from ld3_jax.interop.samplers_of_others import Model, Sampler
from ld3_jax.networks import files
from ld3_jax.networks.lazy import some
from ld3_jax.networks.pickles import Inert, Refused, Tensor, naming

_LONGEST = 1_000_000  # characters of a module that is read as text
_MOST = 1_000  # steps
_LATENT, _FLOWS = "ldm", ("sd3", "flux")  # EPD's names of its backends


class Format(NamedTuple):
    """One format.

    Attributes:
        holds: holds(content) -> whether what a file holds is of it.
        read: read(content, model) -> the sampler.
    """

    holds: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], Model], Sampler]


def content(path: Path) -> Mapping[str, Any]:
    """The content of a file by name: a pickle, a torch.save file, or a Python module with numbers.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, is none of these, or would run code.
    """
    if path.suffix == ".py":
        with path.open(encoding="utf-8") as file, naming(str(path)):
            return _numbers_of_module(file.read(_LONGEST))
    held = files.objects(path)
    if not isinstance(held, dict):
        raise ValueError(f"{path}: holds a {type(held).__name__}, not objects by name")
    return held


def name_of(held: Mapping[str, Any]) -> str | None:
    """The name of the format of a file's content, or None."""
    return next((name for name, one in FORMATS.items() if one.holds(held)), None)


def read(path: Path, model: Model) -> tuple[str, Sampler]:
    """The name of a file's format, and the sampler in it.

    Raises: see `content`; also a ValueError if the file has no known format, or is not for such a model.
    """
    held = content(path)
    with naming(str(path)):
        name = name_of(held)
        if name is None:
            raise Refused(f"no learned solver of {', '.join(FORMATS)}; it holds {some([*map(str, held)])}")
        return name, FORMATS[name].read(held, model)


def _numbers_of_module(text: str) -> dict[str, Any]:
    """The names in a module of numbers, and of lists and dict(...) of numbers."""
    found: dict[str, Any] = {}

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Name):
            return found[node.id]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            return {str(keyword.arg): value(keyword.value) for keyword in node.keywords}
        return ast.literal_eval(node)

    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = value(node.value)
            except (KeyError, ValueError):  # not a number; it is not read
                continue
    return found


def _array(value: Any, name: str, *shape: int) -> np.ndarray:
    """Numbers of a file in double precision; -1 stands for any size."""
    array = np.asarray(value.array() if isinstance(value, Tensor) else value, float)
    if array.ndim != len(shape) or any(size not in (-1, have) for size, have in zip(shape, array.shape, strict=True)):
        raise Refused(f"its {name} must be of shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise Refused(f"its {name} must be finite")
    return array


def _steps(state: Mapping[str, Any]) -> int:
    points = state["num_steps"]
    if type(points) is not int or not 2 <= points <= _MOST:
        raise Refused(f"its num_steps must be a whole number from 2 to {_MOST}, got {points!r:.80}")
    return points - 1


def _is(held: Mapping[str, Any], name: str, kind: str) -> bool:
    """Whether a pickle's object belongs to a class, by the end of its name."""
    one = held.get(name)
    return isinstance(one, Inert) and isinstance(one.state, dict) and one.name.split(".")[-1] == kind


# The noise of the models that files name: its kind, and its levels at both ends.
_EDM, _LDM = ("ve", 80.0, 0.002), ("vp", 83.82, 0.03876)
_NOISE = dict.fromkeys(("cifar10", "ffhq", "afhqv2", "imagenet64", "lsun_bedroom"), _EDM)
_NOISE |= {"lsun_bedroom_ldm": _LDM, "ffhq_ldm": _LDM, "ms_coco": ("vp", 14.615, 0.02917)}


def _check_model(name: Any, model: Model) -> None:
    if name not in _NOISE:
        raise Refused(f"it is for the data {name!r:.80}; known data are {list(_NOISE)}")
    process, most, least = _NOISE[name]
    if process != model.process or not np.allclose([model.most, model.least], [most, least], rtol=0.05):
        raise Refused(
            f"it is for {name}'s model, whose noise is {process} from {most:g} to {least:g}, and this model's is "
            f"{model.process} from {model.most:g} to {model.least:g}"
        )


def _check_process(model: Model, *processes: str) -> None:
    if model.process not in processes:
        raise Refused(f"it is for noise of the kind {' or '.join(processes)}, and this model's is {model.process}")


def _levels(kind: Any, rho: Any, n: int, model: Model) -> list[float]:
    if kind not in samplers.LEVELS:
        raise Refused(f"its schedule_type must be one of {[*samplers.LEVELS]}, got {kind!r:.80}")
    levels = samplers.LEVELS[kind](np.arange(n + 1) / n, float(_array(rho, "schedule_rho")), model)
    return [*map(float, levels)]


def _flow_levels(config: Mapping[str, Any], n: int) -> list[float]:
    """EPD's levels of Stable Diffusion 3 and Flux: the levels of diffusers' scheduler for n + 1 steps."""
    most, least = (float(_array(config.get(name, np.nan), name)) for name in ("sigma_max", "sigma_min"))
    if not 0 < least < most <= 1:
        raise Refused(f"its sigma_min and sigma_max must be in (0, 1], got {least} and {most}")
    mu = config.get("flowmatch_mu")
    # Without mu the least level has been shifted once, from 1 / 1000, and diffusers shifts it once more.
    factor = least * 0.999 / (0.001 * (1 - least)) if mu is None else float(np.exp(_array(mu, "flowmatch_mu")))
    return samplers.shifted(np.linspace(most, least, n + 1), factor)


def _epd(held: Mapping[str, Any], model: Model) -> Sampler:
    state = held["model"].state
    n, k, parameters = _steps(state), state["num_points"], state["_parameters"]
    student, backend = state["sampler_stu"], state.get("backend", _LATENT)
    if student not in ("epd", "ipndm"):
        raise Refused(f"its sampler_stu must be epd or ipndm, got {student!r:.80}")
    if backend not in (_LATENT, *_FLOWS):
        raise Refused(f"its backend must be one of {[_LATENT, *_FLOWS]}, got {backend!r:.80}")
    if backend in _FLOWS:
        _check_process(model, "flow")
        levels = _flow_levels(state["backend_config"], n)
    else:
        _check_model(state["dataset_name"], model)
        levels = _levels(state["schedule_type"], state["schedule_rho"], n, model)
    names = ("r_params", "weight_s", "scale_dir_params", "scale_time_params")
    ratios, weights, *scales = (_array(parameters[name], name, n, k) for name in names)
    weights = np.exp(weights - weights.max(1, keepdims=True))
    ranges = [float(_array(state[name], name)) for name in ("scale_dir", "scale_time")]
    factors = [1 + of * (2 * _sigmoid(0.5 * one) - 1) for of, one in zip(ranges, scales, strict=True)]
    if state["fcn"]:
        factors[0][-1] = 1.0
    numbers = samplers.EPDNumbers(_sigmoid(ratios), weights / weights.sum(1, keepdims=True), *factors)
    order = state["max_order"] if student == "ipndm" else 1
    if order not in (1, 2, 3, 4):
        raise Refused(f"its max_order must be 1, 2, 3 or 4, got {order!r:.80}")
    made = samplers.epd(levels, numbers, order, bool(state["afs"]))
    return made._replace(notes=_learned_with(state["dataset_name"], backend, state["guidance_rate"]))


def _dyweight(held: Mapping[str, Any], model: Model) -> Sampler:
    state, loss = held["predictor"].state, held["loss_fn"].state
    name, n, analytical = loss.get("dataset_name") or "cifar10", _steps(state), bool(state["afs"])
    _check_model(name, model)
    levels = _levels(loss["schedule_type"], loss["schedule_rho"], n, model)
    weights = _array(state["_parameters"]["hybrid_weights"], "hybrid_weights", n, n)
    weights = weights * _array(state["_buffers"]["mask"], "mask", n, n)
    given, scales = state["_parameters"].get("t_scale"), np.ones(n)
    if given is not None:
        scales[int(analytical) :] = _array(given, "t_scale", n - analytical)
    made = samplers.dyweight(levels, weights, scales, analytical)
    return made._replace(notes=_learned_with(name, _LATENT, state["guidance_rate"]))


def _dyweight_flux(held: Mapping[str, Any], model: Model) -> Sampler:
    _check_process(model, "flow")
    weights = _array(held["dyweight_weights_raw"], "dyweight_weights_raw", -1, -1)
    n = len(weights)
    scales, _ = _array(held["dyweight_t_scales"], "dyweight_t_scales", n), _array(weights, "dyweight_weights_raw", n, n)
    tokens = (model.side / 16) ** 2
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
    levels = [*samplers.shifted(np.linspace(1, 1 / n, n), float(np.exp(mu))), 0.0]
    made = samplers.dyweight(levels, np.tril(weights), scales, flow=True)
    return made._replace(notes=(f"for FLUX.1-dev, images of {model.side} x {model.side} pixels",))


def _neural(held: Mapping[str, Any], model: Model) -> Sampler:
    name = next(name for name in _NEURAL if name in held)
    process, sampler = _NEURAL[name]
    _check_process(model, process)
    known = {int(key.removeprefix("step")): one for key, one in held[name].items()}
    if (n := model.calls) not in known:
        raise Refused(f"it has solvers of {sorted(known)} network calls, not of {n}")
    deltas = _array(known[n]["timedeltas"], "timedeltas", n)
    if deltas.min() <= 0:
        raise Refused(f"its timedeltas must be above 0, got {deltas.tolist()}")
    return sampler(deltas, _array(known[n]["coeffs"], "coeffs", n, n))._replace(notes=_NAMELESS)


_NEURAL = {"FM_DATA": ("flow", samplers.neural_flow), "DDPM_DATA": ("vp", samplers.neural_vp)}
_NAMELESS = ("its file does not say for which model it was learned",)
_END = 1e-3  # the time at which the Generalized Solver ends, in all its configurations


def _generalized(held: Mapping[str, Any], model: Model) -> Sampler:
    """Its averaged parameters, in the module's order: times, shifts, and for each order the data's and the states'."""
    logits, shifts, *changes = (np.asarray(one.array(), float) for one in held["ema"]["shadow_params"])
    n = len(shifts) if shifts.ndim == 1 else -1
    _array(logits, "mu_logit", n - 1)
    _array(shifts, "t_couple", n)
    changes = [*takewhile(lambda one: one.shape == (n,), changes)]  # a discriminator's weights follow
    if not changes or len(changes) % 2:
        raise Refused(f"its coefficients must be pairs of lists of {n} numbers, got {len(changes)}")
    stacked = _array(np.stack(changes), "coefficients", -1, n)
    mu = 1e-5 + (1 - 2e-5) * _sigmoid(logits)
    t = [1.0, *(_END + (1 - _END) * (1 - np.cumprod(mu)))[::-1], _END]
    return samplers.generalized(t, shifts, stacked[::2], stacked[1::2], _log_alpha(model))._replace(notes=_NAMELESS)


def _log_alpha(model: Model) -> Callable[[Any], Any]:
    """log alpha of the noise on which the Generalized Solver runs a model: linear beta for EDM, else its own."""
    _check_process(model, "ve", "vp")
    if model.process == "vp":
        return model.log_alpha
    least = max(float(np.sqrt(np.expm1(19.9 / 2 * _END**2 + 0.1 * _END))), model.least)
    most = min(float(np.sqrt(np.expm1(19.9 / 2 + 0.1))), model.most)
    slope, first = samplers.linear_beta(most, least)
    return lambda t: -0.5 * (slope / 2 * t**2 + first * t)


def _learned_with(data: str, backend: str, guidance: float | None) -> tuple[str, ...]:
    model = f"for the model of {data}" if backend == _LATENT else f"for {backend}"
    return (model, *((f"learned with guidance {guidance:g}",) if guidance not in (None, 0, 1) else ()))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


FORMATS = {
    "EPD": Format(lambda held: _is(held, "model", "EPD_predictor"), _epd),
    "DyWeight": Format(lambda held: _is(held, "predictor", "DyWeight_predictor"), _dyweight),
    "DyWeight of Flux": Format(lambda held: "dyweight_weights_raw" in held, _dyweight_flux),
    "NeuralSolver": Format(lambda held: any(isinstance(held.get(name), dict) for name in _NEURAL), _neural),
    "the Generalized Solver": Format(
        lambda held: isinstance(held.get("ema"), dict) and "shadow_params" in held["ema"], _generalized
    ),
}
