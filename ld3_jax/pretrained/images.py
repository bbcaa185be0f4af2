"""What image models share: how their classes are drawn, and how their pixels are shown."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ld3_jax.batches import count_of
from ld3_jax.pretrained.model import Draw


def draw_classes(key: PRNGKeyArray, count: int, classes: int, first: int) -> Int[Array, "count"]:
    """Classes of `count` samples from number `first` on, each fixed by the key and its number."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(count))
    return jax.vmap(lambda one: jax.random.randint(one, (), 0, classes))(keys)


def one_hot(classes: int) -> Draw:
    """Draws one-hot classes, (count, classes)."""

    def draw_condition(key: PRNGKeyArray, count: int, first: int = 0) -> Array:
        return jax.nn.one_hot(draw_classes(key, count, classes, first), classes)

    return draw_condition


def in_rounds(conditions: PyTree) -> Draw:
    """Draw conditions (with a leading axis of samples) in rounds: each once before any is repeated."""
    conditions = jax.tree.map(jnp.asarray, conditions)
    several = count_of(conditions)

    def draw_condition(key: PRNGKeyArray, count: int, first: int = 0) -> PyTree:
        round_, skipped = divmod(first, several)
        keys = [jax.random.fold_in(key, round_ + i) for i in range(-(-(skipped + count) // several))]
        order = jnp.concatenate([jax.random.permutation(one, several) for one in keys])
        return jax.tree.map(lambda leaf: leaf[order[skipped : skipped + count]], conditions)

    return draw_condition


def rgb(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] in the form of `Pretrained.display`; images with one channel become grey."""
    return np.broadcast_to((images + 1) / 2, (*images.shape[:-1], 3))
