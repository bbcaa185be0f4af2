"""The solver's coefficients learned together with its times, by Levenberg-Marquardt.

python -m experiments.train --config=configs/coefficients.py --workdir=runs/coefficients

Measured on 2 CPU cores: learning takes about a minute, compilation included. Squared error against the teacher on 200
held-out noises, mean (median) and median of three seeds: 0.00153 (0.00094); times and shifts alone, configs/hsc32.py:
0.00413 (0.00226).
"""

from ml_collections import config_dict

from configs import hsc32


def get_config() -> config_dict.ConfigDict:
    """The galaxies of configs/hsc32.py with everything learned."""
    return with_coefficients(hsc32.get_config())


def with_coefficients(c: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Change a configuration so that everything is learned: times, network times and coefficients.

    A few steps of second order on all pairs, on the root error, which a few far-off samples cannot dominate.
    """
    learn = c.learn
    c.data.train, c.data.valid = 100, 0
    learn.what = ("times", "shifts", "coefficients")
    learn.learner, learn.loss = "lm", "rmse"
    learn.steps, learn.batch_size, learn.validate_every = 6, c.data.train, 1
    return c


def after_times(c: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Change a configuration so that it goes on from learned times: everything is learned, at lower rates.

    Where to go on from is `learn.init`, the schedule.json of a run.
    """
    learn = c.learn
    learn.what = ("times", "shifts", "coefficients")
    learn.logits_rate, learn.shifts_rate, learn.coefficients_rate = 0.036, 0.015, 0.015
    return c
