"""Time grids of other methods, to compare with standard and learned ones.

Each is a function of the noise schedule, the number of steps and a `Probe`, a model with a few initial states. States
are arrays in a vector space.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ld3_jax.batches import check_finite, count_of, in_batches, whole
from ld3_jax.denoisers import Model, as_pytree, predicted
from ld3_jax.grids import GRIDS, check_descent, check_ends, grid
from ld3_jax.ranges import CALLS, COUNT, STATES, Kind, check, entrance, instance, one_of
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver, make_table
from ld3_jax.solvers.table import advanced, begun
from ld3_jax.space import add

_TEACHER_STEPS = 60
_GITS_COEFFICIENT = 1.15
_ALONE = 3
_SMOOTHING, _DIFFERENCE = (0.1, 0.01, 0.0), 1e-6
_ARRAY = Kind("an array of real numbers", lambda x: not STATES.lacks(x) and jax.tree_util.all_leaves([x]))
_LEAST_SHARE = 1e-4  # least share of the range of lam in one step, so that no step vanishes in a line search


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Probe:
    """A noise prediction, initial states scaled by the prior, conditions, and how many pass the network at a time."""

    model: Model
    x_T: Float[Array, "batch *shape"]
    cond: PyTree = None
    batch_size: int = field(default=25, metadata={"static": True})

    def eps(self, x: Float[Array, "batch *shape"], t: Float[Array, ""]) -> Float[Array, "batch *shape"]:
        """The noise predictions of all states at one time, on each of the devices."""
        of = (x, self.cond)
        return whole(in_batches(lambda b: predicted(self.model, b[0], t, b[1], b[0]), of, self.batch_size))


class Trajectory(NamedTuple):
    """An accurate trajectory of each of the probe's states, in y = x / alpha: dy / ds = eps with s = sigma / alpha.

    Attributes:
        t: times from t_max to t_min.
        s: sigma / alpha at the times.
        y: states.
        eps: noise predictions at all states but the last.
    """

    t: Float[Array, "points"]
    s: Float[Array, "points"]
    y: Float[Array, "points batch *shape"]
    eps: Float[Array, "steps batch *shape"]


@entrance(schedule=instance(NoiseSchedule), n=CALLS, probe=instance(Probe).or_none())
def baseline(name: str, schedule: NoiseSchedule, n: int, probe: Probe | None = None) -> Float[Array, "{n}+1"]:
    """The times of another method.

    Args:
        name: one of BASELINES.
        schedule: the noise schedule.
        n: number of steps, at least 1.
        probe: the model with some initial states; "dmn" needs none.

    Returns:
        (n + 1,) descending times, exactly t_max and t_min at the ends.

    Raises:
        ValueError: if the name is unknown, n < 1, states lie on a manifold or are not an array, a probe is needed and
            not given, or its model predicts zero noise, so that states do not move.
        FloatingPointError: if the model's predictions are not finite.
    """
    check({"baseline": name}, {"baseline": one_of(BASELINES)})
    schedule.space.require_vectors(f"the baseline {name!r}")
    if len(schedule.parts) > 1:
        raise ValueError(f"the baseline {name!r} is for states with one time, got {schedule}")
    if name in OF_MODEL and probe is None:
        raise ValueError(f"the baseline {name!r} looks at the model: it needs a probe")
    check_ends(schedule, jnp.result_type(float))
    if probe is not None:
        check(vars(probe), {"x_T": _ARRAY, "batch_size": COUNT})
        count_of((probe.x_T, probe.cond), "the probe's x_T and cond")
        probe = replace(probe, model=as_pytree(probe.model))
    t = jnp.asarray(BASELINES[name](schedule, n, probe), jnp.result_type(float))
    t = t.at[0].set(schedule.t_max).at[-1].set(schedule.t_min)
    check_descent(t, f"the times of {name!r} for", schedule)
    return t


def dmn(schedule: NoiseSchedule, n: int, probe: Probe | None = None) -> Float[Array, "{n}+1"]:
    """The times that minimise a bound on the error of DPM-Solver++ 3M; no network call.

    The bound takes the error of a data prediction to be sigma^2 / alpha, with alpha^2 = 1 / (1 + exp(-2 lam)) whatever
    the noise schedule; see `dmn_bound`. Each standard grid is a start, and the least bound that is found is taken.

    Reference: Xue et al., arXiv:2402.17376. Differs from the published code, which starts from the logsnr grid only.
    """
    starts = [tuple(np.asarray(schedule.lam(grid(name, schedule, n)), float).tolist()) for name in GRIDS]
    return schedule.inverse_lam(jnp.asarray(_least_bound(tuple(starts)), jnp.result_type(float)))


@lru_cache
def _least_bound(starts: tuple[tuple[float, ...], ...]) -> Float[np.ndarray, "points"]:
    """The half-log-SNRs with the least `dmn_bound`, from each of several starts with the same ends."""
    from scipy import optimize  # takes a second to load; other programs should not have to wait for it

    first, last = starts[0][0], starts[0][-1]

    def lam_of(logits: np.ndarray) -> np.ndarray:
        padded = np.append(logits, np.zeros((*logits.shape[:-1], 1)), -1)
        shares = np.exp(padded - padded.max(-1, keepdims=True))
        shares = _LEAST_SHARE + (1 - _LEAST_SHARE * shares.shape[-1]) * shares / shares.sum(-1, keepdims=True)
        inner = np.cumsum(shares, -1)[..., :-1]
        ends = np.broadcast_to([first, last], (*logits.shape[:-1], 2))
        return np.concatenate([ends[..., :1], first + (last - first) * inner, ends[..., 1:]], -1)

    def bound_and_gradient(logits: np.ndarray, smoothing: float) -> tuple[float, np.ndarray]:
        moves = _DIFFERENCE * np.eye(len(logits))
        values = dmn_bound(lam_of(logits + np.concatenate([moves, -moves, 0 * moves[:1]])), smoothing)
        ahead, behind = np.split(values[:-1], 2)
        return float(values[-1]), (ahead - behind) / (2 * _DIFFERENCE)

    found = []
    for start in starts:
        gaps = np.maximum(np.diff(start) - _LEAST_SHARE * (last - first), 1e-6)
        logits = np.log(gaps[:-1] / gaps[-1])
        for smoothing in _SMOOTHING if len(logits) else ():
            logits = optimize.minimize(bound_and_gradient, logits, (smoothing,), method="BFGS", jac=True).x
        found.append(lam_of(logits))
    return found[int(np.argmin(dmn_bound(np.stack(found))))]


def dmn_bound(lam: Float[np.ndarray, "*s points"], smoothing: float = 0.0) -> Float[np.ndarray, "*s"]:
    """The bound that `dmn` minimises.

    A step from lam_s integrates e^lam times the polynomial through the last 3 predictions (2 or 1 at both ends), which
    weighs the error of each by a number. The errors of the first three steps and of the last are taken as independent,
    and add up as squares; for the other steps, a prediction's weights are added before their absolute value is taken.

    Args:
        lam: half-log-SNRs, in double precision.
        smoothing: e in sqrt(w^2 + e^2), instead of the absolute value.
    """
    n, h = lam.shape[-1] - 1, np.diff(lam)
    order = np.minimum(np.minimum(np.arange(n) + 1, n - np.arange(n)), 3)
    a = _shifted(h, 1, 1.0)  # how far back the second-to-last and third-to-last predictions are
    b = a + _shifted(h, 2, 1.0)
    m0 = np.expm1(h)  # of e^u u^k over the step
    m1 = np.exp(h) * h - m0
    m2 = np.exp(h) * h**2 - 2 * m1
    none = np.zeros_like(h)
    by_order = [
        (m0, none, none),
        (m0 + m1 / a, -m1 / a, none),
        (m0 + (m2 + (a + b) * m1) / (a * b), -(m2 + b * m1) / (a * (b - a)), (m2 + a * m1) / (b * (b - a))),
    ]
    error = np.exp(-lam) / np.sqrt(1 + np.exp(2 * lam))  # sigma^2 / alpha
    alone = (np.arange(n) < _ALONE) | (np.arange(n) == n - 1)
    squares, total = none, none
    for k in range(3):
        weight = np.select([order == i + 1 for i in range(3)], [one[k] for one in by_order])
        weight = weight * np.exp(lam[..., :-1]) * _shifted(error[..., :-1], k, 0.0)
        squares, total = squares + weight**2, total + _shifted(np.where(alone, 0, weight), -k, 0.0)
    return np.asarray(np.sqrt(squares)[..., alone].sum(-1) + np.sqrt(total**2 + smoothing**2).sum(-1))


def _shifted(values: Float[np.ndarray, "*s n"], k: int, filled: float) -> Float[np.ndarray, "*s n"]:
    """The values k places later (earlier, if k is negative) along the last axis."""
    places = np.arange(values.shape[-1]) - k
    inside = (places >= 0) & (places < values.shape[-1])
    return np.where(inside, np.take(values, places, -1, mode="clip"), filled)


def gits(schedule: NoiseSchedule, n: int, probe: Probe) -> Float[Array, "{n}+1"]:
    """The points of an accurate trajectory between which Euler steps deviate the least.

    The cost of a step from a point of the trajectory is how much further from the line that joins the trajectory's ends
    it leads than the trajectory itself; costs are averaged over the probe's states, and c_1 + 1.15 (c_2 + 1.15 (c_3 +
    ...)) is minimised.

    Reference: Chen et al., arXiv:2405.11326, whose coefficient, cost, teacher (iPNDM-4, 60 steps) and grid of
    candidates (edm) these are.
    """
    path = trajectory(schedule, probe, n)
    return path.t[jnp.asarray(cheapest(np.asarray(_gits_costs(path), np.float64), n, _GITS_COEFFICIENT))]


def optimal_steps(schedule: NoiseSchedule, n: int, probe: Probe) -> Float[Array, "{n}+1"]:
    """The points of an accurate trajectory that Euler's own trajectory comes closest to.

    For each of the probe's states and each point, the state after k steps is the one that comes nearest to the
    trajectory there, among those that come from a point where k - 1 steps led; the path that ends at the last point is
    traced back. Steps are the medians over the states. n times 60 network calls for each state.

    Reference: Pei et al., arXiv:2503.21774. Differs from the published code: the trajectory and the candidates are the
    same as in `gits`, so that the result does not depend on how a model measures time; always n steps, never fewer.
    """
    path = trajectory(schedule, probe, n)
    choices = np.asarray(_optimal_choices(probe, schedule.alpha(path.t), path, n))
    each = np.arange(choices.shape[2])
    steps = [np.full(len(each), len(path.t) - 1)]
    for choice in choices[::-1]:
        steps.append(choice[steps[-1], each])
    lower, upper = (np.sort(steps, 1)[:, i] for i in ((len(each) - 1) // 2, len(each) // 2))
    return path.t[jnp.asarray((lower + upper) // 2)[::-1]]


# Each gives n + 1 times; the ones in OF_MODEL call the network.
BASELINES = {"dmn": dmn, "gits": gits, "oss": optimal_steps}
OF_MODEL = ("gits", "oss")


def trajectory(schedule: NoiseSchedule, probe: Probe, n: int) -> Trajectory:
    """The probe's trajectory by iPNDM-4 on the edm grid, with 60 steps, or 4 n where that is more.

    Raises: see `baseline`.
    """
    steps = max(_TEACHER_STEPS, 4 * n)
    path = _trajectory(probe, schedule, grid("edm", schedule, steps), Solver("ipndm", steps))
    check_finite(jnp.moveaxis(path.eps, 1, 0), "the model's predictions")
    gone, size = jnp.abs(path.y[-1] - path.y[0]).max(), jnp.abs(path.y[0]).max()
    if gone <= 1e-6 * size:
        raise ValueError(f"the model predicts no noise: its states move by {gone:.1e} of {size:.1e}, which is rounding")
    return path


def cheapest(cost: Float[np.ndarray, "points points"], n: int, coefficient: float) -> Int[np.ndarray, "{n}+1"]:
    """The path of n steps from the first point to the last with the least c_1 + b (c_2 + b (c_3 + ...)).

    Args:
        cost: of a step from i to j; infinite unless i < j.
        n: steps.
        coefficient: b.
    """
    value, choices = cost[:, -1], []
    for _ in range(n - 1):
        total = cost + coefficient * value[None]
        value = total.min(1)
        choices.append(total.argmin(1))
    path = [0]
    for choice in choices[::-1]:
        path.append(choice[path[-1]])
    return np.array([*path, len(cost) - 1])


@partial(jax.jit, static_argnames="solver")
def _trajectory(probe: Probe, schedule: NoiseSchedule, t: Array, solver: Solver) -> Trajectory:
    table = make_table(schedule, t, solver=solver)

    def step(state: PyTree, row: PyTree) -> tuple[PyTree, tuple[Array, Array]]:
        eps = probe.eps(state.x, row.t)
        return advanced(state, row, eps, add), (state.x, eps)

    last, (x, eps) = jax.lax.scan(step, begun(table, probe.x_T), table)
    x = jnp.concatenate([x, last.x[None]])
    return Trajectory(t, jnp.exp(-schedule.lam(t)), x / _like(schedule.alpha(t), x), eps)


@jax.jit
def _gits_costs(path: Trajectory) -> Float[Array, "points points"]:
    y, eps = (values.reshape(*values.shape[:2], -1) for values in (path.y, path.eps))
    end, line = y[-1], y[-1] - y[0]
    line = line / jnp.linalg.norm(line, axis=-1, keepdims=True)

    def deviation(y: Array) -> Float[Array, "points batch"]:
        """Distance from the line that joins the ends."""
        rest = end[None] - y
        return jnp.linalg.norm(rest - (rest * line[None]).sum(-1, keepdims=True) * line[None], axis=-1)

    own = deviation(y)

    def from_point(i: Array) -> Float[Array, "points"]:
        stepped = y[i][None] + (path.s - path.s[i])[:, None, None] * eps[i][None]
        return jnp.where(jnp.arange(len(y)) > i, (deviation(stepped) - own).mean(1), jnp.inf)

    rows = jax.lax.map(from_point, jnp.arange(len(eps)))
    return jnp.concatenate([rows, jnp.full((1, len(y)), jnp.inf)])


@partial(jax.jit, static_argnames="n")
def _optimal_choices(
    probe: Probe, alpha: Float[Array, "points"], path: Trajectory, n: int
) -> Int[Array, "{n} points batch"]:
    """The point from which each point is reached at each step, for each of the states."""
    points = jnp.arange(len(path.t))

    def step(y: Array, k: Array) -> tuple[Array, Array]:
        x = y[:-1] * _like(alpha[:-1], y)
        eps = jax.lax.map(lambda at: probe.eps(*at), (x, path.t[:-1]))

        def costs(i: Array) -> Float[Array, "points batch"]:
            stepped = y[i][None] + _like(path.s - path.s[i], y) * eps[i][None]
            far = ((stepped - path.y) ** 2).reshape(*y.shape[:2], -1).mean(-1)
            # Before the first step all are at the first point; a point cannot be reached in more steps than points.
            there = (points > i) & jnp.where(k == 0, i == 0, i >= k)
            return jnp.where(there[:, None], far, jnp.inf)

        chosen = jax.lax.map(costs, points[:-1]).argmin(0)
        each = jnp.arange(y.shape[1])[None]
        moved = path.s[:, None] - path.s[chosen]
        return y[chosen, each] + moved.reshape(*moved.shape, *(1,) * (y.ndim - 2)) * eps[chosen, each], chosen

    return jax.lax.scan(step, jnp.broadcast_to(path.y[:1], path.y.shape), jnp.arange(n))[1]


def _like(values: Array, x: Array) -> Array:
    """Values of the first axis, with as many axes as x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))
