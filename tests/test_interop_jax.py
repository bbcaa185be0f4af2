"""The adapters for JAX programs in docs/guides/other-programs.md, as they stand there.

Where a program is not installed, and the tests require none, a stand-in of its documented contract is in its place:
which arguments it passes, in which order, and what it does with what comes back. With the real ones on the path the
same tests run against them.
"""

import importlib
import itertools
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from learned_anything import moved

from ld3_jax import to_noise
from ld3_jax.solvers import Solver

Z = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
KINDS = {"data": "x0", "noise": "epsilon"}


class StepInfo(NamedTuple):
    step: Any
    time: Any
    rng: Any


@jax.tree_util.register_dataclass
@dataclass
class DiffusionStep:
    xt: Any
    step_info: Any
    aux: Any


@pytest.fixture
def adapters(monkeypatch):
    """The code blocks of the section that are marked py, run one after the other."""
    name = "hackable_diffusion.lib.sampling.base"
    try:
        importlib.import_module(name)
    except ImportError:
        stand_in = types.SimpleNamespace(StepInfo=StepInfo, DiffusionStep=DiffusionStep)
        for part in (name.rsplit(".", i)[0] for i in range(4)):
            monkeypatch.setitem(sys.modules, part, stand_in if part == name else types.ModuleType(part))
    section = Path("docs/guides/other-programs.md").read_text().split("## JAX programs")[1].split("\n## ")[0]
    names = {"__name__": __name__}
    for block in re.findall(r"```py\n(.*?)```", section, re.DOTALL):
        exec(block, names)
    return types.SimpleNamespace(**names)


def network(x, t):
    return jnp.tanh(x * (1.5 - t / (1 + t))) + 0.3 * jnp.cos(3 * x + 5 * t / (1 + t))


def assert_close(given, expected):
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


class Sigma:
    def __call__(self, t):
        return 100 * jnp.tan(1.5 * t) / np.tan(1.5)

    def inverse(self, sigma):
        return jnp.arctan(sigma * np.tan(1.5) / 100) / 1.5


class Scheme(NamedTuple):
    """A scheme of swirl-dynamics: x_t = s (x_0 + sigma eps)."""

    scale: Any
    sigma: Any


SIGMA = Sigma()
SCHEMES = {"VE": Scheme(jnp.ones_like, SIGMA), "VP": Scheme(lambda t: 1 / jnp.sqrt(1 + SIGMA(t) ** 2), SIGMA)}


def ode_sampler(scheme, denoise_fn, tspan, integrator, noise, *, apply_denoise_at_end):
    """OdeSampler.generate: an integrator gets right-hand side, start, times and params, and gives a path."""

    def dynamics(x, t, params):
        assert t.ndim == 0
        rate_sigma, rate_scale = (jax.grad(lambda t, f=f: jnp.log(f(t)))(t) for f in (scheme.sigma, scheme.scale))
        scale = scheme.scale(t)
        data = denoise_fn(x / scale, scheme.sigma(t), params["cond"])
        return (rate_sigma + rate_scale) * x - rate_sigma * scale * data

    start = noise * scheme.sigma(tspan[0]) * scheme.scale(tspan[0])
    x = integrator(dynamics, start, tspan, {"cond": None})[-1]
    return denoise_fn(x / scheme.scale(tspan[-1]), scheme.sigma(tspan[-1]), None) if apply_denoise_at_end else x


def euler(dynamics, x, tspan, params):
    path = [x]
    for t, end in itertools.pairwise(tspan):
        path.append(path[-1] + (end - t) * dynamics(path[-1], t, params))
    return jnp.stack(path)


@pytest.mark.parametrize(
    ("kind", "solver"),
    [("VP", Solver("dpmpp", 4, 2)), ("VE", Solver("euler", 4)), ("VP", Solver("euler", 4, last_sigma=0.0))],
    ids=str,
)
def test_an_ode_sampler_runs_what_was_learned(adapters, kind, solver):
    scheme = SCHEMES[kind]
    schedule = adapters.OfScheme(scheme)

    def denoise_fn(x, sigma, cond):
        return x / (1 + sigma) + 0.1 * network(x / (1 + sigma), sigma)

    @Partial
    def data(x, t, cond):
        return denoise_fn(x / scheme.scale(t), scheme.sigma(t), cond)

    alone = {"network_times": 0, "coefficients": 0} if solver.name == "euler" else {}
    learned = moved(schedule, solver, **alone)
    given = ode_sampler(
        scheme,
        denoise_fn,
        learned.t[:-1] if solver.to_zero else learned.t,
        euler if alone else adapters.integrator(learned, schedule),
        jnp.asarray(Z),
        apply_denoise_at_end=solver.to_zero,
    )
    assert_close(
        given, learned.sample(to_noise(data, schedule, "data"), schedule, jnp.asarray(schedule.prior_scale * Z))
    )


class Cosine:
    """A GaussianSchedule of hackable-diffusion."""

    def alpha(self, time):
        return jnp.cos(0.5 * jnp.pi * time)

    def sigma(self, time):
        return jnp.sin(0.5 * jnp.pi * time)

    def inverse_logsnr(self, logsnr):
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-0.5 * logsnr))


COSINE = Cosine()


class Process:
    """A GaussianProcess of hackable-diffusion, for a network that predicts the noise."""

    schedule = COSINE

    def convert_predictions(self, *, prediction, xt, time):
        eps = prediction["epsilon"]
        return {"epsilon": eps, "x0": (xt - self.schedule.sigma(time) * eps) / self.schedule.alpha(time)}


def diffusion_sampler(time_schedule, stepper, num_steps, noise):
    """DiffusionSampler: the first info to initialize, the inner ones to update in a scan, the last to finalize."""

    def call(step):
        return {"epsilon": network(step.xt, step.step_info.time)}

    def update(step, info):
        return stepper.update(call(step), step, info), None

    infos = time_schedule.all_step_infos(jax.random.key(0), num_steps, noise)
    first, inner, last = (jax.tree.map(lambda leaf, i=i: leaf[i], infos) for i in (0, slice(1, -1), -1))
    step, _ = jax.lax.scan(update, stepper.initialize(noise, first), inner)
    return stepper.finalize(call(step), step, last).xt


@pytest.mark.parametrize("solver", [Solver("unipc", 4, 2), Solver("ipndm", 4, last_sigma=0.0)], ids=str)
def test_a_sampler_that_keeps_the_loop_runs_what_was_learned(adapters, solver):
    schedule = adapters.OfCorruption(COSINE)
    learned = moved(schedule, solver)
    table = learned.table(schedule)
    times = adapters.LearnedTimes(jnp.append(table.t, schedule.t_min))
    step = adapters.LearnedStep(table, KINDS[solver.prediction], Process())
    given = diffusion_sampler(times, step, solver.nfe + 1, jnp.asarray(Z))
    assert_close(given, learned.sample(lambda x, t, cond: network(x, t), schedule, jnp.asarray(Z)))
