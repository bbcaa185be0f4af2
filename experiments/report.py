"""Write what the benchmark has measured as one HTML page, which needs nothing beside itself, and as CSV beside it.

python -m experiments.report --benchmark=docs/benchmark.json --out=docs/report.html
"""

from pathlib import Path

from absl import flags

from experiments import common, measurements, page
from ld3_jax.disk import check_writable

_BENCHMARK = common.path_flag("benchmark", None, "The JSON file that experiments.benchmark wrote.")
_OUT = common.path_flag("out", None, "The page, a name with .html; the CSV gets the same name.")
flags.register_validator("out", lambda out: out is None or out.endswith(".html"), "it must end with .html")
flags.mark_flags_as_required(["benchmark", "out"])


def main() -> None:
    path, out = Path(_BENCHMARK.value), Path(_OUT.value)
    for written in (out, out.with_suffix(".csv")):
        check_writable(written)
    record = measurements.read(path)
    if not record.get("rows"):
        raise ValueError(f"{path}: nothing has been measured; python -m experiments.benchmark --out={path} does it")
    page.write(record, out)
    print(f"{out} and {out.with_suffix('.csv')}: {len(record['rows'])} rows")


if __name__ == "__main__":
    common.run(main)
