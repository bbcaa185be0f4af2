"""Programs for accelerators: integration and learning lower for CUDA and TPUs, without calls back to Python."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import Partial

from ld3_jax import denoisers, grids, schedules, teacher
from ld3_jax.learning import (
    Gaps,
    GaussNewton,
    GradientDescent,
    LevenbergMarquardt,
    SoftSurrogate,
    WithCoefficients,
    begin,
    make_student,
    make_task,
)
from ld3_jax.learning.task import move
from ld3_jax.networks import gaussian
from ld3_jax.networks.layers import convolution
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Pairs

SCHEDULE = schedules.VPLinear()
_GAPS = Gaps()
KEY = jax.random.key(0)
AROUND = ((1, 1), (1, 1))


def _images(weights, x, t, cond):
    """Two convolutions, the second with a stride, and the first image size again."""
    hidden = jax.nn.silu(convolution(x, weights[0], padding=AROUND) + t)
    hidden = convolution(hidden, weights[1], (2, 2), AROUND)
    return x + jnp.repeat(jnp.repeat(hidden, 2, 1), 2, 2)


def _weights(key):
    return [jax.random.normal(key, shape) / math.prod(shape[:3]) for shape in [(3, 3, 1, 4), (3, 3, 4, 1)]]


MODELS = {
    "ring": (gaussian.noise_model(gaussian.ring(), SCHEDULE), (2,)),
    "images": (denoisers.to_noise(Partial(_images, _weights(KEY)), SCHEDULE, "data"), (8, 8, 1)),
}


def _teacher(model, x_T):
    t = grids.grid("logsnr", SCHEDULE, 10)
    return teacher._integrate, (Solver("unipc", 10), t, model, SCHEDULE, (x_T, None))


def _task(model, x_T, learner, parametrisation=_GAPS):
    student = make_student(model, SCHEDULE, Solver("dpmpp", 3))
    task = make_task(student, Pairs(x_T, x_T), KEY, parametrisation, learner)
    return task, begin(task, "logsnr")


PROGRAMS = {
    "teacher": _teacher,
    "gradient": lambda *given: (move, _task(*given, GradientDescent(batch_size=2, surrogate=SoftSurrogate()))),
    "averaged": lambda *given: (move, _task(*given, GaussNewton(batch_size=2), WithCoefficients())),
    "damped": lambda *given: (move, _task(*given, LevenbergMarquardt(batch_size=2))),
}


@pytest.fixture(scope="module", params=[(program, model) for program in PROGRAMS for model in MODELS], ids="-".join)
def traced(request):
    program, name = request.param
    model, shape = MODELS[name]
    function, arguments = PROGRAMS[program](model, jax.random.normal(KEY, (4, *shape)))
    return function.trace(*arguments)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_program_lowers_for_accelerators_without_calls_to_python(platform, traced):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" in text
    assert "callback" not in text


def test_a_call_to_python_would_be_seen():
    with_call = jax.jit(lambda x: jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x))
    assert "callback" in with_call.lower(jnp.zeros(2)).as_text()
