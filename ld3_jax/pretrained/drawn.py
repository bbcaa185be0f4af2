"""What is drawn from a pre-trained model: the teacher's pairs, and any number of samples with a learned schedule."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray, PyTree

from ld3_jax import plots
from ld3_jax.batches import check_finite, in_batches, to_host
from ld3_jax.learning import Learned, make_student
from ld3_jax.learning.student import run_in_batches
from ld3_jax.pretrained import Pretrained
from ld3_jax.teacher import Pairs, Teacher, make_pairs


def teacher_pairs(
    model: Pretrained,
    teacher: Teacher,
    key: PRNGKeyArray,
    count: int,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    first: int = 0,
    among: int = 0,
) -> Pairs:
    """The teacher's pairs from the noise of a key, from number `first` on, decoded; see `make_pairs`.

    With `among`, they are chosen among this many noises.
    """
    drawn, chosen = model.draw(key, among or count, first), {"choose": count} if among else {}
    pairs = make_pairs(model.model, model.schedule, *drawn, teacher=teacher, on_batch=on_batch, **chosen)
    return pairs._replace(x_0=_decode(model.decode, pairs.x_0, teacher.batch_size))


def check_model(record: Mapping[str, Any], model: Pretrained) -> None:
    """Refuse a model that is not the one that a schedule was learned for.

    Args:
        record: `Learned.model`.
        model: the model at hand.

    Raises:
        ValueError: it names what differs.
    """
    here = model.identity()
    other = [
        f"{key} {record[key]!s:.40}, here {here.get(key)!s:.40}"
        for key in ("digest", "decoder", "predicts")
        if key in record and here.get(key) != record[key]
    ]
    if other:
        raise ValueError(f"it was learned for another model {record['name']}: {'; '.join(other)}")


def batches(
    learned: Learned, model: Pretrained, firsts: Iterable[int], *, num: int, size: int, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Draw batches; one is computed while the previous one is yielded.

    Args:
        learned: what to sample with.
        model: the model that it was learned for.
        firsts: the number of each batch's first sample.
        num: how many samples there are in all; the last batch is cut there.
        size: size of a batch.
        seed: seed of the noise. Seed and number fix a sample's noise and condition.

    Yields:
        The number of a batch's first sample, and the samples, decoded, on the host.

    Raises:
        FloatingPointError: if samples are not finite; it says which.
    """
    student = make_student(model.model, model.schedule, learned.solver, decode=model.decode)
    key, drawn = jax.random.key(seed), None
    for first in firsts:
        now = first, run_in_batches(student, learned.discretization, *model.draw(key, size, first), batch_size=size)
        if drawn:
            yield _to_host(*drawn, num)
        drawn = now
    if drawn:
        yield _to_host(*drawn, num)


def _to_host(first: int, samples: jax.Array, num: int) -> tuple[int, np.ndarray]:
    samples = samples[: num - first]
    check_finite(samples, "a batch of samples", first=first)
    return first, to_host(samples)


def formats(model: Pretrained) -> list[str]:
    """The formats of files of samples; see `contents`."""
    return ["npz", *(["png"] if model.display else []), *(ending[1:] for ending in model.formats)]


def contents(model: Pretrained, samples: np.ndarray, format: str) -> list[bytes]:
    """Samples as the contents of files.

    Args:
        model: their model.
        samples: the decoded samples.
        format: "png": a picture of each sample, each with its own scale; "npz": the array `samples`; "npy"; or one of
            the model's own formats.
    """
    display = model.display
    if format == "png" and display:
        return [plots.png(display(one, one)[0]) for one in samples[:, None]]
    if f".{format}" in model.formats:
        return [model.formats[f".{format}"](samples)]
    buffer = io.BytesIO()
    np.savez(buffer, samples=samples) if format == "npz" else np.save(buffer, samples)
    return [buffer.getvalue()]


@partial(jax.jit, static_argnums=2)
def _decode(decode: Partial, states: PyTree, batch_size: int) -> PyTree:
    return in_batches(decode, states, batch_size)
