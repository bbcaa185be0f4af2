"""One curve of times for every number of network calls, learned at 4, 6, 8 and 10 together.

python -m experiments.train    --config=configs/curve.py --workdir=runs/curve
python -m experiments.evaluate --schedule=runs/curve/schedule.json --nfe=7

Measured on 2 CPU cores: learning takes about a minute and a half, compilation included. Squared error against the
teacher on 200 held-out noises, mean, best hand-made grid -> read off the curve (learned for that number alone): 5 calls
0.00911 -> 0.00530 (0.00474), 7 calls 0.00289 -> 0.00136 (0.00131), 9 calls 0.00120 -> 0.00046 (0.00059), 12 calls
0.00028 -> 0.00021 (0.00020).
"""

from ml_collections import config_dict

from configs import hsc32, times


def get_config() -> config_dict.ConfigDict:
    """The galaxies of configs/hsc32.py with a curve in place of a schedule."""
    return with_curve(hsc32.get_config())


def with_curve(c: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Change a configuration so that a curve is learned."""
    c.learn.curve = True
    return times.with_times_alone(c)
