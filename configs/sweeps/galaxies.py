"""Every method on four networks of galaxies, with three solvers and 4 to 10 calls.

python -m experiments.sweep --config=configs/sweeps/galaxies.py --workdir=runs/galaxies
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The configuration."""
    c = config_dict.ConfigDict()
    c.networks = ("hsc32", "ztf32", "lsst60", "quasar72")  # names that ld3_jax.pretrained knows
    c.solvers = ("dpmpp", "unipc", "ipndm")  # with their highest order
    c.nfes = (5, 8, 4, 6, 10)  # network calls, in the order in which they are measured
    c.seeds = (0,)  # seeds of the training pairs and of the held-out noises
    c.baselines = ("dmn", "gits", "oss")  # grids of other methods
    c.probes = 64  # training noises that these methods use
    c.run = default.get_config()  # how cells learn; keys that a cell sets itself have no effect here
    c.run.data.test = 2000  # held-out noises that samples are judged on
    return c
