"""Draw samples with a learned schedule.

python -m experiments.sample --schedule=runs/quasar5/schedule.json --num=64 --out=runs/quasar5/samples.png
"""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import common, models
from ld3_jax import checkpoint, metrics, teacher

_SCHEDULE = flags.DEFINE_string("schedule", None, "A schedule.json that experiments.train wrote.")
_NFE = flags.DEFINE_integer(
    "nfe", None, "Network calls, if a curve was learned; default the schedule's.", lower_bound=1
)
_NUM = flags.DEFINE_integer("num", 64, "How many samples.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Where to write: a picture (.png) or the arrays themselves (.npy).")
_SEED = flags.DEFINE_integer("seed", 1, "Seed of the noise.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "The most samples to draw at a time.", lower_bound=1)
flags.mark_flags_as_required(["schedule", "out"])


def main() -> None:
    out = Path(_OUT.value)
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"--out must end in .png or .npy, got {out.name!r}")
    learned, model = models.of_schedule(Path(_SCHEDULE.value), _NFE.value)
    student = metrics.make_student(model.noise, model.schedule, learned.method, decode=model.decode)
    sharding = common.batch_sharding()
    noise_key, cond_key = jax.random.split(jax.random.key(_SEED.value))
    x_T = model.schedule.prior_scale * teacher.draw_noise(noise_key, jnp.arange(_NUM.value), model.shape)
    cond = model.draw_condition(cond_key, _NUM.value) if model.draw_condition else None
    samples = metrics.run_in_batches(
        student,
        *checkpoint.times(learned),
        teacher.Pairs(x_T, x_T, cond),
        checkpoint.coefficients(learned),
        batch_size=_BATCH.value,
        sharding=sharding,
    )
    samples = np.asarray(samples)
    what = f"{model}, {learned.method}, learned schedule"
    if out.suffix == ".png":
        model.gallery(out, samples, what)
    else:
        buffer = io.BytesIO()
        np.save(buffer, samples)
        checkpoint.write_atomically(out, buffer.getvalue())
    print(f"wrote {out}: {len(samples)} samples of {what}")


if __name__ == "__main__":
    common.run(main)
