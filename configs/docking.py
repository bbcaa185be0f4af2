"""Docking: poses of ergotamine in the serotonin receptor 5-HT1B, on R^3 x SO(3) x torus with DiffDock's noise.

python -m experiments.train --config=configs/docking.py --workdir=runs/docking
python -m experiments.sample --schedule=runs/docking/schedule.json --num=20 --out=runs/docking/poses.sdf

It needs the extra `docking`, whose packages ship the molecules. The score is the exact one of 250 poses of a molecular
dynamics run; --config.network.name=1ia1 (1of6, 1s3v, 1uou) takes the pose of a crystal, and
--config.network.name=ergotamine_network a network that was trained on the 250 poses.

Measured: docs/guides/docking.md.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default configuration with poses: times and coefficients are learned for each of their three parts."""
    c = default.get_config()
    c.network.name = "ergotamine"
    c.solver.name, c.solver.order, c.solver.nfe = "dpmpp", 2, 6
    c.teacher.name, c.teacher.order, c.teacher.nfe, c.teacher.grid = "dpmpp", 2, 100, "uniform"
    c.learn.by_part = True
    # A pose has a dozen residuals, an image thousands, so second-order steps need more poses.
    c.data.train, c.learn.batch_size, c.learn.steps = 1600, 64, 96
    return c
