"""ImageNet, 256 x 256 pixels: latent diffusion conditioned on one of 1000 classes, guidance 2.

python -m experiments.train --config=configs/imagenet256.py --workdir=runs/imagenet256

Needs the weights, some 1.8 GB: https://ommer-lab.com/files/latent-diffusion/nitro/cin/model.ckpt
is downloaded to models/cin256-v2.ckpt if it is missing.
Solver, teacher and rates are the paper's (arXiv:2405.15506). With the published weights it has not been run here;
--config.network.random_weights=True tries the run without them.
"""

from ml_collections import config_dict

from configs import default, paper


def get_config() -> config_dict.ConfigDict:
    """The paper's settings on ImageNet."""
    c = default.get_config()
    c.network.name = "imagenet256"
    c.network.file = "models/cin256-v2.ckpt"
    c.network.guidance = 2.0
    c.solver.name, c.solver.variant = "unipc", "bh2"
    c.teacher.nfe, c.teacher.grid, c.teacher.variant = 10, "quadratic", "bh2"
    c.teacher.batch_size = c.learn.valid_batch = 5
    c.learn.loss = "lpips"
    return paper.with_paper_settings(c, "t", batch_size=1, rounds=5)
