"""AFHQv2, animal faces at 64 x 64 pixels: EDM's DDPM++.

python -m experiments.train --config=configs/afhqv2.py --workdir=runs/afhqv2

Needs the weights, 250 MB: https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-afhqv2-64x64-uncond-vp.pkl
is downloaded to models/ if it is not there. Solver, teacher and rates are the paper's (arXiv:2405.15506). With the
published weights it has not been run here; --config.network.random_weights=True tries the run out without them.
"""

from ml_collections import config_dict

from configs import default, paper


def get_config() -> config_dict.ConfigDict:
    """The paper's settings on the network afhqv2_64."""
    c = default.get_config()
    c.network.name = "afhqv2_64"
    c.network.file = "models/edm-afhqv2-64x64-uncond-vp.pkl"
    c.solver.name = "unipc"
    c.teacher.nfe = 20
    c.learn.loss = "lpips"
    return paper.with_paper_settings(c)
