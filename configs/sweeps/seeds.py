"""How much the result depends on the training pairs: five calls, four other seeds of the pairs and the held-out noises.

python -m experiments.sweep --config=configs/sweeps/seeds.py --workdir=runs/seeds
"""

from ml_collections import config_dict

from configs.sweeps import galaxies


def get_config() -> config_dict.ConfigDict:
    """The configuration."""
    c = galaxies.get_config()
    c.networks = ("hsc32", "ztf32", "lsst60", "quasar72")
    c.nfes = (5,)
    c.seeds = (1, 2, 3, 4)
    c.baselines = ()
    c.run.data.test = 500
    return c
