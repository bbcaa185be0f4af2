"""Galaxies as the Roman Space Telescope will see them, 120 x 120 pixels.

python -m experiments.train --config=configs/roman120.py --workdir=runs/roman120

Not measured.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration on the network roman120."""
    c = default.get_config()
    c.network.name = "roman120"
    return c
