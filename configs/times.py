"""Times and network times, without coefficients, as LD3 learns them.

python -m experiments.train --config=configs/times.py --workdir=runs/times

For programs that take a list of times and nothing else, add --config.learn.what="('times',)".
The network is the one of configs/galaxy.py; --config.network.name=hsc32 takes another. Measured: docs/results.md.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration without coefficients."""
    return with_times_alone(default.get_config())


def with_times_alone(c: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Change a configuration so that the solver keeps its coefficients."""
    c.learn.what = ("times", "shifts")
    return c
