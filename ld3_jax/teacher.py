"""The teacher: pairs of initial noise and the sample that an accurate solver makes of it, made once, in batches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ld3_jax import candidates, solvers
from ld3_jax.batches import check_finite, count_of, divide, equal_batches, finite, replicate, to_host
from ld3_jax.denoisers import Model, as_pytree
from ld3_jax.grids import grid
from ld3_jax.ranges import COUNT, FLAG, FUNCTION, PATH, STATES, TEXT, check, entrance, instance, settle
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver


class Pairs(NamedTuple):
    """Initial states and the teacher's samples, with a leading axis of samples throughout."""

    x_T: PyTree  # scaled by the prior
    x_0: PyTree
    cond: PyTree = None
    weight: Float[Array, "n"] | None = None  # of each pair in means, with mean 1; None: all equal


_ACCURATE = Solver("unipc", 40)


@dataclass(frozen=True)
class Teacher:
    """How the pairs are made.

    Attributes:
        solver: the accurate solver, with its number of network calls.
        grid: the standard grid that it runs on.
        batch_size: the most samples to integrate at a time; the batches are made equal.
        cache: a folder in which to keep the pairs. Existing pairs are not made again; a damaged file is named in a
            warning and made again. Pairs of other models, solvers, grids or noise have their own subfolders.
        identity: a name of the model, under which its pairs are kept. It stands for what JAX does not trace: a model
            that calls back to Python or runs native code has its pairs cached only if it has a name.
        drop_not_finite: leave out pairs whose sample is not finite, instead of refusing them all.

    Raises:
        ValueError: if batch_size is less than 1 or the solver has no number of network calls.
    """

    solver: Solver = _ACCURATE
    grid: str = "logsnr"
    batch_size: int = 25
    cache: Path | None = None
    identity: str = ""
    drop_not_finite: bool = False

    def __post_init__(self) -> None:
        of = {"solver": instance(Solver), "grid": TEXT, "cache": PATH.or_none(), "identity": TEXT}
        settle(self, {**of, "batch_size": COUNT, "drop_not_finite": FLAG})
        if self.solver.nfe is None:
            raise ValueError(f"a teacher's solver needs its number of network calls, nfe, got {self.solver!r}")


_TEACHER = Teacher()


@entrance(schedule=instance(NoiseSchedule), x_T=STATES, teacher=instance(Teacher), choose=COUNT.or_none())
@entrance(on_batch=FUNCTION)
def make_pairs(
    model: Model,
    schedule: NoiseSchedule,
    x_T: PyTree,
    cond: PyTree = None,
    *,
    teacher: Teacher = _TEACHER,
    choose: int | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Pairs:
    """Integrate initial noise with the teacher.

    Args:
        model: model(x, t, cond) -> noise prediction; a pytree with its weights as leaves, or a function without any.
        schedule: its noise schedule.
        x_T: (n, ...) initial states, scaled by `schedule.prior_scale`; an array or a pytree of arrays.
        cond: n conditions, or None.
        teacher: solver, grid, batches, cache.
        choose: how many of the n to make pairs of: mostly those that few calls get wrong, with weights. This takes 15
            network calls for each of the n; see `candidates`. None: all.
        on_batch: called as on_batch(batches done, batches in all).

    Returns:
        The pairs, on the device, and on each device of the mesh in context.

    Raises:
        ValueError: if there is no sample, the leading axes differ, the grid is unknown, or `choose` is not from 1 to n.
        FloatingPointError: if a sample is not finite; it says which. With `drop_not_finite`, if none is finite.
        OSError: if a batch cannot be written to the disk; earlier batches stay.
    """
    n, model = count_of((x_T, cond), "x_T and cond"), replicate(as_pytree(model))
    if n < 1:
        raise ValueError("there must be at least 1 sample, got x_T of length 0")
    if choose is not None:
        check({"choose": choose}, {"choose": COUNT._replace(most=n)})
        schedule.space.require_vectors("choosing among candidates")
    x_T = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32)), x_T)
    t, weight, inputs = grid(teacher.grid, schedule, teacher.solver.n_steps), None, (x_T, cond)
    tried = 0 if choose is None else equal_batches(n, teacher.batch_size)[0]
    total = tried + equal_batches(choose or n, teacher.batch_size)[0]
    if choose is not None:
        last = candidates.SOLVERS[-1]
        times = grid(candidates.GRID, schedule, last.n_steps)
        judging = _Work("difference", last, times, candidates.differences, lambda batch: jnp.zeros(count_of(batch)))
        difference = _in_batches(judging, model, schedule, inputs, teacher, lambda i: on_batch(i, total))
        indices, weight = candidates.choose(to_host(difference), choose)
        inputs = jax.tree.map(lambda leaf: leaf[indices], inputs)
    integrating = _Work("batch", teacher.solver, t, partial(_integrate, teacher.solver, t), lambda batch: batch[0])
    x_0 = _in_batches(integrating, model, schedule, inputs, teacher, lambda i: on_batch(tried + i, total))
    pairs = Pairs(inputs[0], x_0, inputs[1], None if weight is None else jnp.asarray(weight, jnp.float32))
    good = finite(x_0)
    if teacher.drop_not_finite and good.any() and not good.all():
        return replicate(jax.tree.map(lambda leaf: leaf[good], pairs))
    check_finite(x_0, "the teacher's samples", "; Teacher(drop_not_finite=True) leaves them out")
    return replicate(pairs)


class _Work(NamedTuple):
    """What is computed from batches, and the key of the cache."""

    name: str
    solver: Solver
    t: Array
    compute: Callable[..., PyTree]  # compute(model, schedule, batch)
    like: Callable[[PyTree], PyTree]  # from a batch to arrays shaped like the result


def _in_batches(
    work: _Work,
    model: Model,
    schedule: NoiseSchedule,
    inputs: tuple[PyTree, PyTree],
    teacher: Teacher,
    on_batch: Callable[[int], None],
) -> PyTree:
    """The result for all inputs; each batch comes from the cache, or is computed and cached now."""
    from ld3_jax import teacher_cache  # it loads jax.extend, which takes a tenth of JAX's time

    count = count_of(inputs)
    n_batches, size = equal_batches(count, teacher.batch_size)
    folder, outputs = None, []
    if teacher.cache is not None:
        how = (work.t, work.solver, size, teacher.identity)
        folder, model = teacher_cache.folder(teacher.cache, model, schedule, inputs, *how)
    for i in range(n_batches):
        indices = jnp.arange(i * size, (i + 1) * size) % count  # the last batch is filled up with the first samples
        batch = jax.tree.map(lambda leaf, indices=indices: leaf[indices], inputs)
        path = folder / f"{work.name}_{i:05d}.npz" if folder else None
        made = teacher_cache.read(path, work.like(batch)) if path else None
        if made is None:
            made = work.compute(model, schedule, divide(batch))
            if path:
                teacher_cache.write(path, made)
        outputs.append(made)
        on_batch(i + 1)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *outputs)


@partial(jax.jit, static_argnums=(1, 2))
def draw_noise(key: PRNGKeyArray, count: int, shape: tuple[int, ...], first: int | Int[Array, ""] = 0) -> Array:
    """Standard normal noise z (count, *shape) of the samples from number `first` on.

    Each sample has its own key, `fold_in(key, number)`, so it does not depend on what else is drawn.
    """
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(first + jnp.arange(count))


@jax.jit
def _integrate(
    solver: Solver, t: Array, model: Model, schedule: NoiseSchedule, inputs: tuple[PyTree, PyTree]
) -> PyTree:
    x_T, cond = inputs
    return solvers.sample(model, schedule, x_T, t, solver=solver, cond=cond)
