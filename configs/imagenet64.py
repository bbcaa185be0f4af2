"""ImageNet, 64 x 64 pixels: EDM's ADM, conditioned on one of 1000 classes.

python -m experiments.train --config=configs/imagenet64.py --workdir=runs/imagenet64

Needs the weights, 1.2 GB: https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl
is downloaded to models/ if it is not there. Solver, teacher and rates are the paper's (arXiv:2405.15506). With the
published weights it has not been run here; --config.network.random_weights=True tries the run out without them.
"""

from ml_collections import config_dict

from configs import default, paper


def get_config() -> config_dict.ConfigDict:
    """The paper's settings on the network imagenet64."""
    c = default.get_config()
    c.network.name = "imagenet64"
    c.network.file = "models/edm-imagenet-64x64-cond-adm.pkl"
    c.solver.name = "unipc"
    c.teacher.nfe = 20
    c.learn.loss = "lpips"
    return paper.with_paper_settings(c)
