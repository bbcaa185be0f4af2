"""A run before any network call: its task without pairs, and how many calls it will make."""

from typing import TYPE_CHECKING, Any

from ld3_jax import candidates, learning
from ld3_jax.learning import Task
from ld3_jax.losses import Loss, l2

if TYPE_CHECKING:
    from experiments.run import Run


def first_numbers(run: "Run") -> Any:
    """The numbers at the start; on uniform times while the best grid is not known."""
    schedule, start = run.model.schedule, run.start
    first = "uniform" if isinstance(start, str) and start == "best" else start
    times = learning.on_grid(first, schedule, run.solver) if isinstance(first, str) else first
    return run.parametrisation.init(times, schedule, run.solver)


def task(run: "Run", loss: Loss = l2) -> Task:
    """The task without pairs."""
    student = learning.make_student(lambda x, t, cond: x, run.model.schedule, run.solver, loss)
    return Task(student, None, None, None, run.parametrisation, run.learner)


def calls(run: "Run") -> str:
    """The number of network calls and how long they take, in a line; "" if no call was timed."""
    data, of, each = run.config.data, run.learner, run.model.seconds
    if each is None:
        return ""
    pairs = run.teacher.solver.calls * (data.train + data.valid + data.test) + candidates.CALLS * run.candidates
    steps = of.steps * of.batch_size * of.calls(task(run), first_numbers(run))
    return (
        f"teacher: {pairs:,} network calls of about {each:.2g} s each, about {_time(pairs * each)}; "
        f"learning: {steps:,} or more, about {_time(steps * each)}"
    )


def _time(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min" if seconds > 90 else f"{seconds:.0f} s"
