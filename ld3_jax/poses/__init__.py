"""Poses of a ligand in a pocket, R^3 x SO(3) x torus: molecular docking with the solvers and learners of images.

noise = poses.PoseNoise()
model = poses.noise_model(data, noise)
x_T = poses.draw_prior(key, 100, torsions=5)
pairs = ld3_jax.make_pairs(model, noise, x_T)
pairs = pairs._replace(x_0=poses.atoms(ligand, pairs.x_0))
student = ld3_jax.make_student(
    model, noise, ld3_jax.Solver("dpmpp", 6, 2), poses.mean_square(ligand), Partial(poses.atoms, ligand)
)
learned = ld3_jax.fit(student, pairs, key, parametrisation=ld3_jax.ByPart())
"""

from ld3_jax.poses import diffdock, kernels, rotations
from ld3_jax.poses.ligand import Ligand, atoms, make_ligand, mean_square
from ld3_jax.poses.mixture import log_density, noise_model
from ld3_jax.poses.pose import (
    POSES,
    Pose,
    PoseNoise,
    RotationNoise,
    TorsionNoise,
    TranslationNoise,
    add_noise,
    difference,
    draw_prior,
    retract,
)

__all__ = [
    "POSES",
    "Ligand",
    "Pose",
    "PoseNoise",
    "RotationNoise",
    "TorsionNoise",
    "TranslationNoise",
    "add_noise",
    "atoms",
    "diffdock",
    "difference",
    "draw_prior",
    "kernels",
    "log_density",
    "make_ligand",
    "mean_square",
    "noise_model",
    "retract",
    "rotations",
]
