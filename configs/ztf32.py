"""Galaxies of the Zwicky Transient Facility, 32 x 32 pixels.

python -m experiments.train --config=configs/ztf32.py --workdir=runs/ztf32

Measured: docs/results.md.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration on the network ztf32."""
    c = default.get_config()
    c.network.name = "ztf32"
    return c
