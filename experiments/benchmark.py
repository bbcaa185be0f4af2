"""Measure the tables of results/benchmark.md: interpolated times, learners, the speed of a large network, use on
other networks, single changes to the default, docking.

python -m experiments.benchmark --out=runs/benchmark.json

Each row is printed and saved once it is measured; rows that the file already has are not measured again. The tables are
written next to it as Markdown. experiments.sweep compares methods on many networks, solvers and numbers of calls.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import jax
from absl import flags

from experiments import ablation, command, tables
from ld3_jax.disk import check_writable, write_atomically

_OUT = command.path_flag("out", None, "A JSON file for the rows.")
_QUICK = flags.DEFINE_bool("quick", False, "One seed, few cases, a small network: minutes instead of hours.")
_USUAL = {
    "interpolation": tables.interpolation_table,
    "learners": tables.learners_table,
    "network": tables.network_table,
    "transfer": tables.transfer_table,
}
TABLES = _USUAL | {"ablation": ablation.ablation_table, "docking": tables.docking_table}
_TABLES = flags.DEFINE_list("tables", list(_USUAL), f"Which of the tables {', '.join(TABLES)}.")
flags.mark_flags_as_required(["out"])

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def main() -> None:
    if unknown := set(_TABLES.value) - set(TABLES):
        raise ValueError(f"--tables takes some of {sorted(TABLES)}, got {sorted(unknown)}")
    out = Path(_OUT.value)
    if out.suffix == ".md" or (out.with_suffix(".md").exists() and not out.exists()):
        raise ValueError(f"the tables are written to {out.with_suffix('.md')}, which is another's; take another --out")
    check_writable(out)
    device, python = jax.devices()[0].device_kind, platform.python_version()
    packages = {name: version(name) for name in _PACKAGES}
    record = {"device": device, "python": python, "packages": packages, "rows": {}} | tables.read(out)
    if record["device"] != device:
        raise ValueError(f"{out} was measured on {record['device']}; take another file with --out")
    rows = record["rows"]
    print(", ".join([device, *(f"{name} {number}" for name, number in packages.items())]))
    for table in _TABLES.value:
        print(f"\n{table}: {' '.join(TABLES[table].__doc__.split())}")
        for name, measure in TABLES[table](_QUICK.value):
            key = f"{table}: {name}{' (quick)' if _QUICK.value else ''}"
            if key not in rows:
                rows[key] = measure()
                record["python"] = _with(record["python"], python)
                record["packages"] = {name: _with(record["packages"].get(name), packages[name]) for name in packages}
                write_atomically(out, (json.dumps(record, indent=2) + "\n").encode())
                jax.clear_caches()  # rows do not share compiled programs
            shown = (f"{column} {tables.shown(value)}" for column, value in rows[key].items())
            print(f"  {name:<24}" + "   ".join(shown), flush=True)
    write_atomically(out.with_suffix(".md"), tables.markdown(record, TABLES).encode())


def _with(known: str | None, here: str) -> str:
    """All versions that rows were measured with."""
    return " and ".join(dict.fromkeys([*(known.split(" and ") if known else []), here]))


if __name__ == "__main__":
    command.run(main)
