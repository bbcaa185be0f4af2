"""Parametrisations, learners and losses of a user's own: what is wrong with one is told before learning."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ld3_jax import checkpoint, comparison, grids, learning, losses, pretrained, schedules, solvers
from ld3_jax.learning import ByPart, Discretization, Gaps, GaussNewton, Group, StepMetrics, WithCoefficients
from ld3_jax.learning.parametrisation import all_of
from ld3_jax.learning.task import move
from ld3_jax.losses import Loss
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

SCHEDULE, SOLVER, KEY = schedules.VPLinear(), Solver("ddim", 3), jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 16).reshape(8, 2)
SHORT = GaussNewton(steps=2, batch_size=4)


def task_of(parametrisation=Gaps(), learner=SHORT, loss=None):  # noqa: B008, frozen values
    student = learning.make_student(lambda x, t, cond: 0.5 * x, SCHEDULE, SOLVER, loss)
    return learning.make_task(student, Pairs(X, -0.5 * X), KEY, parametrisation, learner)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Power:
    def starts(self, grid, schedule, solver):
        return {grid: learning.on_grid(grid, schedule, solver)}

    def init(self, start, schedule, solver):
        return {"power": jnp.zeros(1)}

    def discretization(self, params, schedule, solver):
        u = jnp.linspace(0.0, 1.0, solver.n_steps + 1) ** jnp.exp(sum(map(jnp.sum, jax.tree.leaves(params))))
        t = grids.logsnr(schedule, u)
        return Discretization(t, t)

    def project(self, params, schedule):
        return jax.tree.map(lambda leaf: jnp.clip(leaf, -0.5, 0.5), params)

    def learned(self, params):
        return all_of(params, frozen=())

    def groups(self, solver):
        return {"power": Group(0.1)}


def changed(**methods):
    """`Power` with other methods."""
    return jax.tree_util.register_static(dataclass(frozen=True)(type("Changed", (Power,), methods)))()


def rising(self, params, schedule, solver):
    t = Power.discretization(self, params, schedule, solver).t[::-1]
    return Discretization(t, t)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"init": lambda *_: {"power": jnp.zeros(1, int)}}, "a dict of real floating-point arrays"),
        ({"init": lambda *_: [jnp.zeros(1)]}, "a dict of real floating-point arrays"),
        ({"init": lambda *_: {"power": jnp.zeros(1), "more": jnp.zeros(1)}}, r"\['more', 'power'\], got \['power'\]"),
        ({"groups": lambda *_: {"power": Group(0.1), "no": Group(0.1)}}, r"\['power'\], got \['no', 'power'\]"),
        ({"groups": lambda *_: {"power": 0.1}}, "groups must be a dict of Group"),
        ({"groups": lambda *_: {"power": Group(np.nan)}}, "rate of group 'power' must be a number, got nan"),
        ({"groups": lambda *_: {"power": Group(0.1, 0)}}, "largest of group 'power' must be greater than 0, got 0"),
        ({"learned": lambda *_: {"power": True}}, r"booleans shaped like the numbers .*, got {'power': True}"),
        ({"discretization": rising}, "t must descend, got"),
    ],
)
def test_a_parametrisation_that_learners_cannot_take_is_refused(methods, message):
    with pytest.raises(ValueError, match=message):
        learning.begin(task_of(changed(**methods)), "logsnr")


def test_a_rule_for_a_group_that_is_none_is_refused():
    rules = learning.by_group({"powr": optax.sgd(0.1)})
    learner = learning.GradientDescent(steps=2, batch_size=4, optimizer=rules)
    with pytest.raises(ValueError, match=r"by_group has rules for \['powr'\], the groups are \['power'\]"):
        learning.begin(task_of(Power(), learner), "logsnr")


def test_a_subclass_without_a_decorator_is_refused_for_it_would_equal_others():
    one = jax.tree_util.register_static(type("One", (Power,), {}))()
    with pytest.raises(ValueError, match=r"parametrisation must be .* decorated with @dataclass"):
        task_of(one)
    with pytest.raises(ValueError, match=r"learner must be .* decorated with @dataclass"):
        task_of(learner=type("Other", (GaussNewton,), {"steps": 3})())


@pytest.mark.parametrize("of", [lambda own: WithCoefficients(own), lambda own: WithCoefficients(ByPart(own))])
def test_the_times_of_ones_own_see_no_coefficients(of):
    parametrisation = of(changed())
    numbers = parametrisation.init(learning.on_grid("logsnr", SCHEDULE, SOLVER), SCHEDULE, SOLVER)
    far = jax.tree.map(lambda leaf: leaf + 0.7, numbers)
    projected = parametrisation.project(far, SCHEDULE)
    np.testing.assert_array_equal(projected["coefficients"].predict, far["coefficients"].predict)
    np.testing.assert_array_equal(projected["power"], 0.5 * jnp.ones_like(far["power"]))
    t = parametrisation.discretization(numbers | {"coefficients": far["coefficients"]}, SCHEDULE, SOLVER).t
    np.testing.assert_allclose(t, grids.grid("logsnr", SCHEDULE, SOLVER.n_steps), rtol=1e-5)


def test_a_plain_function_by_name_is_a_loss_and_a_wrong_entry_is_one_error(monkeypatch):
    ring = pretrained.load("ring")
    monkeypatch.setitem(losses.LOSSES, "own", lambda squared_error, targets: lambda x, y: jnp.abs(x - y).mean(1))
    monkeypatch.setitem(losses.LOSSES, "wrong", lambda squared_error: losses.l2)
    assert comparison.shape_of_loss("own", ring).residuals is None
    with pytest.raises(ValueError, match=r"LOSSES\['wrong'\] is called as make\(squared_error, targets\)"):
        comparison.shape_of_loss("wrong", ring)


def test_a_solver_whose_table_lacks_rows_is_refused(monkeypatch):
    def short(schedule, t, t_c, **_):
        return solvers.explicit(t_c[1:-1], jnp.ones(len(t) - 2), jnp.ones((len(t) - 2, 1)))

    monkeypatch.setitem(solvers.SOLVERS, "short", solvers.Family(short, "noise", (1,)))
    with pytest.raises(
        ValueError, match="the table of short of order 1, 3 calls must have a row for each network call"
    ):
        solvers.make_table(SCHEDULE, grids.grid("logsnr", SCHEDULE, 3), solver=Solver("short", 3))


@pytest.mark.parametrize("given", [(0.9, 0.5, 0.1), 0.5, ()])
def test_discrete_steps_that_are_not_those_of_the_noise_schedule_are_not_told_of(given):
    own = dataclass(frozen=True)(type("Own", (schedules.VPLinear,), {"alphas_cumprod": given}))()
    t = grids.grid("logsnr", own, 3)
    record = solvers.to_record(solvers.make_table(own, t, solver=SOLVER), own, t, SOLVER)
    assert record["train_steps"] is None
    assert record["betas"] is None


def test_a_learner_that_remembers_pythons_numbers_goes_on_from_its_checkpoint(tmp_path):
    def move(self, task, state, batch):
        return state.params, {"n": state.learner["n"] + 1}, StepMetrics(ZERO, ZERO, ZERO)

    methods = {"init": lambda *_: {"n": 0}, "move": move, "calls": lambda *_: 1}
    own = dataclass(frozen=True, kw_only=True)(type("Own", (learning.Learner,), methods))
    task = task_of(learner=own(steps=2, batch_size=4))
    start = learning.begin(task, "logsnr")
    reached, _ = next(learning.steps(task, start))
    checkpoint.save(tmp_path, 1, reached)
    assert int(checkpoint.restore(tmp_path, start).learner["n"]) == 1


ZERO = jnp.zeros(())


@pytest.mark.parametrize(
    "given",
    [
        lambda params: (params, ()),
        lambda params: (jax.tree.map(lambda leaf: leaf[None], params), (), StepMetrics(ZERO, ZERO, ZERO)),
        lambda params: (params, ZERO, StepMetrics(ZERO, ZERO, ZERO)),
        lambda params: (params, (), StepMetrics(jnp.zeros(4), ZERO, ZERO)),
        lambda params: (params, (), (ZERO, ZERO, ZERO)),
    ],
    ids=["two", "numbers", "memory", "loss", "tuple"],
)
def test_a_move_of_another_form_is_refused(given):
    methods = {"move": lambda self, task, state, batch: given(state.params), "calls": lambda *_: 1}
    own = dataclass(frozen=True, kw_only=True)(type("Own", (learning.Learner,), methods))
    task = task_of(learner=own(steps=2, batch_size=4))
    with pytest.raises(ValueError, match="move must give numbers, memory and figures of shapes"):
        move(task, learning.begin(task, "logsnr"))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Loss(lambda x, y: x - y), r"residuals must give a list of arrays, each \(2, size\), got"),
        (Loss(lambda x, y: [x[:, 0] - y[:, 0]]), "residuals must give a list of arrays"),
        (Loss(lambda x, y: [(x - y).mean(0)[None]]), "residuals must give a list of arrays"),
        (Loss(lambda x, y: []), "residuals must give a list of arrays"),
        (Loss(lambda x, y: [x - y], lambda s: 1e4 - s), "phi must give a number that increases with s"),
        (Loss(lambda x, y: [x - y], lambda s: jnp.stack([s, s])), "phi must give a number that increases with s"),
    ],
)
def test_a_loss_that_is_no_function_of_squares_is_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        task_of(loss=loss)
