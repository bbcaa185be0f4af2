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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from experiments import common
from ld3_jax.disk import check_writable, numbers, read_json, write_atomically
from ld3_jax.networks import latent, weights

_OUT = common.path_flag("out", "docs/scaling.md", "Where to write the page.")

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


class Programs(NamedTuple):
    """What is counted and timed, with the shapes of its weights; all compute in bfloat16."""

    weights: dict[str, PyTree]
    call: Callable[..., jax.Array]  # (weights, states, contexts)
    derivatives: Callable[..., tuple]  # (weights, states, contexts, changes)
    decode: Callable[..., jax.Array]  # (weights, latents)


def programs(network: latent.LatentDiffusion) -> Programs:
    """A network's call with guidance, which is one of two states, its derivatives, and its decoding."""
    unet = network.unet.clone(dtype=jnp.bfloat16)
    autoencoder = network.autoencoder.clone(dtype=jnp.bfloat16)

    def call(params: PyTree, x: jax.Array, context: jax.Array) -> jax.Array:
        return unet.apply({"params": params["unet"]}, x, jnp.float32(1.0), context)

    def derivatives(params: PyTree, x: jax.Array, context: jax.Array, changes: jax.Array) -> tuple:
        prediction, linear = jax.linearize(lambda x: call(params, x, context), x)
        return prediction, jax.vmap(linear)(changes)

    def decode(params: PyTree, latents: jax.Array) -> jax.Array:
        return autoencoder.apply({"params": params["autoencoder"]}, latents, method="decode")

    shapes = {part: latent.shapes(network)[part] for part in ("unet", "autoencoder")}
    return Programs(shapes, call, derivatives, decode)


def inputs(network: latent.LatentDiffusion, samples: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of states and contexts, twice as many as samples, of changes, and of latents to decode."""
    states, contexts, latents = (
        jax.ShapeDtypeStruct((count, *shape), jnp.float32)
        for count, shape in (
            (2 * samples, network.shape),
            (2 * samples, network.context_shape),
            (samples, network.shape),
        )
    )
    return states, contexts, jax.ShapeDtypeStruct((TANGENTS, *states.shape), jnp.float32), latents


def counted(network: latent.LatentDiffusion) -> Costs:
    """FLOPs, of networks that are traced on shapes."""
    of, (states, contexts, changes, latents) = programs(network), inputs(network, 1)
    call, derivatives, decode = (
        jax.jit(function).lower(of.weights, *shapes).cost_analysis()["flops"]
        for function, shapes in (
            (of.call, (states, contexts)),
            (of.derivatives, (states, contexts, changes)),
            (of.decode, (latents,)),
        )
    )
    return Costs(call, (derivatives - call) / TANGENTS, decode)


def measured(network: latent.LatentDiffusion, samples: int) -> Measured:
    """On the device at hand, with random weights: calls and decoding of so many samples at a time, derivatives of one
    along TANGENTS directions.
    """
    of = programs(network)
    params = jax.device_put(weights.random(of.weights))

    def run(function: Callable, *shapes: jax.ShapeDtypeStruct) -> tuple[float, int]:
        """Seconds and bytes."""
        keys = jax.random.split(jax.random.key(0), len(shapes))
        arguments = [jax.random.normal(key, one.shape) for key, one in zip(keys, shapes, strict=True)]
        compiled, each = jax.jit(function).lower(params, *arguments).compile(), []
        for _ in range(REPEATS + 1):
            begun = time.monotonic()
            jax.block_until_ready(compiled(params, *arguments))
            each.append(time.monotonic() - begun)
        return statistics.median(each[1:]), compiled.memory_analysis().temp_size_in_bytes

    states, contexts, _, latents = inputs(network, samples)
    (call, _), (decode, _) = run(of.call, states, contexts), run(of.decode, latents)
    states, contexts, changes, _ = inputs(network, 1)
    alone, call_bytes = run(of.call, states, contexts)
    derivatives, derivatives_bytes = run(of.derivatives, states, contexts, changes)
    seconds = Costs(call / samples, (derivatives - alone) / TANGENTS, decode / samples)
    return Measured(
        seconds, 4 * weights.count(params), call_bytes, derivatives_bytes, jax.devices()[0].device_kind, version("jax")
    )


def main() -> None:
    out = Path(_OUT.value)
    check_writable(out)
    path = out.with_suffix(".json")
    if jax.default_backend() != "cpu":
        peak_of(jax.devices()[0].device_kind)  # refuses an unknown device before the minutes of measuring
        here = measured(NETWORK, TIMED)
        record = here._asdict() | {"seconds": here.seconds._asdict()}
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    found = read(path)
    write_atomically(out, page(counted(NETWORK), found).encode())
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
        found = Measured(**record | {"seconds": Costs(**record["seconds"])})
        sound = numbers([*found.seconds, *found[1:4]]).min() > 0 and isinstance(found.device, str)
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{path}: not what experiments.scaling writes")
    return found


def peak_of(device: str) -> float:
    """Peak FLOP/s of a device by JAX's name of it.

    Raises:
        ValueError: if it is none of ACCELERATORS.
    """
    for one in ACCELERATORS:
        if one.kind in device:
            return one.peak
    raise ValueError(f"the device must be one of {[one.kind for one in ACCELERATORS]}, whose peaks are known: {device}")


def page(flops: Costs, found: Measured) -> str:
    """The page, in Markdown."""
    names = ("a call", "a derivative of it along one direction", "decoding")
    lines = [
        f"| {name} | {count / 1e12:.2f} | {1e3 * seconds:.1f} ms | {count / seconds / 1e12:.0f} |"
        for name, count, seconds in zip(names, flops, found.seconds, strict=True)
    ]
    peak = peak_of(found.device)
    rows = [
        _row(one.name, count, Costs(*(seconds * peak / one.peak for seconds in found.seconds)))
        for one in ACCELERATORS
        for count in DEVICES
    ]
    of_weights, of_call, of_derivatives = (f"{size / 1e9:.1f} GB" for size in found[1:4])
    return f"""# What it costs on many devices

Stable Diffusion 1.5, 512 x 512 pixels, with guidance, so that a call is two passes of the U-Net; {NFE} calls; learned
as in `configs/default.py`. Written by `python -m experiments.scaling`.

| of one sample | TFLOP | time | TFLOP/s |
|---|---|---|---|
{chr(10).join(lines)}

FLOPs are those of XLA's cost analysis of the traced networks. Times were measured on one {found.device}
with jax {found.jax} and random weights in bfloat16, medians of {REPEATS} runs: calls and decoding of {TIMED} samples
at a time, derivatives along {TANGENTS} directions of one sample. The teacher makes {PAIRS * TEACHER_NFE:,} calls for
{PAIRS} pairs. Learning makes {LEARNING_CALLS:,}, as the README's first command does: their number does not depend on
the network. Each is counted as a derivative.

| device | number | teacher | learning | {SAMPLES:,} samples, {NFE} calls | {USUAL_NFE} calls |
|---|---|---|---|---|---|
{chr(10).join(rows)}

- **Other devices** are taken to reach the same shares of their peaks in bfloat16,
  {_listed("peak", 1e12, "TFLOP/s")}. Compiling, loading and writing are left
  out, and in learning the decoding and the loss.
- **Learning** takes {BATCH} samples a step on any number of devices. Where they do not divide among these, Gauss-Newton
  computes some of them twice, and gradient descent all of them on each device. Beyond {BATCH} devices learning gets no
  faster. The order of sums differs, and so does rounding, which many steps of Gauss-Newton amplify.
- **Communication**: a step of Gauss-Newton all-reduces a matrix, a gradient and a loss, and nothing else, as its
  compiled program for eight devices shows: {NUMBERS}² + {NUMBERS} + 1 numbers, {STEP_BYTES:,} bytes. Over links of
  {_listed("link", 1e9, "GB/s")} that is the links' latency. Teacher and samples communicate their results alone.
- **Memory** of a device: {of_weights} of weights in float32, {of_call} for a call of one sample, {of_derivatives} with
  derivatives along {TANGENTS} directions (`--config.learn.tangents={TANGENTS}`), as XLA compiles the networks for the
  device above. They include attention's weights of 4096 x 4096 positions, which JAX's attention forms by default.
  Devices have {_listed("memory", 1e9, "GB")}.
- Peaks, memory and links are those of NVIDIA's data sheet (without sparsity; NVLink) and of Google's documentation of
  the TPU v5e. Links between hosts are slower.
"""


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
    common.run(main)
