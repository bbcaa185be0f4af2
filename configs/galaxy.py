"""Lensed quasars.

python -m experiments.train --config=configs/galaxy.py --workdir=runs/galaxy

Measured: docs/results.md.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration, which is for the lensed quasars."""
    return default.get_config()
