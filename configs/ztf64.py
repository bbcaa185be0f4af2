"""Galaxies of the Zwicky Transient Facility, 64 x 64 pixels.

python -m experiments.train --config=configs/ztf64.py --workdir=runs/ztf64

Not measured.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration on the network ztf64."""
    c = default.get_config()
    c.network.name = "ztf64"
    return c
