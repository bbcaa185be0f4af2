"""Distances between the distributions of a student's samples and the teacher's."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ld3_jax import metrics
from ld3_jax.pretrained import Pretrained


def check(model: Pretrained, count: int) -> None:
    """Refuse samples that are no images, and fewer of them than features.

    Raises:
        ValueError: it says how many are needed.
    """
    states = jax.ShapeDtypeStruct((1, *model.shape), jnp.float32)
    shape = getattr(jax.eval_shape(model.decode, states), "shape", ()) if model.schedule.space.flat else ()
    if len(shape) != 4:
        raise ValueError(f"--distances compares images; the samples of {model} are none")
    features = max(extract(np.zeros(shape)).shape[1] for extract in metrics.EXTRACTORS.values())
    if count <= features:
        raise ValueError(f"--distances needs more samples than the {features} features of one, got --num={count}")


def print_distances(samples: Mapping[str, np.ndarray], targets: np.ndarray) -> dict[str, Any]:
    """Print the distances of samples to the teacher's from the same noise, nearest first; their Frechet distances are
    smaller than from other noise.

    Args:
        samples: images by name.
        targets: the teacher's.

    Returns:
        What is printed, by extractor and name; of KID a value and its interval.
    """
    found: dict[str, Any] = {}
    width = max(10, *(len(name) + 2 for name in samples))
    for extractor, extract in metrics.EXTRACTORS.items():
        real = extract(targets)
        of_real = metrics.statistics([real])
        features = {name: extract(images) for name, images in samples.items()}
        distances = {name: metrics.frechet(metrics.statistics([of]), of_real) for name, of in features.items()}
        print(f"\ndistances to the teacher's {len(targets)} samples, of {extractor} ({real.shape[1]} features):\n")
        print(f"  {'grid':<{width}}{'Frechet':>11}{'KID (95 % interval)':>36}{'precision':>11}{'recall':>9}")
        found[extractor] = {}
        for name in sorted(distances, key=distances.__getitem__):
            covered, kid = metrics.precision_recall(real, features[name]), metrics.kid(features[name], real)
            print(
                f"  {name:<{width}}{distances[name]:>11.4g}{kid!s:>36}{covered.precision:>11.3f}{covered.recall:>9.3f}"
            )
            found[extractor][name] = {"frechet": distances[name], "kid": kid, **covered._asdict()}
    print(flush=True)
    return found
