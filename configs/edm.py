"""EDM's networks: cifar10 (32 x 32 pixels, DDPM++), ffhq64 and afhqv2_64 (64 x 64, DDPM++), imagenet64 (64 x 64, ADM,
conditioned on one of 1000 classes).

python -m experiments.train --config=configs/edm.py:cifar10 --workdir=runs/cifar10

Needs the weights (226 MB, 250 MB, 250 MB and 1.2 GB); missing files are downloaded to models/:
https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl
https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-ffhq-64x64-uncond-vp.pkl
https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-afhqv2-64x64-uncond-vp.pkl
https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl
Solver, teacher and rates are the paper's (arXiv:2405.15506). With the published weights it has not been run here;
--config.network.random_weights=True tries the run without them.
"""

from ml_collections import config_dict

from configs import default, paper

FILES = {
    "cifar10": "edm-cifar10-32x32-uncond-vp.pkl",
    "ffhq64": "edm-ffhq-64x64-uncond-vp.pkl",
    "afhqv2_64": "edm-afhqv2-64x64-uncond-vp.pkl",
    "imagenet64": "edm-imagenet-64x64-cond-adm.pkl",
}


def get_config(network: str = "cifar10") -> config_dict.ConfigDict:
    """The paper's settings on one of EDM's networks."""
    c = default.get_config()
    c.network.name = network
    c.network.file = f"models/{FILES[network]}" if network in FILES else ""  # for others you give the file
    c.solver.name = "unipc"
    c.teacher.nfe = 20
    c.learn.loss = "lpips"
    return paper.with_paper_settings(c)
