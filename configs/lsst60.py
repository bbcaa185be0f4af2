"""Galaxies as the Legacy Survey of Space and Time will see them, 60 x 60 pixels.

python -m experiments.train --config=configs/lsst60.py --workdir=runs/lsst60

Measured: docs/results.md.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration on the network lsst60."""
    c = default.get_config()
    c.network.name = "lsst60"
    return c
