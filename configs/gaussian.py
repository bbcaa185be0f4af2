"""A ring of six Gaussians, whose exact noise prediction is known: a run of seconds, for trying things out."""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration on the analytic mixture."""
    c = default.get_config()
    c.network.family, c.network.name = "gaussian", "ring"
    c.data.test = 200
    c.learn.steps = 200
    c.learn.batch_size = 50
    return c
