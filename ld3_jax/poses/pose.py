"""Poses of a ligand: a point of R^3 x SO(3) x torus, how updates move it, its noise and its prior.

Reference: Corso et al., arXiv:2210.01776 (DiffDock).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ld3_jax.noise_schedule import NoiseSchedule
from ld3_jax.poses import kernels, rotations
from ld3_jax.schedules import VEGeometric
from ld3_jax.space import Space


class Pose(NamedTuple):
    """A pose, an update of one (with a rotation vector in the frame of the body), or a value for each of its parts."""

    translation: PyTree[Array]  # (..., 3) in angstrom
    rotation: PyTree[Array]  # (..., 4) a unit quaternion; of an update (..., 3) a rotation vector
    torsions: PyTree[Array]  # (..., m) angles in radians


def _turned(q: Array, v: Array) -> Array:
    return rotations.normalized(rotations.product(q, rotations.exp(v)))


def _vector(q: Array) -> Array:
    return q[..., 1:]


def _wrapped(angles: Array, update: Array) -> Array:
    return kernels.wrap(angles + update)


# Translations are vectors, but they use the noise form of solvers, like the other parts.
_SPACES = Pose(Space(flat=False), Space(_turned, _vector, flat=False), Space(_wrapped, flat=False))


def retract(base: Pose, update: Pose) -> Pose:
    """The pose that an update moves a base to: x + u, R exp(v), torsions modulo full turns.

    v is in the frame of the body, and so is the history of multistep solvers: rotating the whole changes no update.
    """
    return Pose(*(space.retract(*of_part) for space, *of_part in zip(_SPACES, base, update, strict=True)))


def difference(pose: Pose, base: Pose) -> Pose:
    """The update that moves the base to the pose, the shortest one: the inverse of `retract`."""
    return Pose(
        pose.translation - base.translation,
        rotations.log(rotations.product(rotations.inverse(base.rotation), pose.rotation)),
        kernels.wrap(pose.torsions - base.torsions),
    )


def _tangent(pose: Pose) -> Pose:
    return Pose(*(space.tangent(part) for space, part in zip(_SPACES, pose, strict=True)))


def _join(values: Sequence[Any]) -> Pose:
    return Pose(*values)


POSES = Space(retract, _tangent, _join, flat=False)


@dataclass(frozen=True)
class TranslationNoise(VEGeometric):
    """Normal noise of translations, in angstrom."""

    sigma_min: float = 0.1
    sigma_max: float = 19.0
    space = _SPACES.translation


@dataclass(frozen=True)
class RotationNoise(VEGeometric):
    """Isotropic Gaussian noise on SO(3), in radians."""

    sigma_min: float = 0.03
    sigma_max: float = 1.55
    space = _SPACES.rotation


@dataclass(frozen=True)
class TorsionNoise(VEGeometric):
    """Wrapped normal noise of angles, in radians."""

    sigma_min: float = 0.0314
    sigma_max: float = 3.14
    space = _SPACES.torsions


@dataclass(frozen=True)
class PoseNoise(NoiseSchedule):
    """Noise of poses: alpha = 1, and sigma_min (sigma_max / sigma_min)^t for each of the three parts, t in [0, 1].

    The ranges are DiffDock's. If one number stands for all parts, as on standard grids, it is the translation's.

    Attributes:
        translation, rotation, torsions: the noise of each part.

    Raises:
        ValueError: if sigma_max is above 1.6 for rotations or above pi for torsions: the kernels are not exact there.

    Reference: Corso et al., arXiv:2210.01776, appendix.
    """

    translation: TranslationNoise = TranslationNoise()
    rotation: RotationNoise = RotationNoise()
    torsions: TorsionNoise = TorsionNoise()

    t_min, t_max = 0.0, 1.0
    space = POSES

    def __post_init__(self) -> None:
        if self.rotation.sigma_max > 1.6 or self.torsions.sigma_max > math.pi:
            raise ValueError(
                "sigma_max must be at most 1.6 for rotations and at most pi for torsions, "
                f"got {self.rotation.sigma_max} and {self.torsions.sigma_max}"
            )

    @property
    def parts(self) -> tuple[NoiseSchedule, ...]:
        return (self.translation, self.rotation, self.torsions)

    def log_alpha(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self.translation.log_alpha(t)

    def log_sigma(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self.translation.log_sigma(t)

    def inverse_lam(self, lam: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return self.translation.inverse_lam(lam)

    def sigmas(self, t: Pose | Float[Array, ""]) -> Pose:
        """The noise of each part, at one time or at a time for each part."""
        times = t if isinstance(t, Pose) else Pose(t, t, t)
        return Pose(*(part.sigma(time) for part, time in zip(self.parts, times, strict=True)))


def draw_prior(key: PRNGKeyArray, count: int, torsions: int, noise: PoseNoise = PoseNoise(), first: int = 0) -> Pose:
    """Initial poses: a normal translation, a uniform rotation and uniform torsions.

    Each sample has its own key, so it does not depend on what else is drawn.

    Args:
        key: of the draws.
        count: how many.
        torsions: how many torsions a pose has; 0 for a rigid ligand.
        noise: whose largest translation it is.
        first: number of the first sample.
    """

    def one(i: Array) -> Pose:
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        return Pose(
            noise.translation.sigma_max * jax.random.normal(keys[0], (3,)),
            rotations.uniform(keys[1]),
            jax.random.uniform(keys[2], (torsions,), minval=-math.pi, maxval=math.pi),
        )

    return jax.vmap(one)(first + jnp.arange(count))


def add_noise(key: PRNGKeyArray, poses: Pose, sigmas: Pose) -> Pose:
    """Poses with noise of the given scales: a draw from each part's kernel.

    Args:
        key: of the draws.
        poses: (n, ...) poses.
        sigmas: a scalar for each part.
    """
    keys = jax.random.split(key, 3)
    update = Pose(
        sigmas.translation * jax.random.normal(keys[0], poses.translation.shape),
        kernels.draw_igso3(keys[1], sigmas.rotation, poses.rotation.shape[:-1]),
        sigmas.torsions * jax.random.normal(keys[2], poses.torsions.shape),
    )
    return retract(poses, update)
