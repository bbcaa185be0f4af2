"""What holds for every parametrisation: inverse, gradients, projection. A new one is a new row."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from noise_schedules import SCHEDULES

from ld3_jax.grids import GRIDS
from ld3_jax.learning import ByPart, Gaps, WithCoefficients, on_grid
from ld3_jax.learning.parametrisation import Parametrisation
from ld3_jax.poses import PoseNoise
from ld3_jax.schedules import NoiseSchedule
from ld3_jax.solvers import Solver, expand

N = 6


class Row(NamedTuple):
    parametrisation: Parametrisation
    schedule: NoiseSchedule
    solver: Solver = Solver("ddim", N)

    def numbers(self):
        """A start with times that are not a standard grid, and with changed coefficients; none is at its bound."""
        start = on_grid("logsnr", self.schedule, self.solver)
        numbers = self.parametrisation.init(start, self.schedule, self.solver)
        far = self.parametrisation.project(_moved(numbers, 0.3), self.schedule)
        return jax.tree.map(lambda one, other: (one + other) / 2, numbers, far)

    def discretization(self, numbers):
        return self.parametrisation.discretization(numbers, self.schedule, self.solver)


def _moved(numbers, size):
    flat, unravel = ravel_pytree(numbers)
    return unravel(flat + size * jnp.cos(1.0 + jnp.arange(flat.size)))


_VP = SCHEDULES["VPLinear"]
ROWS = {
    **{f"gaps_lambda_{name}": Row(Gaps("lambda"), schedule) for name, schedule in SCHEDULES.items()},
    **{f"gaps_t_{name}": Row(Gaps("t"), schedule) for name, schedule in SCHEDULES.items()},
    "gaps_frozen": Row(Gaps(frozen=("shifts",)), _VP),
    "coefficients": Row(WithCoefficients(), _VP, Solver("ipndm", N)),
    "coefficients_of_a_corrector": Row(WithCoefficients(Gaps("t"), history=2), _VP, Solver("unipc", N)),
    "coefficients_consistent": Row(WithCoefficients(consistent=True), _VP, Solver("ipndm", N)),
    "by_part": Row(ByPart(WithCoefficients()), PoseNoise(), Solver("euler", N)),
    "by_part_of_one": Row(ByPart(), _VP),
}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@every_row
def test_init_and_discretization_are_inverse(row, float64):
    found = row.discretization(row.numbers())
    numbers = row.parametrisation.init(found, row.schedule, row.solver)
    again = row.discretization(numbers)
    chex.assert_trees_all_close(again, found, rtol=1e-10, atol=1e-14)
    chex.assert_trees_all_close(
        row.parametrisation.init(again, row.schedule, row.solver), numbers, rtol=1e-7, atol=1e-9
    )


@every_row
def test_times_descend_between_exact_ends(row, float64):
    found = row.discretization(row.numbers())
    for i, part in enumerate(row.schedule.parts):
        t, t_c, _ = found.of_part(i)
        assert t.shape == t_c.shape == (row.solver.n_steps + 1,)
        for times in (t, t_c):
            assert np.all(np.diff(times) < 0)
            np.testing.assert_array_equal(times[np.array([0, -1])], [part.t_max, part.t_min])


@every_row
def test_gradients_equal_finite_differences(row, float64):
    numbers = row.numbers()
    flat, unravel = ravel_pytree(numbers)

    def total(flat):
        found, _ = ravel_pytree(row.discretization(unravel(flat)))
        return jnp.vdot(jnp.cos(jnp.arange(found.size)), found)

    @jax.jit
    def gradient_and_differences(flat):
        steps = 1e-5 * jnp.eye(flat.size)
        up, down = (jax.lax.map(total, flat[None] + sign * steps) for sign in (1, -1))
        return jax.grad(total)(flat), (up - down) / 2e-5

    gradient, differences = map(unravel, gradient_and_differences(flat))
    for name, group in gradient.items():
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(group))
        chex.assert_trees_all_close(group, differences[name], rtol=1e-6, atol=1e-6 * largest)
    moving = (np.abs(slope).min() > 0 for slope in jax.tree.leaves(gradient))
    learned = (np.all(mask) for mask in jax.tree.leaves(row.parametrisation.learned(numbers)))
    assert all(moves for moves, all_learned in zip(moving, learned, strict=True) if all_learned)


@every_row
def test_project_is_idempotent_and_changes_no_times(row, float64):
    far = _moved(row.numbers(), 5.0)
    once = row.parametrisation.project(far, row.schedule)
    assert not np.array_equal(*(ravel_pytree(numbers)[0] for numbers in (once, far)))
    chex.assert_trees_all_equal(row.parametrisation.project(once, row.schedule), once)
    chex.assert_trees_all_equal(row.discretization(once), row.discretization(far))


@every_row
def test_it_is_a_static_value_with_masks_and_rates_by_group(row, float64):
    assert isinstance(row.parametrisation, Parametrisation)
    assert not jax.tree.leaves(row.parametrisation)
    assert len({row.parametrisation, type(row.parametrisation)(**vars(row.parametrisation))}) == 1
    numbers = row.numbers()
    learned = row.parametrisation.learned(numbers)
    chex.assert_trees_all_equal_shapes(learned, numbers)
    moving = {name for name, group in learned.items() if any(np.any(leaf) for leaf in jax.tree.leaves(group))}
    assert set(row.parametrisation.groups(row.solver)) == moving


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.schedule is _VP])
def test_every_start_on_a_grid_can_be_learned_from(name, float64):
    row = ROWS[name]
    for grid in GRIDS:
        starts = row.parametrisation.starts(grid, row.schedule, row.solver)
        assert next(iter(starts)) == grid
        for name, start in starts.items():
            assert name.split()[0] == grid
            found = row.discretization(row.parametrisation.init(start, row.schedule, row.solver))
            states, again = (expand(one.table(row.schedule, row.solver)) for one in (start, found))
            chex.assert_trees_all_close(again, states, rtol=1e-6, atol=1e-9)
