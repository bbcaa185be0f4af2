"""Write a learned schedule in the format of another program.

python -m experiments.export --schedule=runs/quasar5/schedule.json --format=table --out=table.json
python -m experiments.export --schedule=runs/quasar5/schedule.json --format=sigmas --last=zero --out=sigmas.txt --lossy

diffdock: the t_schedule of translation, rotation and torsions, one value per step, for its sampler with ode=True.
table: the schedule.json itself with its table of coefficients, which ld3_jax.interop and its ComfyUI node run.
sigmas: comma-separated noise levels, for ComfyUI's ManualSigmas, A1111, Forge and samplers of k-diffusion.
diffusers-timesteps: for its DPMSolverMultistepScheduler. diffusers-sigmas: for its Euler schedulers.

A list holds only times. If network times or coefficients were learned, it is written only with --lossy.
"""

import functools
from pathlib import Path

import jax
from absl import flags

from experiments import command, given
from ld3_jax import learning
from ld3_jax.disk import check_writable, read_json, write_atomically
from ld3_jax.interop import exported_lists
from ld3_jax.interop.exported_lists import Listed
from ld3_jax.interop.formats import FORMATS, Source
from ld3_jax.learning import Learned
from ld3_jax.pretrained import Pretrained
from ld3_jax.ranges import check, one_of

given.define_flags()
_OUT = command.path_flag("out", None, "Where to write.")
_LAST = flags.DEFINE_enum(
    "last", "kept", ["kept", "zero", "dropped"], "For sigmas: keep the last one, write it as 0, or leave it out."
)
_LOSSY = flags.DEFINE_bool("lossy", False, "Write a list of times even if more was learned.")
_CHECK = flags.DEFINE_bool("check", False, "Measure what the list changes, on the model that it was learned for.")
_NUM = flags.DEFINE_integer("num", 100, "For --check: how many noises.", **command.COUNT)
_SEED = flags.DEFINE_integer("seed", 1000, "For --check: seed of the noise.", **command.SEED)
_BATCH = flags.DEFINE_integer("batch_size", 25, "For --check: the most samples at a time.", **command.COUNT)
_FORMAT = flags.DEFINE_string("format", None, f"The program: {', '.join(sorted(FORMATS))}.")
flags.mark_flags_as_required(["schedule", "out", "format"])


def main() -> None:
    out, path, name = Path(_OUT.value), given.files()[0], str(_FORMAT.value)
    check({"--format": name}, {"--format": one_of(FORMATS)})
    form, options = FORMATS[name], {} if _LAST.value == "kept" else {"last": _LAST.value}
    if ((_CHECK.value or _LOSSY.value) and not form.is_list) or not options.keys() <= set(form.options):
        raise ValueError(f"--check and --lossy are for lists of times, --last is for sigmas, got --format={name}")
    check_writable(out)
    loaded = functools.cache(given.load)
    learned, record = (learning.load(path), read_json(path)) if flags.FLAGS.nfe is None else (loaded()[0], {})
    try:
        written = form.write(Source(learned, record, lambda: loaded()[1].schedule), **options)
        if written.listed and written.listed.lost and not _LOSSY.value:
            raise ValueError(
                f"a list of times cannot hold the {' and '.join(written.listed.lost)} that were learned; learn with "
                "--config=configs/times.py --config.learn.what=\"('times',)\", or write it all the same with --lossy"
            )
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    write_atomically(out, written.content.encode())
    print(f"wrote {out}: {name}, {written.what}")
    for note in written.notes:
        print(note)
    if _CHECK.value and written.listed is not None:
        _check(written.listed, *loaded())


def _check(listed: Listed, learned: Learned, model: Pretrained) -> None:
    x_T, cond = model.draw(jax.random.key(_SEED.value), _NUM.value)
    squared, relative = exported_lists.distance(listed, learned, model.model, model.schedule, x_T, cond, _BATCH.value)
    print(
        f"distance of its samples from the learned schedule's, {_NUM.value} noises: squared {squared:.3g}, "
        f"relative {relative:.3g}"
    )


if __name__ == "__main__":
    command.run(main)
