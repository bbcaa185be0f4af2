"""The sampling loops of other programs that learn their solvers, for any states that can be added.

They run on NumPy arrays in double precision; `imported_solvers` runs them once on unit vectors, which gives a table.

States are in units where alpha = 1, except for flows. `network(x, level)` gives the direction dx / dlevel there:
the noise prediction, or the velocity eps - x_0 for flows. A level is sigma / alpha, or sigma for flows.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Network = Callable[[Any, float], Any]


class Model(NamedTuple):
    """What a sampler and the reader of its file need to know about the model.

    Attributes:
        process: its noise: "ve", "vp" or "flow".
        most, least: its levels at t_max and t_min, sigma / alpha, or sigma for flows.
        ends: t_max and t_min.
        log_alpha: log alpha at a time.
        level: the level at a time.
        calls: the wanted number of network calls.
        side: side of images in pixels; the levels of Flux's models depend on it.
    """

    process: str
    most: float
    least: float
    ends: tuple[float, float]
    log_alpha: Callable[[Any], Any]
    level: Callable[[Any], Any]
    calls: int
    side: int


class Sampler(NamedTuple):
    """A sampler with its learned numbers.

    Attributes:
        run: run(network, x) -> the sample, from the state x at the level `start`.
        start, end: the levels at which it starts and ends.
        notes: what its file says besides the numbers.
    """

    run: Callable[[Network, Any], Any]
    start: float
    end: float
    notes: tuple[str, ...] = ()


def _polynomial(u: np.ndarray, rho: float, model: Model) -> np.ndarray:
    first, last = model.most ** (1 / rho), model.least ** (1 / rho)
    return (first + u * (last - first)) ** rho


def _logsnr(u: np.ndarray, rho: float, model: Model) -> np.ndarray:
    return np.exp(np.log(model.most) + u * np.log(model.least / model.most))


def _time_uniform(u: np.ndarray, rho: float, model: Model) -> np.ndarray:
    slope, first = linear_beta(model.most, model.least)
    t = (1 + u * (1e-3 ** (1 / rho) - 1)) ** rho
    return np.sqrt(np.expm1(slope / 2 * t**2 + first * t))


def _discrete(u: np.ndarray, rho: float, model: Model) -> np.ndarray:
    first, last = model.ends
    return model.level((first + u * (last ** (1 / rho) - first)) ** rho)


# The grids of diff-sampler, which EPD and DyWeight name: levels at u in [0, 1].
LEVELS = {"polynomial": _polynomial, "logsnr": _logsnr, "time_uniform": _time_uniform, "discrete": _discrete}


def linear_beta(most: float, least: float) -> tuple[float, float]:
    """The slope of beta and beta at time 0 of variance-preserving noise with these levels at 1 and at 0.001."""
    logs = np.log1p(np.square([most, least]))
    slope = float(2 * (logs[1] / 1e-3 - logs[0]) / (1e-3 - 1))
    return slope, float(logs[0] - slope / 2)


def shifted(levels: np.ndarray, factor: float) -> list[float]:
    """factor s / (1 + (factor - 1) s), which moves flows' levels to more noise."""
    return [*map(float, factor * levels / (1 + (factor - 1) * levels))]


class EPDNumbers(NamedTuple):
    """The numbers of EPD, for n steps and k parallel calls in each.

    Attributes:
        ratios: where the parallel calls lie in each step, in (0, 1) of the logarithm of the level.
        weights: of their directions; the sum of a step's is 1.
        scale_dir: factors of the directions.
        scale_time: factors of the level at which the network is called.
    """

    ratios: Float[np.ndarray, "n k"]
    weights: Float[np.ndarray, "n k"]
    scale_dir: Float[np.ndarray, "n k"]
    scale_time: Float[np.ndarray, "n k"]


_ADAMS_BASHFORTH = ([1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def epd(levels: Sequence[float], numbers: EPDNumbers, order: int, analytical: bool) -> Sampler:
    """EPD: parallel calls in each step, from states that one direction leads to, and a weighted sum of their
    directions.

    Parallel calls do not depend on each other; they are made in order of decreasing level.

    Args:
        levels: the levels at the steps' ends.
        numbers: the learned numbers.
        order: order of the extrapolation to the parallel calls: 1, or up to 4 with iPNDM as student.
        analytical: whether the first direction is x / sqrt(1 + level^2), without a call.

    Reference: Zhu et al., arXiv:2507.14797, and Wang et al., arXiv:2512.22796.
    """

    def run(network: Network, x: Any) -> Any:
        past: list[Any] = []
        for i, (now, then) in enumerate(pairwise(levels)):
            first = x / np.sqrt(1 + now**2) if analytical and i == 0 else network(x, now)
            past = [first, *past][:order]
            direction = _combined(_ADAMS_BASHFORTH[len(past) - 1], past)
            ratios, weights, scale_dir, scale_time = (one[i] for one in numbers)
            middle = then**ratios * now ** (1 - ratios)
            total = 0.0
            for j in np.argsort(-scale_time * middle, kind="stable"):
                found = network(x + (middle[j] - now) * direction, scale_time[j] * middle[j])
                total = total + weights[j] * scale_dir[j] * scale_time[j] * found
            x = x + (then - now) * total
        return x

    return Sampler(run, levels[0], levels[-1])


def dyweight(
    levels: Sequence[float],
    weights: Float[np.ndarray, "n n"],
    scales: Float[np.ndarray, "n"],
    analytical: bool = False,
    *,
    flow: bool = False,
) -> Sampler:
    """DyWeight: a weighted sum of all directions so far; the weights' sum says how far a step really goes.

    Args:
        levels: the levels at the steps' ends.
        weights: weights of the directions at each step, oldest first.
        scales: factors of the level at which the network is called.
        analytical: whether the first direction is x / sqrt(1 + level^2), without a call.
        flow: whether directions are the network's own velocity, and not made from its data prediction and the unscaled
            level.

    Reference: Zhao et al., arXiv:2603.11607.
    """

    def run(network: Network, x: Any) -> Any:
        now, past = levels[0], []
        for i, then in enumerate(levels[1:]):
            if analytical and i == 0:
                past.append(x / np.sqrt(1 + now**2))
            else:
                asked = abs(scales[i] * now)
                past.append(network(x, asked) * (1.0 if flow else asked / (now + 1e-8)))
            x = x + (then - now) * _combined(weights[i, : i + 1], past)
            now = now + weights[i, : i + 1].sum() * (then - now)
        return x

    return Sampler(run, levels[0], levels[-1])


def neural_flow(deltas: Float[np.ndarray, "n"], coefficients: Float[np.ndarray, "n n"]) -> Sampler:
    """NeuralSolver on a flow: a sum of velocities; the newest one's weight makes the sum of weights 1.

    Args:
        deltas: how much the level falls in each step, from 1 on.
        coefficients: weights of earlier velocities.

    Reference: Wang et al., arXiv:2505.21114.
    """
    weights = _whole(coefficients)

    def run(network: Network, x: Any) -> Any:
        level, past = 1.0, []
        for i, delta in enumerate(deltas):
            past.append(network(x, level))
            x = x - delta * _combined(weights[i, : i + 1], past)
            level = level - delta
        return x

    return Sampler(run, 1.0, max(0.0, 1.0 - float(deltas.sum())))


def neural_vp(deltas: Float[np.ndarray, "n"], coefficients: Float[np.ndarray, "n n"]) -> Sampler:
    """NeuralSolver on variance-preserving noise of linear beta, from 0.1 to 20: a sum of data predictions.

    Args:
        deltas: how much the time falls in each step, from 0.999 on; it stays at 0.001 at least.
        coefficients: weights of earlier data predictions.

    Reference: Wang et al., arXiv:2505.21114.
    """
    weights, start = _whole(coefficients), 0.999

    def alpha_sigma(t: float) -> tuple[float, float]:
        t = min(max(t, 1e-3), 1.0)
        log_alpha = -0.25 * 19.9 * t**2 - 0.05 * t
        return np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha))

    def run(network: Network, x: Any) -> Any:
        (alpha, sigma), t, past = alpha_sigma(start), start, []
        x = alpha * x
        for i, delta in enumerate(deltas):
            past.append((x - sigma * network(x / alpha, sigma / alpha)) / alpha)
            t = t - delta
            (then, noise), rise = alpha_sigma(t), -alpha / sigma
            x = noise / sigma * x + noise * (then / noise + rise) * _combined(weights[i, : i + 1], past)
            alpha, sigma = then, noise
        return x / alpha

    ends = alpha_sigma(start), alpha_sigma(start - deltas.sum())
    return Sampler(run, ends[0][1] / ends[0][0], ends[1][1] / ends[1][0])


def generalized(
    t: Sequence[float],
    shifts: Float[np.ndarray, "n"],
    of_data: Float[np.ndarray, "order n"],
    of_states: Float[np.ndarray, "order n"],
    log_alpha: Callable[[float], float],
) -> Sampler:
    """The Generalized Solver: DPM-Solver++ with changed coefficients and with past states in the sums.

    Args:
        t: the times of the steps' ends, on variance-preserving noise.
        shifts: shifts of the times at which the network is called.
        of_data, of_states: changes of the coefficients of data predictions and of states, newest first.
        log_alpha: log alpha of the noise at a time.

    Reference: Oganov et al., arXiv:2510.17699.
    """
    order = len(of_data)

    def alpha_sigma(time: float) -> tuple[float, float]:
        log = log_alpha(time)
        return np.exp(log), np.sqrt(-np.expm1(2 * log))

    def run(network: Network, x: Any) -> Any:
        data, states, lams = [], [], []
        x = alpha_sigma(t[0])[0] * x
        for i, (now, then) in enumerate(pairwise(t)):
            (alpha, sigma), (there, noise) = alpha_sigma(now), alpha_sigma(now + shifts[i])
            eps = network(x / there, noise / there)
            alpha_then, sigma_then = alpha_sigma(then)
            data, states = [(x - sigma * eps) / alpha, *data][:order], [x, *states][:order]
            lams = [np.log(alpha / sigma), *lams][:order]
            weights = _dpmpp(np.log(alpha_then / sigma_then), lams, alpha_then, of_data[:, i])
            x = sigma_then / sigma * x + _combined(weights, data) + _combined(of_states[: len(states), i], states)
        return x / alpha_sigma(t[-1])[0]

    ends = alpha_sigma(t[0]), alpha_sigma(t[-1])
    return Sampler(run, ends[0][1] / ends[0][0], ends[1][1] / ends[1][0])


def _dpmpp(lam: float, lams: Sequence[float], alpha: float, change: Float[np.ndarray, "order"]) -> np.ndarray:
    """Weights of the data predictions at `lams`, newest first, for a step to lam, with the Generalized Solver's
    changes.

    The changes are of the coefficients of the newest prediction and of divided differences.
    """
    h, unit = lam - lams[0], np.eye(len(lams))
    phi_1 = np.expm1(-h)
    if len(lams) == 1:
        return -(alpha * phi_1 + change[0]) * unit[0]
    r0 = (lams[0] - lams[1]) / h
    slope = (unit[0] - unit[1]) / r0
    if len(lams) == 2:
        return -(alpha * phi_1 + change[0]) * unit[0] - (0.5 * alpha * phi_1 + change[1]) * slope
    r1 = (lams[1] - lams[2]) / h
    earlier = (unit[1] - unit[2]) / r1
    first, second = slope + r0 / (r0 + r1) * (slope - earlier), (slope - earlier) / (r0 + r1)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 0.5
    weights = (alpha * phi_2 + change[1]) * first - (alpha * phi_3 + change[2]) * second
    return weights - (alpha * phi_1 + change[0]) * unit[0] + _combined(change[3 : len(lams)], [*unit[3:]])


def _whole(coefficients: Float[np.ndarray, "n n"]) -> np.ndarray:
    earlier = np.tril(coefficients, -1)
    return earlier + np.diag(1 - earlier.sum(1))


def _combined(weights: Any, values: Sequence[Any]) -> Any:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))
