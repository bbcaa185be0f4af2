"""Learning: parametrisations, learners, and the learned schedule."""

from ld3_jax.learning.bound import Bound, kl_bound
from ld3_jax.learning.by_part import ByPart
from ld3_jax.learning.coefficients import WithCoefficients
from ld3_jax.learning.discretization import Coefficients, Discretization, on_grid
from ld3_jax.learning.fit import Ended, begin, describe, fit, learn, make_task, steps
from ld3_jax.learning.gaps import Gaps
from ld3_jax.learning.gauss_newton import GaussNewton
from ld3_jax.learning.gradient_descent import GradientDescent, SoftSurrogate
from ld3_jax.learning.interpolation import interpolate
from ld3_jax.learning.learned import Learned, load, load_several
from ld3_jax.learning.levenberg_marquardt import LevenbergMarquardt
from ld3_jax.learning.optimizers import by_group
from ld3_jax.learning.parametrisation import Group
from ld3_jax.learning.patience import Patience
from ld3_jax.learning.ranking import Start, rank
from ld3_jax.learning.student import Student, distances, make_student
from ld3_jax.learning.task import Learner, StepMetrics, Task, TrainState, validation_loss

__all__ = [
    "Bound",
    "ByPart",
    "Coefficients",
    "Discretization",
    "Ended",
    "Gaps",
    "GaussNewton",
    "GradientDescent",
    "Group",
    "Learned",
    "Learner",
    "LevenbergMarquardt",
    "Patience",
    "SoftSurrogate",
    "Start",
    "StepMetrics",
    "Student",
    "Task",
    "TrainState",
    "WithCoefficients",
    "begin",
    "by_group",
    "describe",
    "distances",
    "fit",
    "interpolate",
    "kl_bound",
    "learn",
    "load",
    "load_several",
    "make_student",
    "make_task",
    "on_grid",
    "rank",
    "steps",
    "validation_loss",
]
