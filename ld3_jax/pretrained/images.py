"""What models of images share: how their classes are drawn, and how their pixels are shown."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray


def draw_classes(key: PRNGKeyArray, count: int, classes: int, first: int) -> Int[Array, "count"]:
    """Classes of `count` samples from number `first` on, each fixed by the key and its number."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(count))
    return jax.vmap(lambda one: jax.random.randint(one, (), 0, classes))(keys)


def rgb(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as `Pretrained.display` has them."""
    return (images + 1) / 2
