"""Galaxies as the Legacy Survey of Space and Time will see them, 60 x 60 pixels."""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration on the network lsst60."""
    c = default.get_config()
    c.network.name = "lsst60"
    # The best grid on the training pairs is not the best on others here, so the validation pairs choose among three.
    c.learn.starts = 3
    return c
