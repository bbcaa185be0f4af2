"""What learning and sampling cost for Stable Diffusion 1.5 on one device and on many: computed, not measured.

python -m experiments.scaling --out=docs/scaling.md

The networks are traced on shapes, without weights, and compiled on the CPU for their memory: a few minutes.
"""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jaxtyping import PyTree

from experiments import common
from ld3_jax.disk import check_writable, write_atomically
from ld3_jax.networks import latent, weights

_OUT = common.path_flag("out", "docs/scaling.md", "Where to write the page.")
_UTILISATION = flags.DEFINE_float("utilisation", 0.4, "Share of the peak that is reached.", 1e-3, 1.0)

NETWORK = latent.NETWORKS["stable_diffusion"]
DEVICES = (1, 8, 256)
SAMPLES, NFE, USUAL_NFE = 50_000, 5, 50
PAIRS, TEACHER_NFE, BATCH = 100, 40, 10  # configs/default.py
LEARNING_CALLS = 28_100  # of README.md's first command, in report.json: no matter which network
NUMBERS = 24  # that Gauss-Newton solves for with 5 calls
STEP_BYTES = 4 * (NUMBERS**2 + NUMBERS + 1)
TANGENTS = 2  # directions of one sample at a time, by --config.learn.tangents


class Accelerator(NamedTuple):
    """Peak FLOP/s in bfloat16, bytes of memory, bytes/s to the other devices."""

    name: str
    peak: float
    memory: float
    link: float


ACCELERATORS = (Accelerator("H100 SXM", 989.4e12, 80e9, 900e9), Accelerator("TPU v5e", 197e12, 16e9, 400e9))


class Costs(NamedTuple):
    """FLOPs of a call for one sample, with guidance, of one with TANGENTS derivatives, and of decoding; bytes."""

    call: float
    derivatives: float
    decode: float
    weights: float
    call_bytes: float  # what a call holds beside the weights
    derivatives_bytes: float


def costs() -> Costs:
    """Trace and compile on shapes."""
    unet, autoencoder = (latent.shapes(NETWORK)[part] for part in ("unet", "autoencoder"))
    state, context = (
        jax.ShapeDtypeStruct((2, *shape), jnp.float32) for shape in (NETWORK.shape, NETWORK.context_shape)
    )
    changes = jax.ShapeDtypeStruct((TANGENTS, *state.shape), jnp.float32)
    apply = NETWORK.unet.clone(dtype=jnp.bfloat16).apply

    def call(params: PyTree, x: jax.Array, context: jax.Array) -> jax.Array:
        return apply({"params": params}, x, jnp.float32(1.0), context)

    def derivatives(params: PyTree, x: jax.Array, context: jax.Array, changes: jax.Array) -> tuple:
        prediction, linear = jax.linearize(lambda x: call(params, x, context), x)
        return prediction, jax.vmap(linear)(changes)

    plain = jax.jit(call).lower(unet, state, context)
    linearised = jax.jit(derivatives).lower(unet, state, context, changes)
    decode = partial(NETWORK.autoencoder.clone(dtype=jnp.bfloat16).apply, method="decode")
    decoded = jax.jit(decode).lower({"params": autoencoder}, jax.ShapeDtypeStruct((1, *NETWORK.shape), jnp.float32))
    return Costs(
        *(lowered.cost_analysis()["flops"] for lowered in (plain, linearised, decoded)),
        4 * weights.count((unet, autoencoder)),
        *(lowered.compile().memory_analysis().temp_size_in_bytes for lowered in (plain, linearised)),
    )


def main() -> None:
    out = Path(_OUT.value)
    check_writable(out)
    write_atomically(out, page(costs(), _UTILISATION.value).encode())
    print(f"wrote {out}")


def page(found: Costs, utilisation: float) -> str:
    """The page, in Markdown."""
    gigabytes = {field: getattr(found, field) / 1e9 for field in ("weights", "call_bytes", "derivatives_bytes")}
    rows = [_row(found, one, count, utilisation) for one in ACCELERATORS for count in DEVICES]
    return f"""# What it costs on many devices

Computed by `python -m experiments.scaling`, not measured: no accelerator was at hand. Stable Diffusion 1.5, 512 x 512
pixels, with guidance, so that a call is two passes of the U-Net; {NFE} calls; learned as in `configs/default.py`.

| of one sample | TFLOP |
|---|---|
| a call | {found.call / 1e12:.2f} |
| a derivative of it along one direction | {_derivative(found) / 1e12:.2f} |
| {NFE} calls | {NFE * found.call / 1e12:.1f} |
| {USUAL_NFE} calls | {USUAL_NFE * found.call / 1e12:.1f} |
| decoding | {found.decode / 1e12:.2f} |

These are the FLOPs of XLA's cost analysis of the traced networks. The teacher makes {PAIRS * TEACHER_NFE:,} calls for
{PAIRS} pairs. Learning makes {LEARNING_CALLS:,}, as the README's first command does: their number does not depend on
the network. Each is counted as a derivative.

| device | number | teacher | learning | {SAMPLES:,} samples, {NFE} calls | {USUAL_NFE} calls |
|---|---|---|---|---|---|
{chr(10).join(rows)}

- **Assumed**: {utilisation:.0%} of the peak in bfloat16 is reached; the peak is {_listed("peak", 1e12, "TFLOP/s")}.
  Compiling, loading and writing are left out, and in learning the decoding and the loss.
- **Learning** takes {BATCH} samples a step, or the next multiple of the devices: {DEVICES[-1]} devices take
  {DEVICES[-1]}, which needs as many pairs (`data.train`), in the time that each needs for one. Beyond {BATCH} devices
  learning gets no faster.
- **Communication**: a step of Gauss-Newton all-reduces a matrix, a gradient and a loss, and nothing else, as its
  compiled program for eight devices shows: {NUMBERS}² + {NUMBERS} + 1 numbers, {STEP_BYTES:,} bytes. Over links of
  {_listed("link", 1e9, "GB/s")} that is the links' latency. Teacher and samples communicate their results alone.
- **Memory** of a device: {gigabytes["weights"]:.1f} GB of weights in float32, and {gigabytes["call_bytes"]:.1f} GB for
  a call of one sample, or {gigabytes["derivatives_bytes"]:.1f} GB with derivatives along {TANGENTS} directions, which
  `--config.learn.tangents={TANGENTS}` takes at a time, as XLA compiles the networks for a CPU. They include attention's
  weights of 4096 x 4096 positions, which the default of JAX's attention forms on all devices.
  Devices have {_listed("memory", 1e9, "GB")}.
- Peaks, memory and links are those of NVIDIA's data sheet (without sparsity; NVLink) and of Google's documentation of
  the TPU v5e. Links between hosts are slower.
"""


def _derivative(found: Costs) -> float:
    return (found.derivatives - found.call) / TANGENTS


def _row(found: Costs, accelerator: Accelerator, count: int, utilisation: float) -> str:
    """A line of the table: as long as a device takes for the samples that it gets."""
    flops = [
        TEACHER_NFE * math.ceil(PAIRS / count) * found.call,
        LEARNING_CALLS / BATCH * math.ceil(BATCH / count) * _derivative(found),
        *(math.ceil(SAMPLES / count) * (nfe * found.call + found.decode) for nfe in (NFE, USUAL_NFE)),
    ]
    times = [_time(one / (utilisation * accelerator.peak)) for one in flops]
    return f"| {accelerator.name} | {count} | {' | '.join(times)} |"


def _time(seconds: float) -> str:
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (0, "s")) if seconds >= size)
    return f"{seconds / (size or 1):.1f} {unit}"


def _listed(field: str, unit: float, name: str) -> str:
    return ", ".join(f"{getattr(one, field) / unit:g} {name} ({one.name})" for one in ACCELERATORS)


if __name__ == "__main__":
    common.run(main)
