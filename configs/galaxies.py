"""Galaxies of several surveys: hsc32 hsc64 (Hyper Suprime-Cam), ztf32 ztf64 (Zwicky Transient Facility), lsst60 (as the
Legacy Survey of Space and Time will see them), roman120 (as the Roman Space Telescope will); the number is the side in
pixels.

python -m experiments.train --config=configs/galaxies.py:hsc32 --workdir=runs/hsc32

Measured: docs/results.md.
"""

from ml_collections import config_dict

from configs import default


def get_config(survey: str = "hsc32") -> config_dict.ConfigDict:
    """The default configuration on the network of a survey."""
    c = default.get_config()
    c.network.name = survey
    return c
