"""Train the score network of ergotamine's poses, and compare it with the exact score.

python -m experiments.train_poses --out=runs/poses.safetensors

Then --config=configs/docking.py --config.network.name=ergotamine_network --config.network.file=runs/poses.safetensors
uses it; without a file, this name uses the weights in the package.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from experiments import command
from ld3_jax import poses
from ld3_jax.disk import check_writable
from ld3_jax.poses import molecules, network, training

_OUT = command.path_flag("out", None, "Where the weights go, as safetensors.")
_STEPS = flags.DEFINE_integer("steps", training.Recipe.steps, "Steps of Adam.", **command.COUNT)
_BATCH = flags.DEFINE_integer("batch_size", training.Recipe.batch_size, "Noisy poses per step.", **command.COUNT)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first parameters and of the noise.", **command.SEED)
flags.mark_flags_as_required(["out"])

_TIMES, _CHECKED = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), 500


def main() -> None:
    out = Path(_OUT.value)
    check_writable(out)
    found, noise = molecules.load(molecules.TRAJECTORY), poses.PoseNoise()
    context = network.context_of(found)
    recipe = training.Recipe(_STEPS.value, _BATCH.value)
    keys = jax.random.split(jax.random.key(_SEED.value))
    with command.progress("training", recipe.steps) as update:
        for done, loss, params in training.train(keys[0], found.poses, context, noise, recipe):
            update(done, loss=loss)
            if done == recipe.steps:
                network.write(out, params)
    params = network.read(out, context)  # in the precision of the file
    print(f"wrote {out}\nrelative error and cosine of eps in {_CHECKED} noisy poses:")
    for t in _TIMES:
        parts = training.accuracy(params, keys[1], found.poses, context, noise, jnp.asarray(t), _CHECKED)
        shown = (
            f"{name} {float(error):.3f} {float(cosine):.3f}"
            for name, error, cosine in zip(poses.Pose._fields, *parts, strict=True)
        )
        print(f"  t {t:.1f}  " + "   ".join(shown), flush=True)


if __name__ == "__main__":
    command.run(main)
