"""Training of the network `fashion28`: clothes of Fashion-MNIST, 28 x 28 pixels, one of ten classes.

python -m experiments.pretrain --config=configs/pretraining/fashion.py --workdir=runs/fashion28

The images come from Debian's package dataset-fashion-mnist.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The settings that the network of the package was trained with."""
    c = config_dict.ConfigDict()
    c.seed = 0  # of the first parameters, the batches and their noise

    c.data = config_dict.ConfigDict()
    c.data.name = "fashion_mnist"  # fashion_mnist cifar10
    c.data.folder = "/usr/share/datasets/fashion-mnist"  # where its files lie
    c.data.flips = False  # whether half of the images are mirrored

    c.network = config_dict.ConfigDict()
    c.network.width = 96  # channels of a token, a multiple of 32
    c.network.depth = 6  # blocks
    c.network.patch = 4  # side of a patch in pixels
    c.network.dtype = "float32"  # of the computation inside: float32 bfloat16

    c.train = config_dict.ConfigDict()
    c.train.steps = 7500
    c.train.batch_size = 64
    c.train.rule = "muon"  # adam muon
    c.train.rate = 0.02  # the largest
    c.train.average = 0.998  # share of the moving average that a step keeps
    c.train.label_dropout = 0.1  # share of images whose class is not shown, so that the network can be guided
    c.train.log_mean = -1.2  # of the noise levels' logarithms
    c.train.log_deviation = 1.2
    c.train.save_every = 500  # steps between checkpoints, each with the held-out loss and a sheet of samples
    return c
