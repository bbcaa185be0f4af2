"""Draw samples with a learned discretisation.

python -m experiments.sample --schedule=runs/quasar5/schedule.json --num=64 --out=runs/quasar5/samples.png
"""

import io
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import common, models, pictures
from ld3_jax.batches import check_finite
from ld3_jax.disk import check_writable, write_atomically
from ld3_jax.learning.student import make_student, run_in_batches

_SCHEDULE = common.path_flag("schedule", None, "A schedule.json that experiments.train wrote.")
_NFE = flags.DEFINE_integer(
    "nfe", None, "Network calls, if a curve was learned; default the schedule's.", lower_bound=1
)
_NUM = flags.DEFINE_integer("num", 64, "How many samples.", **common.COUNT)
_OUT = common.path_flag(
    "out", None, "Where to write: a picture (.png), the arrays themselves (.npy), or of molecules .sdf or .html."
)
_SEED = flags.DEFINE_integer("seed", 1, "Seed of the noise.", **common.SEED)
_BATCH = flags.DEFINE_integer("batch_size", 32, "The most samples to draw at a time.", **common.COUNT)
flags.mark_flags_as_required(["schedule", "out"])


def main() -> None:
    out = Path(_OUT.value)
    check_writable(out)
    learned, model = models.of_schedule(Path(_SCHEDULE.value), _NFE.value)
    endings = [".png", ".npy", *model.formats]
    if out.suffix not in endings:
        raise ValueError(f"--out must end in {', '.join(endings[:-1])} or {endings[-1]}, got {out.name!r}")
    student = make_student(model.model, model.schedule, learned.solver, decode=model.decode)
    x_T, cond = model.draw(jax.random.key(_SEED.value), _NUM.value)
    samples = np.asarray(run_in_batches(student, learned.found, x_T, cond, batch_size=_BATCH.value))
    check_finite(samples, "the samples")
    what = f"{model}, {learned.solver}, learned"
    if out.suffix == ".png":
        samples = samples[: pictures.MOST]
        pictures.gallery(out, model, samples, what)
    elif out.suffix in model.formats:
        write_atomically(out, model.formats[out.suffix](samples))
    else:
        buffer = io.BytesIO()
        np.save(buffer, samples)
        write_atomically(out, buffer.getvalue())
    print(f"wrote {out}: {'the first ' if len(samples) < _NUM.value else ''}{len(samples)} samples of {what}")


if __name__ == "__main__":
    common.run(main)
