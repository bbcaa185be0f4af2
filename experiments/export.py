"""Write what was learned in the form that another program takes.

python -m experiments.export --schedule=runs/quasar5/schedule.json --format=table --out=table.json
python -m experiments.export --schedule=runs/quasar5/schedule.json --format=sigmas --last=zero --out=sigmas.txt --lossy

diffdock: the t_schedule of translation, rotation and torsions, one value a step, for its sampler with ode=True.
table: the schedule.json itself with its table of coefficients, which ld3_jax.interop and its ComfyUI node run.
sigmas: comma-separated noise levels, for ComfyUI's ManualSigmas, A1111, Forge and samplers of k-diffusion.
diffusers-timesteps: for its DPMSolverMultistepScheduler. diffusers-sigmas: for its Euler schedulers.

A list holds times alone. If network times or coefficients were learned, it is not written, unless with --lossy.
"""

import functools
from pathlib import Path

import jax
from absl import flags

from experiments import command, run
from ld3_jax import batches, learning
from ld3_jax.disk import check_writable, read_json, write_atomically
from ld3_jax.interop import exported_lists
from ld3_jax.interop.exported_lists import Listed
from ld3_jax.interop.formats import FORMATS, Source
from ld3_jax.learning import Learned
from ld3_jax.pretrained import Pretrained

run.schedule_flags()
_OUT = command.path_flag("out", None, "Where to write.")
_LAST = flags.DEFINE_enum(
    "last", "kept", ["kept", "zero", "dropped"], "Of sigmas: the last one as it is, as 0, or left out."
)
_LOSSY = flags.DEFINE_bool("lossy", False, "Write a list of times even if more was learned.")
_CHECK = flags.DEFINE_bool("check", False, "Measure what the list changes, on the model that it was learned for.")
_NUM = flags.DEFINE_integer("num", 100, "Of --check: how many noises.", **command.COUNT)
_SEED = flags.DEFINE_integer("seed", 1000, "Of --check: seed of the noise.", **command.SEED)
_BATCH = flags.DEFINE_integer("batch_size", 25, "Of --check: the most samples at a time.", **command.COUNT)


class Source:
    """A schedule.json, and what belongs to it as far as it is asked for: its model may take gigabytes."""

    def __init__(self, path: Path, nfe: int | None):
        self._path, self._nfe = path, nfe
        self.record = read_json(path)

    @functools.cached_property
    def learned(self) -> Learned:
        return learning.load(self._path) if self._nfe is None else self._loaded[0]

    @property
    def model(self) -> Pretrained:
        return self._loaded[1]

    @functools.cached_property
    def table(self) -> dict[str, Any]:
        """The table as JSON holds it: the file's own, or that of its model."""
        if self._nfe is None and isinstance(self.record, dict) and self.record.get("table") is not None:
            plain_tables.from_record(self.record["table"])  # refuses what is none
            return self.record["table"]
        learned, schedule = self.learned, self.model.schedule
        return plain(learned.table(schedule), schedule, learned.t, learned.solver, learned.model.get("predicts"))

    @functools.cached_property
    def _loaded(self) -> tuple[Learned, Pretrained]:
        return run.load_given()


class Written(NamedTuple):
    """The content of a file, what it is in a few words, and the list in it, if it is one."""

    content: str
    what: str
    listed: lists.Listed | None = None


def _diffdock(source: Source) -> Written:
    record = diffdock.schedules(source.learned, PoseNoise())
    return Written(_json(record), f"{record['inference_steps']} steps")


def _table(source: Source) -> Written:
    if flags.FLAGS.nfe is not None:
        raise ValueError("a table of another number of calls is no schedule.json; leave --nfe out")
    table = source.table
    return Written(_json({**source.record, "table": table}), f"{len(table['t'])} network calls")


def _list(name: str, source: Source) -> Written:
    options = {"last": _LAST.value} if name == "sigmas" else {}
    listed = lists.LISTS[name](source.learned, plain_tables.from_record(source.table), **options)
    if listed.lost and not _LOSSY.value:
        raise ValueError(
            f"a list of times cannot hold the {' and '.join(listed.lost)} that were learned; learn with "
            "--config=configs/times.py --config.learn.what=\"('times',)\", or write it all the same with --lossy"
        )
    what, notes = f"{len(listed.values)} numbers", [*listed.notes, *(f"not in it: {name}" for name in listed.lost)]
    if listed.record is None:
        return Written(lists.text(listed.values) + "\n", what, listed)
    values = {name.removeprefix("diffusers-"): listed.values}
    return Written(_json({"format": name, **values, **listed.record, "notes": notes}), what, listed)


# Open to additions: from what was learned to a file's content.
FORMATS: dict[str, Callable[[Source], Written]] = {
    "diffdock": _diffdock,
    "table": _table,
    **{name: functools.partial(_list, name) for name in lists.LISTS},
}
_FORMAT = flags.DEFINE_enum("format", None, sorted(FORMATS), "The program.")
flags.mark_flags_as_required(["schedule", "out", "format"])


def main() -> None:
    out, path = Path(_OUT.value), run.given_schedules()[0]
    of_lists, of_sigmas = _CHECK.value or _LOSSY.value, _LAST.value != "kept"
    if (of_lists and _FORMAT.value not in lists.LISTS) or (of_sigmas and _FORMAT.value != "sigmas"):
        raise ValueError(
            f"--check and --lossy are for lists of times ({', '.join(lists.LISTS)}), --last is for sigmas, "
            f"got --format={_FORMAT.value}"
        )
    check_writable(out)
    source = Source(path, flags.FLAGS.nfe)
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

    @jax.jit
    def samples(table: Table) -> Any:
        def of_batch(inputs: tuple[Any, Any]) -> Any:
            return integrate(model.model, model.schedule, learned.solver, table, inputs[0], cond=inputs[1], remat=False)

        return batches.in_batches(of_batch, (x_T, cond), _BATCH.value)

    ours, theirs = (
        np.asarray(samples(table))
        for table in (learned.table(model.schedule), lists.as_run(listed, learned, model.schedule))
    )
    distance, size = np.mean((ours - theirs) ** 2), np.mean(ours**2)
    print(
        f"distance of its samples from those of what was learned, {_NUM.value} noises: squared {squared:.3g}, "
        f"relative {relative:.3g}"
    )


if __name__ == "__main__":
    command.run(main)
