"""Standard grids and learned schedules on three more galaxy networks.

python -m experiments.sweep --config=configs/sweeps/networks.py --workdir=runs/networks
"""

from ml_collections import config_dict

from configs.sweeps import galaxies


def get_config() -> config_dict.ConfigDict:
    """The configuration."""
    c = galaxies.get_config()
    c.networks = ("hsc64", "ztf64", "roman120")
    c.nfes = (5, 8)
    c.baselines = ()
    c.run.data.test = 500
    return c
