"""LSUN Bedroom, 256 x 256 pixels: unconditional latent diffusion.

python -m experiments.train --config=configs/lsun_bedroom.py --workdir=runs/lsun_bedroom

Needs the weights, some 2.4 GB: https://ommer-lab.com/files/latent-diffusion/lsun_bedrooms.zip
is downloaded to models/ if it is missing.
Solver, teacher and rates are the paper's (arXiv:2405.15506). With the published weights it has not been run here;
--config.network.random_weights=True tries the run without them.
"""

from ml_collections import config_dict

from configs import default, paper


def get_config() -> config_dict.ConfigDict:
    """The paper's settings on LSUN Bedroom."""
    c = default.get_config()
    c.network.name = "lsun_bedroom"
    c.network.file = "models/lsun_bedrooms.zip"
    c.solver.name, c.solver.variant = "unipc", "bh2"
    c.teacher.nfe, c.teacher.grid, c.teacher.variant = 20, "uniform", "bh2"
    c.teacher.batch_size = c.learn.valid_batch = 5
    c.learn.loss = "lpips"
    return paper.with_paper_settings(c, "t", batch_size=1, rounds=5)
