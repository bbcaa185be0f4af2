"""Write what was learned in the form that another program takes.

python -m experiments.export --schedule=runs/docking/schedule.json --format=diffdock --out=runs/docking/diffdock.json

diffdock: the t_schedule of translation, rotation and torsions, one value a step, for its sampler with ode=True.
"""

import json
from pathlib import Path

from absl import flags

from experiments import common
from ld3_jax import learning
from ld3_jax.disk import check_writable, write_atomically
from ld3_jax.poses import PoseNoise, diffdock

_SCHEDULE = common.path_flag("schedule", None, "A schedule.json that experiments.train wrote.")
_OUT = common.path_flag("out", None, "Where to write.")
# Open to additions: from what was learned to what JSON takes.
FORMATS = {"diffdock": lambda learned: diffdock.schedules(learned, PoseNoise())}
_FORMAT = flags.DEFINE_enum("format", None, sorted(FORMATS), "The program.")
flags.mark_flags_as_required(["schedule", "out", "format"])


def main() -> None:
    out = Path(_OUT.value)
    check_writable(out)
    try:
        record = FORMATS[_FORMAT.value](learning.load(_SCHEDULE.value))
    except ValueError as error:
        raise ValueError(f"{_SCHEDULE.value}: {error}") from error
    write_atomically(out, (json.dumps(record, indent=2) + "\n").encode())
    print(f"wrote {out}: {_FORMAT.value}, {record['inference_steps']} steps")


if __name__ == "__main__":
    common.run(main)
