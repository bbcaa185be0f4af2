"""The exact noise prediction for data that are a finite set of poses: an oracle to check every answer against."""

import math

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ld3_jax.poses import kernels
from ld3_jax.poses.pose import Pose, PoseNoise, difference


def noise_model(data: Pose, noise: PoseNoise) -> Partial:
    """The exact noise prediction of equally likely poses under pose noise.

    p_t = mean_k N(x - x_k) IGSO3(R_k^-1 R) prod_j WN(torsion_j - torsion_kj), each with its sigma, and for each part
    eps = -sigma grad log p_t.

    Args:
        data: (k, ...) poses.
        noise: their noise.

    Returns:
        model(poses, t, cond) -> eps, updates with rotation vectors in the body's frame; cond is not used.

    Reference: Corso et al., arXiv:2210.01776, for the noise.
    """
    return Partial(_noise, noise, data)


def log_density(data: Pose, pose: Pose, sigmas: Pose) -> Float[Array, ""]:
    """log p_t of one pose, with respect to volume, the Haar measure (total 1) and the torsions' angles."""
    each, _ = _of_each(data, pose, sigmas)
    return jax.nn.logsumexp(each) - math.log(len(each))


def _noise(noise: PoseNoise, data: Pose, x: Pose, t: Pose | Float[Array, ""], cond: PyTree = None) -> Pose:
    sigmas = noise.sigmas(t)

    def one(pose: Pose) -> Pose:
        each, scores = _of_each(data, pose, sigmas)
        share = jax.nn.softmax(each)
        return jax.tree.map(lambda score, sigma: -sigma * jnp.matmul(share, score, precision="highest"), scores, sigmas)

    return jax.vmap(one)(x)


def _of_each(data: Pose, pose: Pose, sigmas: Pose) -> tuple[Float[Array, "k"], Pose]:
    """The log density of a pose under the kernel around each of the data, and its scores."""
    apart = difference(jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), pose, data), data)
    parts = zip((kernels.gaussian, kernels.igso3, kernels.wrapped_normal), apart, sigmas, strict=True)
    (translation, rotation, torsions), scores = zip(*(kernel(u, sigma) for kernel, u, sigma in parts), strict=True)
    return translation + rotation + torsions.sum(-1), Pose(*scores)
