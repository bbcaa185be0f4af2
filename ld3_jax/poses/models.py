"""Docking by name: complexes with the exact score of their known poses, and the network that was trained on one."""

from functools import partial
from pathlib import Path

import numpy as np
from jax.tree_util import Partial

from ld3_jax.poses import mixture, molecules, network, view
from ld3_jax.poses.ligand import atoms, mean_square
from ld3_jax.poses.pose import PoseNoise, draw_prior
from ld3_jax.pretrained.model import OnProgress, Pretrained, Settings, register


@register(molecules.TRAJECTORY, *molecules.CRYSTALS)
def load(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """The exact score of a ligand's known poses in its pocket; samples are the positions of its atoms."""
    found, noise = molecules.load(name), PoseNoise()
    return _of_poses(name, settings, found, mixture.noise_model(found.poses, noise), noise)


@register(f"{molecules.TRAJECTORY}_network", settings=("file",))
def load_network(name: str, settings: Settings, on_progress: OnProgress) -> Pretrained:
    """A network that was trained on the trajectory's poses; its weights come with this package or from a file."""
    found, noise = molecules.load(molecules.TRAJECTORY), PoseNoise()
    context = network.context_of(found)
    params = network.read(Path(settings.file) if settings.file else network.ERGOTAMINE, context)
    return _of_poses(name, settings, found, network.noise_model(params, context, noise), noise)


def _of_poses(name: str, settings: Settings, found: molecules.Complex, model: Partial, noise: PoseNoise) -> Pretrained:
    torsions, title = len(found.ligand.bonds), f"{found.name} in its pocket"
    drawn = molecules.elements(found.molecule), molecules.bonds(found.molecule), found.pocket
    return Pretrained(
        name,
        settings,
        model,
        noise,
        found.ligand.positions.shape,
        shown=6,
        display=lambda samples, like: view.images(np.asarray(samples), np.asarray(like), *drawn),
        decode=Partial(atoms, found.ligand),
        draw_prior=lambda key, count, first=0: draw_prior(key, count, torsions, noise, first),
        squared_error=mean_square(found.ligand),
        differences=False,
        formats={
            ".sdf": partial(molecules.sdf, found),
            ".html": lambda samples: view.page(title, {"samples": np.asarray(samples)}, *drawn).encode(),
        },
    )
