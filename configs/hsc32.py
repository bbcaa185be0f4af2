"""Galaxies of the Hyper Suprime-Cam survey, 32 x 32 pixels.

python -m experiments.train --config=configs/hsc32.py --workdir=runs/hsc32

Measured: docs/results.md.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration on the network hsc32."""
    c = default.get_config()
    c.network.name = "hsc32"
    return c
