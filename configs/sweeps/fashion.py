"""Every method on the network of clothes, with 5 calls.

python -m experiments.sweep --config=configs/sweeps/fashion.py --workdir=runs/fashion_sweep
"""

from ml_collections import config_dict

from configs.sweeps import galaxies


def get_config() -> config_dict.ConfigDict:
    """The configuration."""
    c = galaxies.get_config()
    c.networks = ("fashion28",)
    c.nfes = (5,)
    c.run.data.test = 1000
    return c
