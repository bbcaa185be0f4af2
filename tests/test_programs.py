"""A model is known by what it computes, however it is stated; what JAX does not trace is named."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax.extend.core import Primitive
from jax.tree_util import Partial

from ld3_jax import denoisers, programs, schedules

SCHEDULE = schedules.VPLinear()
X = jnp.ones((3, 2))
T = jnp.float32([0.9, 0.1])
ONE, OTHER = np.ones(2000, np.float32), np.ones(2000, np.float32)
OTHER[1000] = 300.0
GLOBAL, BUFFER = {"w": ONE}, ONE.copy()


def net(w, x, t, cond=None):
    return x * jnp.asarray(w).sum()


def closure(w):
    return lambda x, t, cond=None: net(w, x, t)


@dataclass(eq=False)
class Net:
    w: Any

    def __call__(self, x, t, cond=None):
        return net(self.w, x, t)


class WithSlots:
    __slots__ = ("w",)

    def __init__(self, w):
        self.w = w

    def __call__(self, x, t, cond=None):
        return net(self.w, x, t)


def default(w):
    def model(x, t, cond=None, w=w, *, factor=w):
        return net(w, x, t) * jnp.asarray(factor).max()

    return model


def of_global(w):
    GLOBAL["w"] = w
    return reads_global


def reads_global(x, t, cond=None):
    return net(GLOBAL["w"], x, t)


def of_buffer(w):
    BUFFER[:] = w
    return closure(BUFFER)


def edited(w):
    names = {}
    exec(f"class Net:\n    def __call__(self, x, t, cond=None):\n        return x * {w.sum()}", names)
    return names["Net"]()


def custom_jvp(w):
    function = jax.custom_jvp(lambda x: net(w, x, 0))
    function.defjvp(lambda x, tangents: (function(*x), tangents[0]))
    return lambda x, t, cond=None: function(x)


def of_scan(w):
    return lambda x, t, cond=None: jax.lax.scan(lambda c, w: (c + w * x, None), x, jnp.asarray(w))[0]


def of_list(w):
    held = [Net(w)]
    return lambda x, t, cond=None: held[0](x, t)


def flax(w):
    module = linen.Dense(2)
    bound = module.bind({"params": {"kernel": jnp.full((2, 2), w.sum()), "bias": jnp.zeros(2)}})
    return lambda x, t, cond=None: bound(x)


def with_key(w):
    key = jax.random.key(int(w.sum()))
    return lambda x, t, cond=None: x * jax.random.uniform(key)


WAYS = {
    "closure": closure,
    "object": Net,
    "bound method": lambda w: Net(w).__call__,
    "slots": WithSlots,
    "functools.partial": lambda w: functools.partial(net, w),
    "default": default,
    "global": of_global,
    "array changed in place": of_buffer,
    "edited class": edited,
    "jit": lambda w: jax.jit(closure(w)),
    "jit of a partial": lambda w: jax.jit(functools.partial(net, w)),
    "vmap": lambda w: jax.vmap(closure(w), in_axes=(0, None, None)),
    "checkpoint": lambda w: jax.checkpoint(closure(w)),
    "custom_jvp": custom_jvp,
    "scan": of_scan,
    "wraps": lambda w: functools.wraps(net)(closure(w)),
    "list of objects": of_list,
    "type of a number": lambda w: closure(1 if w is ONE else 1.0),
    "flax": flax,
    "random key": with_key,
    "to_noise": lambda w: denoisers.to_noise(Net(w), SCHEDULE, "data"),
    "guided": lambda w: denoisers.guided(jax.jit(closure(w)), None, 2.0),
}


def program(model, schedule=SCHEDULE):
    return programs.of_model(denoisers.as_pytree(model), schedule, T, X, None)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_model_is_known_by_what_it_computes(way):
    first, other, again = (program(way(w)) for w in (ONE, OTHER, ONE))
    assert first == again != other
    assert not first.unseen + other.unseen


def test_one_function_stated_in_two_ways_is_one():
    assert program(closure(ONE)) == program(Net(ONE)) == program(of_global(ONE))
    assert program(Partial(net, ONE)) == program(Partial(lambda w, x, t, cond: x * w.sum(), OTHER))  # weights are apart


def test_a_noise_schedule_is_known_by_its_formulas():
    def of(power):
        @dataclass(frozen=True)
        class Power(schedules.VELinear):
            def log_sigma(self, t):
                return power * jnp.log(t)

        return program(closure(ONE), Power())

    assert of(2) == of(2) != of(3)


def _host(x, t, cond=None):
    return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def _own_operation():
    operation = Primitive("sin")
    operation.def_abstract_eval(lambda x: x)
    return lambda x, t, cond=None: operation.bind(x)


def _changeable():
    array = jax.new_ref(jnp.ones(()))
    return lambda x, t, cond=None: x * array[...]


@pytest.mark.parametrize(
    ("model", "unseen"),
    [
        (_host, "pure_callback"),
        (jax.jit(_host), "pure_callback"),
        (jax.checkpoint(lambda *args: jax.lax.cond(True, _host, _host, *args)), "pure_callback"),
        (lambda x, t, cond=None: jax.ffi.ffi_call("mine", jax.ShapeDtypeStruct(x.shape, x.dtype))(x), "ffi_call"),
        (_own_operation(), "sin"),
        (_changeable(), "Ref"),
    ],
)
def test_what_jax_does_not_trace_is_named(model, unseen):
    assert program(model).unseen == (unseen,)


def test_a_marked_model_is_traced_anew_where_it_has_changed():
    net = Net(ONE)
    for wrap in (denoisers.as_pytree, lambda one: denoisers.to_noise(one, SCHEDULE, "noise")):
        found = []
        for net.w in (ONE, OTHER, ONE):
            marked = programs.marked(wrap(net.__call__), program(wrap(net.__call__)))
            assert isinstance(marked, type(wrap(net.__call__)))
            found.append(float(jax.jit(lambda model: model(X, T[0], None))(marked)[0, 0]))
            assert found[-1] == net.w.sum()


def test_numbers_that_compare_equal_are_not_one():
    @dataclass(frozen=True)
    class Scaled:
        by: Any

        def __call__(self, x, t, cond=None):
            return x + 1 / jnp.asarray(self.by)

    assert len({program(Scaled(by)) for by in (0.0, -0.0, 0, False, np.float64(0), float("nan"))}) == 5
