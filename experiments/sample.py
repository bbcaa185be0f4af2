"""Draw samples with a learned discretisation: a picture, an array, or any number of them into a folder.

python -m experiments.sample --schedule=runs/quasar5/schedule.json --num=64 --out=runs/quasar5/gallery.png
python -m experiments.sample --schedule=runs/quasar5/schedule.json --num=50000 --batch_size=256 --out=runs/quasar5/many/

A folder is filled batch by batch, in memory that does not grow with the number of samples; after an interruption the
same command continues. Schedule, seed and number fix a sample, up to rounding in batches of another size.
"""

from pathlib import Path

import numpy as np
from absl import flags

from experiments import command, given, workdir
from ld3_jax import plots
from ld3_jax.disk import check_writable, write_atomically
from ld3_jax.pretrained import Pretrained, drawn

given.define_flags()
_NUM = flags.DEFINE_integer("num", 64, "How many samples.", **command.COUNT)
_OUT = command.path_flag(
    "out",
    None,
    "Where to write: a picture (.png), the arrays (.npy), or .sdf or .html for molecules; without an ending, "
    "or with a / at the end, a folder.",
)
_FORMAT = flags.DEFINE_string(
    "format", "npz", "Of the files in a folder: npz (a batch each), png (a sample each), or sdf or html for molecules."
)
_SEED = flags.DEFINE_integer("seed", 1, "Seed of the noise.", **command.SEED)
_BATCH = flags.DEFINE_integer("batch_size", 32, "The most samples to draw at a time.", **command.COUNT)
flags.mark_flags_as_required(["schedule", "out"])

_MOST = 1024  # samples in a picture


def main() -> None:
    out, num, seed = Path(_OUT.value), _NUM.value, _SEED.value
    is_folder = _OUT.value.endswith("/") or not out.suffix
    check_writable(out / "config.json" if is_folder else out)
    learned, model = given.load()
    what = f"samples of {model}, {learned.solver}, learned"
    if is_folder:
        if _FORMAT.value not in drawn.formats(model):
            raise ValueError(f"--format must be one of {drawn.formats(model)} for {model}, got {_FORMAT.value!r}")
        workdir.fill(out, learned, model, num=num, size=_BATCH.value, seed=seed, format=_FORMAT.value)
    else:
        endings = [".png", ".npy", *model.formats]
        if out.suffix not in endings:
            raise ValueError(
                f"--out must end in one of {endings}, or name a folder (no ending, or a / at the end), got {out.name!r}"
            )
        num = min(num, _MOST) if out.suffix == ".png" else num
        size = min(num, _BATCH.value)
        batches = drawn.batches(learned, model, range(0, num, size), num=num, size=size, seed=seed)
        _write(out, model, np.concatenate([samples for _, samples in batches]), what)
    print(f"wrote {out}: {'the first ' if num < _NUM.value else ''}{num} {what}")


def _write(out: Path, model: Pretrained, samples: np.ndarray, what: str) -> None:
    if out.suffix != ".png":
        write_atomically(out, drawn.contents(model, samples, out.suffix[1:])[0])
    elif model.display is None:
        plots.scatter_rows(out, {f"{len(samples)} samples": samples}, what)
    else:
        plots.image_grid(out, model.display(samples, samples))


if __name__ == "__main__":
    command.run(main)
