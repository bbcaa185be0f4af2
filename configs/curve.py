"""Times for 4, 6, 8 and 10 network calls, learned together; those for other numbers are interpolated.

python -m experiments.train    --config=configs/curve.py --workdir=runs/curve
python -m experiments.evaluate --schedule=runs/curve/schedule.json --nfe=7

Measured with the benchmark (docs/results.md): squared error against the teacher on 200 held-out noises, mean, best
hand-made grid -> read off the curve (times learned for that number alone): 5 calls 0.01038 -> 0.00436 (0.00404), 7
calls 0.00282 -> 0.00124 (0.00119), 9 calls 0.00125 -> 0.00045 (0.00039).
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
