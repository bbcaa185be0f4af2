"""What learning and sampling cost for Stable Diffusion 1.5 on one device and on many.

python -m experiments.scaling --out=docs/scaling.md

FLOPs are counted: the networks are traced on shapes. On a GPU or TPU a call, its derivatives and the decoding are
measured with random weights, and a JSON file beside the page keeps that. On a CPU the page is written with what the
file has.
"""

import json
import math
from pathlib import Path
from string import Template
from typing import NamedTuple

import jax

from experiments import command
from ld3_jax.disk import check_writable, read_json, write_atomically
from ld3_jax.networks import latent
from ld3_jax.networks.costs import REPEATS, TANGENTS, Costs, Measured, counted, measured
from ld3_jax.ranges import COUNT, POSITIVE, TEXT, check

_OUT = command.path_flag("out", "docs/scaling.md", "Where to write the page.")

_TEMPLATE = Path(__file__).with_suffix(".md")
NETWORK = latent.NETWORKS["stable_diffusion"]
DEVICES = (1, 8, 256)
SAMPLES, NFE, USUAL_NFE = 50_000, 5, 50
TIMED = 4  # samples at a time
PAIRS, TEACHER_NFE, BATCH = 100, 40, 10  # configs/default.py
LEARNING_CALLS = 27_600  # of README.md's first command, in report.json: no matter which network
NUMBERS = 24  # that Gauss-Newton solves for with 5 calls
STEP_BYTES = 4 * (NUMBERS**2 + NUMBERS + 1)


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
        check(known.seconds._asdict(), dict.fromkeys(Costs._fields, POSITIVE))
        check(known._asdict(), dict.fromkeys(known._fields[1:4], COUNT._replace(most=2**60)) | {"device": TEXT})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not what experiments.scaling writes ({error})") from error
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


def page(flops: Costs, known: Measured) -> str:
    """The page, in Markdown."""
    names = ("a call", "a derivative of it along one direction", "decoding")
    costs = [
        f"| {name} | {count / 1e12:.2f} | {1e3 * seconds:.1f} ms | {count / seconds / 1e12:.0f} |"
        for name, count, seconds in zip(names, flops, known.seconds, strict=True)
    ]
    peak = peak_of(known.device)
    rows = [
        _row(one.name, count, Costs(*(seconds * peak / one.peak for seconds in known.seconds)))
        for one in ACCELERATORS
        for count in DEVICES
    ]
    of_weights, of_call, of_derivatives = (f"{size / 1e9:.1f} GB" for size in known[1:4])
    return Template(_TEMPLATE.read_text()).substitute(
        **{"nfe": NFE, "usual_nfe": USUAL_NFE, "samples": f"{SAMPLES:,}", "timed": TIMED, "repeats": REPEATS},
        **{"pairs": PAIRS, "teacher_calls": f"{PAIRS * TEACHER_NFE:,}", "batch": BATCH, "tangents": TANGENTS},
        **{"learning_calls": f"{LEARNING_CALLS:,}", "numbers": NUMBERS, "step_bytes": f"{STEP_BYTES:,}"},
        **{"costs": "\n".join(costs), "rows": "\n".join(rows), "device": known.device, "jax": known.jax},
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
