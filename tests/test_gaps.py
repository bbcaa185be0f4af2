"""Gaps and shifts: inverse, bounds and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from noise_schedules import SCHEDULES

from ld3_jax.grids import GRIDS, grid
from ld3_jax.learning import Coefficients, Discretization, Gaps, on_grid
from ld3_jax.learning.gaps import SPACES
from ld3_jax.solvers import Solver

N = 6
SOLVER = Solver("ddim", N)
ENDS = np.array([0, -1])
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_space = pytest.mark.parametrize("space", sorted(SPACES))


def random_numbers(size=0.3):
    logits, shifts = jax.random.normal(jax.random.key(0), (2, N))
    return {"logits": logits, "shifts": size * shifts[1:]}


def points(found, schedule, space):
    """t and t_c in the coordinate of the space."""
    return (SPACES[space].of_t(schedule, times) for times in found[:2])


@every_schedule
@pytest.mark.parametrize("name", sorted(GRIDS))
@every_space
def test_discretization_inverts_init(name, schedule, space, float64):
    t = grid(name, schedule, N)
    on, _ = points((t, t), schedule, space)
    inner = 0.4 * np.abs(np.diff(on)).min() * np.cos(3.0 * np.arange(N - 1))
    t_c = SPACES[space].to_t(schedule, on.at[1:-1].add(inner)).at[ENDS].set(t[ENDS])
    numbers = Gaps(space).init(Discretization(t, t_c), schedule, SOLVER)
    again = Gaps(space).discretization(numbers, schedule, SOLVER)
    np.testing.assert_allclose(numbers["shifts"], inner, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(again.t, t, rtol=1e-10)
    np.testing.assert_allclose(again.t_c, t_c, rtol=1e-10)


@every_schedule
@every_space
def test_init_inverts_discretization_up_to_the_mean_of_the_logits(schedule, space, float64):
    gaps, numbers = Gaps(space), random_numbers()
    numbers["shifts"] = gaps.shift_bound(numbers, schedule) * jnp.sin(1.0 + jnp.arange(N - 1))
    again = gaps.init(gaps.discretization(numbers, schedule, SOLVER), schedule, SOLVER)
    np.testing.assert_allclose(again["logits"], numbers["logits"] - numbers["logits"].mean(), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(again["shifts"], numbers["shifts"], rtol=1e-7, atol=1e-9)


@every_schedule
@every_space
@pytest.mark.parametrize("max_shift", [0.0, 0.2, 0.5])
def test_shifts_are_bounded_by_the_smallest_gap_and_keep_the_order(schedule, space, max_shift, float64):
    found = Gaps(space, max_shift).discretization(random_numbers(size=1e3), schedule, SOLVER)
    on, on_c = points(found, schedule, space)
    bound = max_shift * np.abs(np.diff(on)).min()
    np.testing.assert_allclose(np.abs(on_c - on)[1:-1], bound, rtol=1e-6, atol=1e-11)
    np.testing.assert_array_equal(found.t[ENDS], found.t_c[ENDS])
    np.testing.assert_array_equal(found.t[ENDS], [schedule.t_max, schedule.t_min])
    assert np.all(np.diff(found.t) < 0)
    # Two shifts of half the smallest gap may meet, to rounding.
    assert np.all(np.diff(found.t_c) < 1e-12 * schedule.t_max)


@every_space
def test_equal_logits_still_allow_shifts(space):
    schedule, numbers = SCHEDULES["VPLinear"], {"logits": jnp.zeros(N), "shifts": jnp.full(N - 1, 0.01)}
    on, on_c = points(Gaps(space).discretization(numbers, schedule, SOLVER), schedule, space)
    np.testing.assert_allclose((on_c - on)[1:-1], 0.01, rtol=1e-3)


def test_the_bound_carries_no_gradient(float64):
    # Where the bound holds a shift, t_c follows t as if the bound were a constant.
    gaps, schedule, numbers = Gaps("t"), SCHEDULES["VPLinear"], random_numbers(size=1e3)
    of_t, of_t_c, _ = jax.jacobian(lambda numbers: gaps.discretization(numbers, schedule, SOLVER))(numbers)
    assert np.abs(of_t["logits"]).max() > 0.01
    np.testing.assert_allclose(of_t_c["logits"], of_t["logits"], rtol=1e-12)
    np.testing.assert_array_equal(of_t_c["shifts"], 0)
    bound = jax.grad(lambda numbers: Gaps().shift_bound(numbers, schedule))(numbers)
    np.testing.assert_array_equal(bound["logits"], 0)


@every_schedule
@every_space
def test_gradients_are_finite_in_float32(schedule, space):
    @jax.jit
    @jax.grad
    def gradient(numbers):
        found = Gaps(space).discretization(numbers, schedule, SOLVER)
        return found.t.sum() + found.t_c.sum()

    for numbers in (random_numbers(), {"logits": jnp.zeros(N), "shifts": jnp.zeros(N - 1)}):
        assert all(np.isfinite(leaf).all() for leaf in gradient(numbers).values())


def test_frozen_groups_are_not_learned_and_have_no_rate():
    gaps = Gaps(frozen=("shifts",))
    learned = gaps.learned(random_numbers())
    assert learned["logits"].all()
    assert not learned["shifts"].any()
    assert set(gaps.groups(SOLVER)) == {"logits"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"space": "sigma"}, r"space.*'lambda', 't'.*got 'sigma'"),
        ({"max_shift": -0.1}, r"max_shift.*-0.1"),
        ({"max_shift": float("nan")}, r"max_shift.*nan"),
        ({"frozen": ("coefficients",)}, r"'logits', 'shifts'.*got \('coefficients',\)"),
    ],
)
def test_a_bad_choice_is_refused_by_name(choice, message):
    with pytest.raises(ValueError, match=message):
        Gaps(**choice)


@pytest.mark.parametrize(
    "start", [Discretization(jnp.ones(N), jnp.ones(N)), Discretization(jnp.ones(N + 1), jnp.ones(N))]
)
def test_a_start_of_another_length_is_refused(start):
    with pytest.raises(ValueError, match=rf"has {N + 1} times, got shapes \({len(start.t)},\), \({N},\)"):
        Gaps().init(start, SCHEDULES["VPLinear"], SOLVER)


def test_a_start_with_coefficients_is_refused():
    schedule, changes = SCHEDULES["VPLinear"], Coefficients(jnp.zeros(N), jnp.zeros((N, 1)))
    start = on_grid("edm", schedule, SOLVER)._replace(coefficients=changes)
    with pytest.raises(ValueError, match="changed coefficients"):
        Gaps().init(start, schedule, SOLVER)
