"""One curve of times for every number of network calls, learned at 4, 6, 8 and 10 together.

python -m experiments.train    --config=configs/curve.py --workdir=runs/curve
python -m experiments.evaluate --schedule=runs/curve/schedule.json --nfe=7

Measured @
"""

from ml_collections import config_dict

from configs import hsc32


def get_config() -> config_dict.ConfigDict:
    """The galaxies of configs/hsc32.py with a curve in place of a schedule."""
    return with_curve(hsc32.get_config())


def with_curve(c: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Change a configuration so that a curve is learned; its shifts are in steps, so their rate is another."""
    c.learn.curve = True
    c.learn.shifts_rate = 0.02
    return c
