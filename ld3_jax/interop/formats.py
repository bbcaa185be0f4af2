"""The formats in which other programs take a learned schedule: a table by name, open to additions.

formats.FORMATS["mine"] = formats.Format(lambda source: formats.Written(formats.json_text(source.table()), "a table"))
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ld3_jax.interop import exported_lists
from ld3_jax.interop.exported_lists import Listed
from ld3_jax.interop.standalone.table import from_record
from ld3_jax.learning import Learned
from ld3_jax.noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class Source:
    """The learned schedule to export.

    Attributes:
        learned: the learned schedule.
        record: the content of its schedule.json; {} if it is for another number of calls than the file.
        schedule: schedule() -> its model's noise schedule, called only if needed: a model may take gigabytes.
    """

    learned: Learned
    record: dict[str, Any]
    schedule: Callable[[], NoiseSchedule]

    def table(self) -> dict[str, Any]:
        """The table as JSON holds it: the file's own, or one made with its model.

        Raises:
            ValueError: if it is damaged, or states are not vectors with one time for all.
        """
        if self.record.get("table") is not None:
            from_record(self.record["table"])
            return self.record["table"]
        schedule = self.schedule()
        table = self.learned.plain_table(schedule)
        if table is None:
            raise ValueError(f"a table of plain numbers is of vectors with one time for all, got {schedule}")
        return table


class Written(NamedTuple):
    """The content of a file, a short description, its differences from the learned schedule, and its list, if any."""

    content: str
    what: str
    notes: Sequence[str] = ()
    listed: Listed | None = None


class Format(NamedTuple):
    """One format.

    Attributes:
        write: write(source, **options) -> Written.
        is_list: whether it holds only times, as a list that `exported_lists.as_run` can run.
        options: the keywords that `write` takes.
    """

    write: Callable[..., Written]
    is_list: bool = False
    options: tuple[str, ...] = ()


def json_text(record: Any) -> str:
    """A record as the content of a file."""
    return json.dumps(record, indent=2) + "\n"


def _table(source: Source) -> Written:
    if not source.record:
        raise ValueError("a table for another number of calls is not a schedule.json; leave --nfe out")
    table = source.table()
    return Written(json_text({**source.record, "table": table}), f"{len(table['t'])} network calls")


def _list(listing: Callable[..., Listed], source: Source, **options: Any) -> Written:
    table = from_record(source.table())
    listed = listing(source.learned, table, **options)
    below = f"it starts from an image with noise {table.levels[0]:.5g}, not from noise alone"
    notes = [*[below] * (table.full_noise is not None), *listed.notes, *(f"not in it: {part}" for part in listed.lost)]
    if listed.record is None:
        content = exported_lists.text(listed.values) + "\n"
    else:
        content = json_text({**listed.record, "notes": notes})
    return Written(content, f"{len(listed.values)} numbers", notes, listed)


FORMATS = {
    "table": Format(_table),
    "sigmas": Format(partial(_list, exported_lists.sigmas), is_list=True, options=("last",)),
    "diffusers-timesteps": Format(partial(_list, exported_lists.diffusers_timesteps), is_list=True),
    "diffusers-sigmas": Format(partial(_list, exported_lists.diffusers_sigmas), is_list=True),
}
