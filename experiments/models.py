"""The pre-trained models that configurations can name, and how a schedule finds its model again."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
from jax.sharding import NamedSharding
from jax.tree_util import Partial
from jaxtyping import Array
from ml_collections import config_dict

from experiments import common, families
from experiments.families import PretrainedModel, Settings
from experiments.plan import Plan
from ld3_jax import checkpoint, metrics, teacher, timesteps
from ld3_jax.checkpoint import LearnedSchedule
from ld3_jax.solvers import Method
from ld3_jax.teacher import Pairs

FAMILIES = {
    "edm": families.edm_model,
    "galaxy": families.galaxy_model,
    "gaussian": families.gaussian_model,
    "latent": families.latent_model,
}


def build(settings: Settings) -> PretrainedModel:
    """Load a pre-trained model.

    Raises:
        ValueError: if the family, the name or another setting is unknown, or a file does not hold that model.
        FileNotFoundError, ConnectionError: if the weights are neither here nor to be had.
    """
    if settings.family not in FAMILIES:
        raise ValueError(f"network.family must be one of {sorted(FAMILIES)}, got {settings.family!r}")
    return FAMILIES[settings.family](settings)


def settings_of(config: config_dict.ConfigDict) -> Settings:
    """What a configuration says of its network."""
    return Settings(**config.network, random_weights=config.data.random_weights)


def identity(model: PretrainedModel) -> dict[str, str | float | bool]:
    """What a schedule must say of the model that it was learned for; the digest is of weights and guidance."""
    return dataclasses.asdict(model.settings) | {"digest": teacher.digest(model.noise)}


def of_schedule(path: Path, nfe: int | None = None) -> tuple[LearnedSchedule, PretrainedModel]:
    """Read a schedule, and load the model that it was learned for.

    Args:
        path: the schedule.json.
        nfe: read a learned curve off at so many network calls; None: the schedule as it is.

    Raises:
        FileNotFoundError, ValueError: see `checkpoint.load_schedule`, `checkpoint.for_calls` and `build`.
        ValueError: if the model of that name has other weights now.
    """
    learned = checkpoint.load_schedule(path)
    missing = [key for key in ("family", "name", "digest") if key not in learned.model]
    if missing:
        raise ValueError(f"{path}: its model lacks {missing}")
    names = [field.name for field in dataclasses.fields(Settings)]
    model = build(Settings(**{name: learned.model[name] for name in names if name in learned.model}))
    here = identity(model)
    if here["digest"] != learned.model["digest"]:
        raise ValueError(f"{path} was learned for another model: {learned.model}, here is {here}")
    return checkpoint.for_calls(learned, learned.method.nfe if nfe is None else nfe, model.schedule), model


def make_data(
    model: PretrainedModel, config: config_dict.ConfigDict, plan: Plan, sharding: NamedSharding | None
) -> tuple[Pairs, Pairs]:
    """The teacher's pairs: those to learn from, and those never seen while learning."""
    t = timesteps.grid(plan.teacher_grid, model.schedule, plan.teacher.n_steps)
    keys = jax.random.split(jax.random.key(config.seed), 2)
    known, test = (
        teacher_pairs(
            label,
            model,
            plan.teacher,
            t,
            key,
            count,
            batch_size=config.teacher.batch_size,
            cache=Path(config.teacher.cache),
            sharding=sharding,
        )
        for label, key, count in (
            ("teacher", keys[0], config.data.train + config.data.valid),
            ("teacher, unseen noise", keys[1], config.data.test),
        )
    )
    return known, test


def teacher_pairs(
    label: str,
    model: PretrainedModel,
    method: Method,
    t: Array,
    key: Array,
    count: int,
    *,
    batch_size: int,
    cache: Path,
    sharding: NamedSharding | None,
) -> Pairs:
    """`teacher.make_pairs` of a pre-trained model with its conditions, decoded, with a progress bar."""
    with common.progress(label, -(-count // batch_size)) as update:
        pairs = teacher.make_pairs(
            model.noise,
            model.schedule,
            method,
            t,
            key,
            count,
            model.shape,
            batch_size=batch_size,
            cache=cache,
            draw_condition=model.draw_condition,
            identity={"family": model.settings.family, "name": model.settings.name},
            sharding=sharding,
            on_batch=lambda done, total: update(done),
        )
    return pairs._replace(x_0=_decode(model.decode, pairs.x_0, batch_size, sharding))


@partial(jax.jit, static_argnums=(2, 3))
def _decode(decode: Partial, states: Array, batch_size: int, sharding: NamedSharding | None) -> Array:
    return metrics.in_batches(decode, states, batch_size, sharding)
