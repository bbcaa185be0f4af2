"""Lensed quasars: the solver's coefficients, learned on from times that were learned before.

python -m experiments.train --config=configs/galaxy_coefficients.py --workdir=runs/quasar5-coefficients \
    --config.solver.nfe=5 --config.learn.init=runs/quasar5/schedule.json

Measured on 2 CPU cores: learning takes about a minute, compilation included. Squared error against the teacher on 100
held-out noises, mean (median): 0.01025 (0.00384); times and shifts alone, configs/galaxy.py: 0.01130 (0.00433).
"""

from ml_collections import config_dict

from configs import coefficients, galaxy


def get_config() -> config_dict.ConfigDict:
    """The quasars of configs/galaxy.py, everything learned."""
    c = coefficients.after_times(galaxy.get_config())
    c.learn.init = "runs/quasar5/schedule.json"  # from a grid these rates do not get far
    return c
