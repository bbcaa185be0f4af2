"""Lensed quasars.

python -m experiments.train --config=configs/galaxy.py --workdir=runs/galaxy

Measured on 2 CPU cores: learning takes about a minute, compilation included. Squared error against the teacher on 100
held-out noises, mean (median): 0.01101 (0.00440); best hand-made grid, uniform: 0.01781 (0.00762).
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration, which is for the lensed quasars."""
    return default.get_config()
