"""PyTorch modules as networks of JAX."""

import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_galaxy import GalaxyModule
from torch_modules import MODULES, PlainCNN, build

import ld3_jax
from ld3_jax import denoisers, interop, learning, pretrained
from ld3_jax.schedules import RectifiedFlow
from ld3_jax.teacher import Teacher, draw_noise

_SCHEDULE = RectifiedFlow()


pytestmark = pytest.mark.usefixtures("one_thread")


def network_of(name, module=None, **options):
    entry = MODULES[name]
    module = build(name) if module is None else module
    return interop.pytorch_network(module, entry.shape, entry.cond, call=entry.call(module), name=name, **options)


def batch_of(name, batch=3, dtype=np.float32):
    entry, random = MODULES[name], np.random.default_rng(2)
    x, dx = random.standard_normal((2, batch, *entry.shape)).astype(dtype)

    def repeated(leaf):
        leaf = np.asarray(leaf)
        return np.repeat(leaf[None], batch, 0).astype(dtype if leaf.dtype.kind == "f" else leaf.dtype)

    return x, dx, jax.tree.map(repeated, entry.cond)


def in_torch(name, module, x, t, cond):
    with torch.no_grad():
        return MODULES[name].call(module)(torch.tensor(x), torch.tensor(t), jax.tree.map(torch.tensor, cond)).numpy()


@pytest.mark.parametrize("name", MODULES)
def test_equals_the_module_in_value_and_derivatives(name, float64):
    module = build(name).double()
    network = network_of(name, module)
    assert network.derivative == ("difference" if name == "own_function" else "double reverse")
    x, dx, cond = batch_of(name, dtype=np.float64)
    # Some modules compute parts in single precision, whatever their dtype.
    t, h = np.float64(0.37), 1e-2 if name in ("sana", "wan") else 1e-5

    def central(dx, dt, h):
        ends = [in_torch(name, module, x + sign * h * dx, t + sign * h * dt, cond) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * h)

    value, linear = jax.linearize(lambda x, t: network(x, t, cond), x, t)
    np.testing.assert_allclose(value, in_torch(name, module, x, t, cond), rtol=1e-12, atol=1e-12)
    # Two directions at once: of states, and of the time, which diffusers embeds in single precision.
    along = jax.vmap(linear)(np.stack([dx, 0 * dx]), np.array([0.0, 1.0]))
    expected = [central(dx, 0.0, h), central(0 * dx, 1.0, h if name in ("plain", "own_function") else 1e-4)]
    scales = [np.abs(one).max() for one in expected]
    share = {"own_function": 1e-2, "wan": 1e-2, "sana": 3e-2}.get(name, 1e-4)
    np.testing.assert_allclose(along[0], expected[0], rtol=0, atol=share * scales[0])
    np.testing.assert_allclose(along[1], expected[1], rtol=0, atol=max(share, 5e-3) * scales[1])
    back = jax.vjp(lambda x, t: network(x, t, cond), x, t)[1](along[0])
    np.testing.assert_allclose(np.vdot(back[0], dx), np.vdot(along[0], along[0]), rtol=share)
    np.testing.assert_allclose(back[1], np.vdot(along[0], along[1]), rtol=share, atol=share * scales[0] * scales[1])


@pytest.mark.parametrize("name", ["plain", "own_function"])
def test_every_transformation_of_jax(name):
    module = build(name)
    network = network_of(name, module)
    x, dx, _ = batch_of(name)
    times, share = np.float32([0.2, 0.5]), 3e-2 if name == "own_function" else 2e-5

    def square(x, t):
        def step(x, t):
            return x - 0.1 * network(x, t), None

        return (jax.lax.scan(jax.checkpoint(step), x, t)[0] ** 2).sum()

    def in_steps(x, t):
        for one in t:
            x = x - 0.1 * module(x, one.expand(len(x)))
        return (x**2).sum()

    states, ts = torch.tensor(x, requires_grad=True), torch.tensor(times, requires_grad=True)
    in_steps(states, ts).backward()
    of_x, of_t = jax.jit(jax.grad(square, (0, 1)))(x, times)
    np.testing.assert_allclose(of_x, states.grad, rtol=0, atol=2e-5 * np.abs(of_x).max())
    np.testing.assert_allclose(of_t, ts.grad, rtol=1e-4)
    each = jax.vmap(jax.grad(lambda x: square(x[None], times)))(x)
    np.testing.assert_allclose(each, of_x, rtol=0, atol=2e-5 * np.abs(of_x).max())
    together = jax.jvp(lambda x: network(x, times[0]), (x,), (dx,))[1]
    alone = jax.vmap(lambda x, dx: jax.jvp(lambda x: network(x[None], times[0])[0], (x,), (dx,))[1])(x, dx)
    np.testing.assert_allclose(alone, together, rtol=0, atol=share * np.abs(together).max())
    by_time = jax.vmap(lambda t: network(x, t))(times)
    np.testing.assert_allclose(by_time[1], network(x, times[1]), rtol=1e-5, atol=1e-5)
    forward, reverse = (of(lambda t: network(x, t))(times[0]) for of in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, reverse, rtol=0, atol=share * np.abs(reverse).max())


def test_what_it_has_no_derivative_of_is_told():
    network = network_of("conditional_unet")
    x, _, cond = batch_of("conditional_unet")
    with pytest.raises(ValueError, match="differentiated in states and times alone, not in its conditions"):
        jax.grad(lambda cond: network(x, 0.5, cond).sum())(cond)
    with pytest.raises(ValueError, match="it has no second derivatives"):
        jax.hessian(lambda t: network(x, t, cond).sum())(0.5)


def test_a_module_runs_once_for_all_directions_at_a_point():
    module, calls = build("plain"), []
    network = network_of("plain", module)
    module.register_forward_hook(lambda *_: calls.append(1))
    x, dx, _ = batch_of("plain")
    jax.vmap(jax.linearize(network, x, np.float32(0.5))[1])(np.stack([dx] * 7), np.ones(7, np.float32))
    assert len(calls) == 2  # the value, and the linear map


def _learned(model, schedule, x_T, learner, parametrisation=None, nfe=3):
    pairs = ld3_jax.make_pairs(model, schedule, x_T, teacher=Teacher(ld3_jax.Solver("unipc", 12)))
    student = learning.make_student(model, schedule, ld3_jax.Solver("unipc", nfe))
    return ld3_jax.fit(
        student,
        pairs,
        jax.random.key(2),
        learner=learner,
        parametrisation=parametrisation or learning.WithCoefficients(),
        start="uniform",
    )


_LEARNERS = {
    "gn": learning.GaussNewton(steps=8, batch_size=4, validate_every=2),
    "lm": learning.LevenbergMarquardt(steps=2, batch_size=4, validate_every=2),
    "gradient": learning.GradientDescent(steps=6, batch_size=4, validate_every=3),
}


@pytest.mark.parametrize("learner", _LEARNERS)
def test_every_learner_learns_for_a_module_with_one_trace(learner):
    network = network_of("plain")
    counted = chex.assert_max_traces(denoisers.to_noise(network, _SCHEDULE, "flow").__call__, 12)
    x_T = draw_noise(jax.random.key(1), 8, MODULES["plain"].shape)
    first, second = (_learned(counted, _SCHEDULE, x_T, _LEARNERS[learner]) for _ in range(2))
    assert first.losses["valid"]["learned"] < first.losses["valid"]["start"]
    chex.assert_trees_all_equal(first.discretization, second.discretization)


@pytest.fixture
def float64_everywhere():
    """Double precision, also in the threads of callbacks."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_learns_what_the_same_network_in_flax_learns(float64_everywhere):
    galaxy = pretrained.load("hsc32")
    weights = galaxy.model.predict.args[1].args[0]["params"]
    module = GalaxyModule(weights).eval().double()

    def call(x, t, cond):
        return module(x.movedim(3, 1), t.expand(len(x))).movedim(1, 3)

    network = interop.pytorch_network(module, galaxy.shape, call=call, t=1.0)
    model = denoisers.to_noise(network, galaxy.schedule, "score")
    x_T = draw_noise(jax.random.key(1), 6, galaxy.shape)
    learner = learning.GaussNewton(steps=2, batch_size=6, validate_every=2)
    flax, pytorch = (_learned(one, galaxy.schedule, x_T, learner) for one in (galaxy.model, model))
    np.testing.assert_allclose(pytorch.t, flax.t, rtol=1e-6)


class _Kept:
    """Like caches of networks, it repeats its output for a nearby state."""

    last = torch.zeros(0)

    def __call__(self, x, t, cond):
        if self.last.shape != x.shape or (x - self.last).abs().mean() > 0.1:
            self.last = x.clone()
        return torch.sin(self.last)


_REFUSED = {
    "gives a tuple": ({"call": lambda x, t, cond: (x,)}, "it must give a tensor, got tuple"),
    "whole numbers": ({"call": lambda x, t, cond: x.int()}, "its output must be of floats shaped like the states"),
    "another shape": (
        {"call": lambda x, t, cond: x[:, :1]},
        r"like the states, \(2, 4, 8, 8\), got torch.float32",
    ),
    "not finite": ({"call": lambda x, t, cond: x / 0}, "gives numbers that are not finite at t = 0.5"),
    "draws noise": ({"call": lambda x, t, cond: x + torch.randn(())}, "other numbers the second time"),
    "samples in common": (
        {"call": lambda x, t, cond: x - x.mean(0, keepdim=True)},
        "something else for a state where the others of its batch are different",
    ),
    "one condition for all": (
        {"cond": np.ones(1, np.float32), "call": lambda x, t, cond: x * cond[:1].reshape(1, 1, 1, 1)},
        "something else for a state where the others of its batch are different",
    ),
    "keeps what it gave": ({"call": _Kept()}, "gives other numbers after another call"),
    "another device": ({"call": lambda x, t, cond: x.to("meta")}, "PlainCNN, for 2 states: NotImplementedError"),
    "raises": ({"call": lambda x, t, cond: x @ x[0, :, :3]}, "PlainCNN, for 2 states: RuntimeError"),
    "no memory": ({"call": lambda x, t, cond: x.new_empty(2**60)}, "ran out of memory on cpu for 2 states: take fewer"),
    "called otherwise": ({"cond": np.ones(3)}, "takes 3 positional arguments but 4 were given"),
    "the wrong shape": ({"shape": (3, 8, 8)}, "to have 5 channels, but got 4 channels"),
    "no shape": ({"shape": 8}, "shape must be of one state"),
    "an empty axis": ({"shape": (4, 0)}, "shape must be of one state, such as .*, got"),
    "no derivative of that name": ({"derivative": "backward"}, "derivative must be one of"),
    "forward mode is not there": (
        {"derivative": "forward", "call": lambda x, t, cond: _fixed(x)},
        "cannot be differentiated .forward: PlainCNN, for 2 directions of 2 states: RuntimeError",
    ),
    "no module": ({"module": torch.sin}, "module must be a torch.nn.Module, or a list"),
    "training": ({"module": PlainCNN()}, r"in training mode \(Conv2d, PlainCNN, Sequential, SiLU\): call its eval"),
    "not loaded": ({"module": PlainCNN().eval().to("meta")}, "device 'meta': they were not loaded"),
}


def _fixed(x):
    return MODULES["own_function"].build().into(x)[:, :4] * 0 + torch.sin(torch.special.zeta(x.abs() + 2, 2.0))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own, of forward mode
@pytest.mark.parametrize("what", _REFUSED)
def test_refuses_what_is_no_network(what):
    options, message = _REFUSED[what]
    with pytest.raises(ValueError, match=message) as error:
        interop.pytorch_network(**{"module": build("plain"), "shape": (4, 8, 8)} | options)
    assert "\n" not in str(error.value)


def test_refuses_states_and_conditions_of_another_shape():
    network = network_of("conditional_unet")
    x, _, cond = batch_of("conditional_unet")
    for args in [
        (x[:, :2], 0.5, cond),
        (x, np.ones(3), cond),
        (x, 0.5, None),
        (x, 0.5, {"text": cond["text"][:, :2, :3]}),
        (x, 0.5, {"text": cond["text"][:1]}),
        (x.astype(np.int32), 0.5, cond),
    ]:
        with pytest.raises(ValueError, match="conditional_unet takes"):
            network(*args)


def _replace(module):
    module.layers[0].bias = torch.nn.Parameter(module.layers[0].bias + 1)


def _replace_layer(module):
    module.layers[2] = build("plain").layers[2]


def _into_data(module):
    for weight in module.parameters():
        weight.data.mul_(0.9)


@pytest.mark.parametrize("change", [_replace, _replace_layer, _into_data])
def test_weights_that_are_replaced_are_noticed(change):
    module = build("plain")
    network, (x, _, _) = network_of("plain", module), batch_of("plain")
    change(module)
    with pytest.raises(jax.errors.JaxRuntimeError, match="plain, for 3 states: the weights of plain changed"):
        network(x, 0.5)


@pytest.mark.parametrize("derivative", ["auto", "difference"])
def test_a_module_may_write_into_what_it_is_given(derivative):
    module = build("plain")

    def call(x, t, cond):
        x *= 1 + t
        t += 0.1
        return module(x, t.expand(len(x)))

    networks = [
        interop.pytorch_network(module, (4, 8, 8), call=one, derivative=derivative)
        for one in (call, lambda x, t, cond: call(x.clone(), t.clone(), cond))
    ]
    x, dx, _ = batch_of("plain")
    found, expected = (jax.jvp(network, (x, 0.5), (dx, 1.0)) for network in networks)
    chex.assert_trees_all_equal(found, expected)
    assert not networks[0].host.lacks


def test_where_a_module_rounds_inside_its_derivatives_are_not_compared_with_differences():
    """In half precision the output does not move with a small step of the time, and derivatives by it would be 0."""
    module = build("plain")

    def call(x, t, cond):
        with torch.autocast("cpu", torch.bfloat16):
            return module(x, t.expand(len(x))).float()

    network = interop.pytorch_network(module, (4, 8, 8), call=call)
    x, dx, _ = batch_of("plain")
    assert (network.derivative, network.host.lacks) == ("double reverse", "")
    found, expected = (jax.jvp(one, (x, 0.5), (0 * dx, 1.0))[1] for one in (network, network_of("plain")))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05 * np.abs(expected).max())
    with pytest.raises(ValueError, match="differences need single precision, and it rounds more"):
        interop.pytorch_network(module, (4, 8, 8), call=call, derivative="difference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_half_precision_a_derivative_of_0_is_not_taken(dtype):
    """As for whole numbers, whose derivative is 0 in PyTorch."""
    module = build("plain").to(dtype)
    with pytest.raises(
        ValueError, match=r"cannot be differentiated \(double reverse: it is .* differences need single"
    ):
        interop.pytorch_network(
            module, (4, 8, 8), call=lambda x, t, cond: module.layers[2].bias.mean() + x.mul(64).round()
        )


def test_a_time_that_is_rounded_is_told_of(caplog):
    module = build("plain")
    interop.pytorch_network(module, (4, 8, 8), call=lambda x, t, cond: module(x, (10 * t).round().expand(len(x))))
    interop.pytorch_network(module, (4, 8, 8), call=lambda x, t, cond: module(x, torch.ones(len(x))))
    assert [one.getMessage()[:37] for one in caplog.records if one.levelname == "WARNING"] == [
        "PlainCNN changes with its time, and i"
    ]


def test_a_failure_while_sampling_is_one_line(capfd):
    module = build("plain")
    network, (x, _, _) = network_of("plain", module), batch_of("plain")
    with torch.no_grad():
        module.layers[0].bias.add_(1.0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="PyTorchError: plain, for 3 states: the weights of"):
        jax.block_until_ready(jax.jit(network)(x, 0.5))
    assert "Traceback" not in capfd.readouterr().err
    module.train()
    with pytest.raises(ValueError, match="training mode"):
        network_of("plain", module)


def test_the_teachers_cache_knows_a_module_by_its_weights_and_its_call(tmp_path):
    teacher = Teacher(ld3_jax.Solver("euler", 2), cache=tmp_path)
    x_T = draw_noise(jax.random.key(1), 2, (4, 8, 8))

    def folders(network):
        ld3_jax.make_pairs(denoisers.to_noise(network, _SCHEDULE, "flow"), _SCHEDULE, x_T, teacher=teacher)
        return len(list(tmp_path.iterdir()))

    module = build("plain")
    assert [folders(network_of("plain", module)) for _ in range(2)] == [1, 1]
    assert (
        folders(interop.pytorch_network(module, (4, 8, 8), call=lambda x, t, cond: 2 * module(x, t.expand(len(x)))))
        == 2
    )
    with torch.no_grad():
        module.layers[0].bias.add_(1.0)
    assert folders(network_of("plain", module)) == 3


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile looks at it
@pytest.mark.parametrize(
    "change",
    [
        lambda module: torch.compile(module, backend="eager"),
        lambda module: module.to(memory_format=torch.channels_last),
        lambda module: module.requires_grad_(True),
    ],
    ids=["compiled", "channels last", "requires_grad"],
)
def test_modules_as_people_have_them(change):
    x, _, _ = batch_of("plain")
    expected = jax.grad(lambda x: (network_of("plain")(x, 0.5) ** 2).sum())(x)
    module = change(build("plain"))
    with torch.inference_mode():
        network = network_of("plain", module)
        found = jax.grad(lambda x: (network(x, 0.5) ** 2).sum())(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert all(weight.grad is None for weight in module.parameters())


def test_without_gradients_gauss_newton_still_learns():
    module = build("plain")

    class NoGradients(torch.nn.Module):
        def forward(self, x, t):
            with torch.no_grad():
                return module(x.detach(), t)

    network = interop.pytorch_network(NoGradients().eval(), (4, 8, 8))
    x, _, _ = batch_of("plain")
    assert network.derivative == "difference"
    with pytest.raises(ValueError, match=r"NoGradients has no gradients in reverse mode .*: learn by Gauss-Newton"):
        jax.grad(lambda x: network(x, 0.5).sum())(x)
    along = jax.jvp(lambda t: network(x, t), (0.5,), (1.0,))[1]
    np.testing.assert_allclose(along, jax.jvp(lambda t: network_of("plain")(x, t), (0.5,), (1.0,))[1], atol=2e-2)


def test_the_page_on_pytorch_runs(tmp_path, monkeypatch):
    (code,) = re.findall("```python\n(.*?)```", Path("docs/guides/own-pytorch-network.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    code = code.replace("64, 64", "8, 8").replace(" 100, ", " 6, ").replace("key(1))", "key(1), learner=learner)")
    learner = learning.GaussNewton(steps=1, batch_size=6, validate_every=1)
    small = torch.nn.Conv2d(4, 3, 3, padding=1)

    class Module(torch.nn.Module):
        def forward(self, x, t):
            return small(torch.cat([x, torch.sin(t / 1000).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)], 1))

    names = {"given": Module().eval(), "learner": learner}
    exec(code.replace("module = ...  ", "module = given"), names)
    x_T = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    with torch.no_grad():
        there = names["interop"].solve(
            names["table"],
            lambda x, t: names["module"](x, torch.full((len(x),), 1000 * t)),
            torch.tensor(x_T),
            "flow",
        )
    here = names["learned"].sample(names["model"], names["schedule"], jnp.asarray(x_T))
    np.testing.assert_allclose(there, here, atol=1e-4)
    assert names["x_0"].shape == (8, 3, 8, 8)
