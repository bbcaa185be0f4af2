"""Galaxies of the Hyper Suprime-Cam survey, 32 x 32 pixels.

python -m experiments.train --config=configs/hsc32.py --workdir=runs/hsc32

Measured on 2 CPU cores: learning takes about 15 s, compilation included. Squared error against the teacher on 200
held-out noises, mean (median) and median of three seeds: 0.00413 (0.00226); best hand-made grid, quadratic: 0.00911
(0.00513).
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration on the network hsc32."""
    c = default.get_config()
    c.network.name = "hsc32"
    return c
