"""Train a network of small images with classes, from scratch, as the model that --config.network.file then names.

python -m experiments.pretrain --config=configs/pretraining/fashion.py --workdir=runs/fashion28

The same command continues an interrupted run, with the same bits. The workdir then holds model.safetensors, samples.png
(a row of samples for each class), loss.png, metrics.jsonl and checkpoints. To learn few steps for that network, give
--config=configs/fashion.py --config.network.file=runs/fashion28/model.safetensors to experiments.train.
"""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_dict

from configs.pretraining import fashion
from experiments import command, workdir
from experiments.configuration import flat
from ld3_jax import checkpoint, datasets, grid, plots, sample
from ld3_jax.disk import write_atomically
from ld3_jax.networks import training, transformer
from ld3_jax.pretrained import images
from ld3_jax.pretrained.model import DTYPES
from ld3_jax.ranges import COUNT, check

_CONFIG = command.config_flag("Configuration file.")
_WORKDIR = command.path_flag("workdir", None, "Where the network, its samples and checkpoints go.")
flags.mark_flags_as_required(["config", "workdir"])

LOG = "metrics.jsonl"
_HELD_OUT, _SHOWN, _CALLS, _REPORT_EVERY = 2000, 10, 36, 25


def main() -> None:
    run(_CONFIG.value, Path(_WORKDIR.value))


def run(config: config_dict.ConfigDict, folder: Path) -> None:
    """Train, continuing an earlier run of the workdir."""
    if (keys := flat(config).keys()) != (wanted := flat(fashion.get_config()).keys()):
        raise ValueError(f"a configuration of pre-training has the keys {[*wanted]}, this one has {[*keys]}")
    check({"train.save_every": config.train.save_every}, {"train.save_every": COUNT})
    seen, unseen = datasets.load(config.data.name, config.data.folder)
    network, recipe, loss = _of(config, seen)
    init, batches, noise = jax.random.split(jax.random.key(config.seed), 3)
    with workdir.held(folder, config):
        fresh = training.begin(transformer.initial(network, init), recipe)
        workdir.claim(folder, config)
        begun = checkpoint.restore(folder / "checkpoints", fresh)
        lines = _read(folder / LOG, int(begun.step))
        evaluate, values = jax.jit(dataclasses.replace(loss, batch_size=_HELD_OUT)), []
        with command.progress("training", recipe.steps) as update:
            data, every = map(jnp.asarray, seen), math.gcd(config.train.save_every, _REPORT_EVERY)
            for state, value in training.train(loss, begun, batches, recipe, *data, every=every):
                values.append(value)
                step = int(state.step)
                update(step, loss=value)
                if step % config.train.save_every == 0 or step == recipe.steps:
                    held_out = float(evaluate(state.average, noise, *map(jnp.asarray, unseen)))
                    lines.append({"step": step, "loss": float(np.mean(values)), "held_out": held_out})
                    _write(folder, network, state, lines, noise)
                    values = []
    if lines:
        print(f"held-out loss {lines[-1]['held_out']:.5f}")
    for name in ("model.safetensors", "samples.png", "loss.png", LOG):
        print(f"wrote {folder / name}")


def _of(
    config: config_dict.ConfigDict, seen: datasets.Labelled
) -> tuple[transformer.Network, training.Recipe, training.Denoising]:
    """The network of a configuration, how it is trained, and its loss."""
    classes, (_, side, _, channels) = len(datasets.DATASETS[config.data.name].classes), seen.images.shape
    net, how = config.network, config.train
    module = transformer.DiffusionTransformer(net.width, net.depth, net.patch, classes, DTYPES[net.dtype])
    recipe = training.Recipe(how.steps, how.batch_size, how.rate, how.average, how.rule)
    levels = (how.log_mean, how.log_deviation)
    loss = training.Denoising(module, classes, recipe.batch_size, how.label_dropout, config.data.flips, *levels)
    return transformer.Network(module, side, channels), recipe, loss


def _read(path: Path, until: int) -> list[dict[str, float]]:
    """The lines of metrics.jsonl up to a step."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line["step"] <= until]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); without it training continues from the checkpoint") from error


def _write(
    folder: Path, network: transformer.Network, state: training.State, lines: list[dict[str, float]], key: jax.Array
) -> None:
    """The network so far, a sheet with a row of samples for each class, the losses; the checkpoint comes last."""
    classes = network.module.label_dim
    labels = jax.nn.one_hot(jnp.arange(classes * _SHOWN) // _SHOWN, classes)
    x_T = transformer.SCHEDULE.prior_scale * jax.random.normal(key, (len(labels), *network.shape))
    times = grid("edm", transformer.SCHEDULE, _CALLS)
    samples = sample(transformer.model(network, state.average), transformer.SCHEDULE, x_T, times, cond=labels)
    plots.image_grid(folder / "samples.png", images.rgb(np.asarray(samples), np.asarray(samples)))
    transformer.write(folder / "model.safetensors", network, state.average)
    plots.training(folder / "loss.png", lines)
    write_atomically(folder / LOG, "".join(json.dumps(line) + "\n" for line in lines).encode())
    checkpoint.save(folder / "checkpoints", int(state.step), state)


if __name__ == "__main__":
    command.run(main)
