"""CIFAR-10, 32 x 32 pixels: EDM's DDPM++, unconditional.

python -m experiments.train --config=configs/cifar10.py --workdir=runs/cifar10

Needs the weights, 226 MB: https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl
is downloaded to models/ if it is not there. Solver, teacher and rates are the paper's (arXiv:2405.15506). With the
published weights it has not been run here; --config.network.random_weights=True tries the run out without them.
"""

from ml_collections import config_dict

from configs import default, paper


def get_config() -> config_dict.ConfigDict:
    """The paper's settings on the network cifar10."""
    c = default.get_config()
    c.network.name = "cifar10"
    c.network.file = "models/edm-cifar10-32x32-uncond-vp.pkl"
    c.solver.name = "unipc"
    c.teacher.nfe = 20
    c.learn.loss = "lpips"
    return paper.with_paper_settings(c)
