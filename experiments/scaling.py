"""What learning and sampling cost for Stable Diffusion 1.5 on one device and on many.

python -m experiments.scaling --out=docs/scaling.md

FLOPs are counted: the networks are traced on shapes. On a GPU or TPU a call, its derivatives and the decoding are
measured with random weights, and a JSON file beside the page keeps that. On a CPU the page is written with what the
file has.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from experiments import command
from ld3_jax.disk import check_writable, numbers, read_json, write_atomically
from ld3_jax.networks import latent, weights

_OUT = command.path_flag("out", "docs/scaling.md", "Where to write the page.")

_TEMPLATE = Path(__file__).with_suffix(".md")
NETWORK = latent.NETWORKS["stable_diffusion"]
DEVICES = (1, 8, 256)
SAMPLES, NFE, USUAL_NFE = 50_000, 5, 50
TIMED, REPEATS = 4, 5  # samples at a time, and runs, of which the median counts
PAIRS, TEACHER_NFE, BATCH = 100, 40, 10  # configs/default.py
LEARNING_CALLS = 27_600  # of README.md's first command, in report.json: no matter which network
NUMBERS = 24  # that Gauss-Newton solves for with 5 calls
STEP_BYTES = 4 * (NUMBERS**2 + NUMBERS + 1)
TANGENTS = 2  # directions of one sample at a time, by --config.learn.tangents


class Accelerator(NamedTuple):
    """Peak FLOP/s in bfloat16, bytes of memory, bytes/s to the other devices."""

    name: str
    kind: str  # what JAX's name of the device holds
    peak: float
    memory: float
    link: float


ACCELERATORS = (
    Accelerator("H100 SXM", "H100", 989.4e12, 80e9, 900e9),
    Accelerator("TPU v5e", "TPU v5 lite", 197e12, 16e9, 400e9),
)


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

    def call(params: PyTree, x: jax.Array, context: jax.Array) -> jax.Array:
        return unet.apply({"params": params["unet"]}, x, jnp.float32(1.0), context)

    def derivatives(params: PyTree, x: jax.Array, context: jax.Array, changes: jax.Array) -> tuple:
        prediction, linear = jax.linearize(lambda x: call(params, x, context), x)
        return prediction, jax.vmap(linear)(changes)

    def decode(params: PyTree, latents: jax.Array) -> jax.Array:
        return autoencoder.apply({"params": params["autoencoder"]}, latents, method="decode")

    def of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    states, contexts = of(2 * samples, *network.shape), of(2 * samples, *network.context_shape)
    changes, latents = of(TANGENTS, *states.shape), of(samples, *network.shape)
    return (
        Program(call, (states, contexts)),
        Program(derivatives, (states, contexts, changes)),
        Program(decode, (latents,)),
    )


def counted(network: latent.LatentDiffusion) -> Costs:
    """FLOPs, of networks that are traced on shapes."""
    call, derivatives, decode = (
        jax.jit(function).lower(shapes(network), *inputs).cost_analysis()["flops"]
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
        return statistics.median(each[1:]), compiled.memory_analysis().temp_size_in_bytes

    of_many, of_one = programs(network, samples), programs(network, 1)
    (call, _), (decode, _) = run(of_many[0]), run(of_many[2])
    (alone, call_bytes), (derivatives, derivatives_bytes) = run(of_one[0]), run(of_one[1])
    seconds = Costs(call / samples, (derivatives - alone) / TANGENTS, decode / samples)
    device = jax.devices()[0].device_kind
    return Measured(seconds, 4 * weights.count(params), call_bytes, derivatives_bytes, device, version("jax"))


def main() -> None:
    out = Path(_OUT.value)
    check_writable(out)
    path = out.with_suffix(".json")
    if jax.default_backend() != "cpu":
        peak_of(jax.devices()[0].device_kind)  # refuses an unknown device before the minutes of measuring
        here = measured(NETWORK, TIMED)
        record = here._asdict() | {"seconds": here.seconds._asdict()}
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    known = read(path)
    write_atomically(out, page(counted(NETWORK), known).encode())
    print(f"wrote {out}")


def read(path: Path) -> Measured:
    """What was measured on an accelerator.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    if not path.exists():
        raise ValueError(f"there is no {path}, which this command writes on a GPU or TPU")
    record = read_json(path)
    try:
        known = Measured(**record | {"seconds": Costs(**record["seconds"])})
        sound = numbers([*known.seconds, *known[1:4]]).min() > 0 and isinstance(known.device, str)
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{path}: not what experiments.scaling writes")
    return known


def peak_of(device: str) -> float:
    """Peak FLOP/s of a device by JAX's name of it.

    Raises:
        ValueError: if it is none of ACCELERATORS.
    """
    for one in ACCELERATORS:
        if one.kind in device:
            return one.peak
    raise ValueError(f"the device must be one of {[one.kind for one in ACCELERATORS]}, whose peaks are known: {device}")


def page(flops: Costs, measured: Measured) -> str:
    """The page, in Markdown."""
    names = ("a call", "a derivative of it along one direction", "decoding")
    costs = [
        f"| {name} | {count / 1e12:.2f} | {1e3 * seconds:.1f} ms | {count / seconds / 1e12:.0f} |"
        for name, count, seconds in zip(names, flops, measured.seconds, strict=True)
    ]
    peak = peak_of(measured.device)
    rows = [
        _row(one.name, count, Costs(*(seconds * peak / one.peak for seconds in measured.seconds)))
        for one in ACCELERATORS
        for count in DEVICES
    ]
    of_weights, of_call, of_derivatives = (f"{size / 1e9:.1f} GB" for size in measured[1:4])
    return Template(_TEMPLATE.read_text()).substitute(
        **{"nfe": NFE, "usual_nfe": USUAL_NFE, "samples": f"{SAMPLES:,}", "timed": TIMED, "repeats": REPEATS},
        **{"pairs": PAIRS, "teacher_calls": f"{PAIRS * TEACHER_NFE:,}", "batch": BATCH, "tangents": TANGENTS},
        **{"learning_calls": f"{LEARNING_CALLS:,}", "numbers": NUMBERS, "step_bytes": f"{STEP_BYTES:,}"},
        **{"costs": "\n".join(costs), "rows": "\n".join(rows), "device": measured.device, "jax": measured.jax},
        **{"peaks": _listed("peak", 1e12, "TFLOP/s"), "links": _listed("link", 1e9, "GB/s")},
        **{"of_weights": of_weights, "of_call": of_call, "of_derivatives": of_derivatives},
        memory=_listed("memory", 1e9, "GB"),
    )


def _row(name: str, count: int, of: Costs) -> str:
    """A line of the table: as long as a device takes for the samples that it gets."""
    seconds = [
        TEACHER_NFE * math.ceil(PAIRS / count) * of.call,
        LEARNING_CALLS / BATCH * math.ceil(BATCH / count) * of.derivative,
        *(math.ceil(SAMPLES / count) * (nfe * of.call + of.decode) for nfe in (NFE, USUAL_NFE)),
    ]
    return f"| {name} | {count} | {' | '.join(map(_time, seconds))} |"


def _time(seconds: float) -> str:
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (0, "s")) if seconds >= size)
    return f"{seconds / (size or 1):.1f} {unit}"


def _listed(field: str, unit: float, name: str) -> str:
    return ", ".join(f"{getattr(one, field) / unit:g} {name} ({one.name})" for one in ACCELERATORS)


if __name__ == "__main__":
    command.run(main)
