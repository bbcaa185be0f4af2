"""Galaxies of the Hyper Suprime-Cam survey, 64 x 64 pixels.

python -m experiments.train --config=configs/hsc64.py --workdir=runs/hsc64

Not measured.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration on the network hsc64."""
    c = default.get_config()
    c.network.name = "hsc64"
    return c
