"""What a latent diffusion network costs, in FLOPs and in seconds: a call with guidance, its derivative, decoding."""

import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ld3_jax.networks import latent, weights

TANGENTS = 2  # directions of one sample at a time
REPEATS = 5  # runs, of which the median counts


class Costs(NamedTuple):
    """FLOPs or seconds of one sample: a call with guidance, a derivative of it along one direction, decoding."""

    call: float
    derivative: float
    decode: float


class Measured(NamedTuple):
    """What one sample takes on one device, and what measured it."""

    seconds: Costs
    weights_bytes: int
    call_bytes: int  # that a call holds beside them
    derivatives_bytes: int  # likewise, with TANGENTS derivatives
    device: str
    jax: str


class Program(NamedTuple):
    """A function of weights and inputs, and the shapes of these."""

    function: Callable[..., PyTree]
    inputs: tuple[jax.ShapeDtypeStruct, ...]


def shapes(network: latent.LatentDiffusion) -> dict[str, PyTree]:
    """Of the weights of its programs."""
    return {part: latent.shapes(network)[part] for part in ("unet", "autoencoder")}


def programs(network: latent.LatentDiffusion, samples: int) -> tuple[Program, Program, Program]:
    """A network's call with guidance, which is one of twice as many states, its derivatives, and its decoding; all
    compute in bfloat16."""
    unet = network.unet.clone(dtype=jnp.bfloat16)
    autoencoder = network.autoencoder.clone(dtype=jnp.bfloat16)

    def call(params: PyTree, x: jax.Array, context: jax.Array) -> PyTree:
        return unet.apply({"params": params["unet"]}, x, jnp.float32(1.0), context)

    def derivatives(params: PyTree, x: jax.Array, context: jax.Array, changes: jax.Array) -> tuple:
        prediction, linear = jax.linearize(lambda x: call(params, x, context), x)
        return prediction, jax.vmap(linear)(changes)

    def decode(params: PyTree, latents: jax.Array) -> PyTree:
        return autoencoder.apply({"params": params["autoencoder"]}, latents, method="decode")

    def of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    states, contexts = of(2 * samples, *network.shape), of(2 * samples, *(network.context_shape or ()))
    changes, latents = of(TANGENTS, *states.shape), of(samples, *network.shape)
    return (
        Program(call, (states, contexts)),
        Program(derivatives, (states, contexts, changes)),
        Program(decode, (latents,)),
    )


def counted(network: latent.LatentDiffusion) -> Costs:
    """FLOPs, of networks that are traced on shapes."""
    call, derivatives, decode = (
        (jax.jit(function).lower(shapes(network), *inputs).cost_analysis() or {})["flops"]
        for function, inputs in programs(network, 1)
    )
    return Costs(call, (derivatives - call) / TANGENTS, decode)


def measured(network: latent.LatentDiffusion, samples: int) -> Measured:
    """On the device at hand, with random weights: calls and decoding of so many samples at a time, derivatives of one
    along TANGENTS directions.
    """
    params = jax.device_put(weights.random(shapes(network)))

    def run(program: Program) -> tuple[float, int]:
        """Seconds and bytes."""
        keys = jax.random.split(jax.random.key(0), len(program.inputs))
        inputs = [jax.random.normal(key, one.shape) for key, one in zip(keys, program.inputs, strict=True)]
        compiled, each = jax.jit(program.function).lower(params, *inputs).compile(), []
        for _ in range(REPEATS + 1):
            begun = time.monotonic()
            jax.block_until_ready(compiled(params, *inputs))
            each.append(time.monotonic() - begun)
        memory = compiled.memory_analysis()
        return statistics.median(each[1:]), memory.temp_size_in_bytes if memory else 0

    of_many, of_one = programs(network, samples), programs(network, 1)
    (call, _), (decode, _) = run(of_many[0]), run(of_many[2])
    (alone, call_bytes), (derivatives, derivatives_bytes) = run(of_one[0]), run(of_one[1])
    seconds = Costs(call / samples, (derivatives - alone) / TANGENTS, decode / samples)
    device = jax.devices()[0].device_kind
    return Measured(seconds, 4 * weights.count(params), call_bytes, derivatives_bytes, device, version("jax"))
