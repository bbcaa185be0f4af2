"""Any saved diffusers pipeline: Stable Diffusion 1 to 3, SDXL, DiT, PixArt, FLUX, Sana, Wan, Qwen-Image, DDPM.

python -m experiments.train --config=configs/diffusers.py --workdir=runs/pipeline --config.network.file=FOLDER

FOLDER is written by the pipeline's save_pretrained. A text pipeline needs --config.network.prompts=FILE, one prompt
per line. Arguments of its call, such as guidance, size and frames, are given as JSON; others have the pipeline's
  defaults: --config.network.options='{"guidance_scale": 3.0, "height": 512, "width": 512}'
The network runs in PyTorch, on a GPU if PyTorch has one. JAX leaves memory for it on the same GPU if it is started with
XLA_PYTHON_CLIENT_PREALLOCATE=false; on a CPU --config.network.dtype=float32 is faster.
Latents are compared, or pictures with --config.network.decoded=True --config.learn.loss=lpips. Each call of a big
network takes long, so there are few pairs, and the number of calls and their time are printed before the first one.
Not measured.
"""

from ml_collections import config_dict

from configs import default


def get_config() -> config_dict.ConfigDict:
    """The default settings with few pairs and small batches."""
    c = default.get_config()
    c.network.name = "diffusers"
    c.network.dtype = "bfloat16"
    c.network.decoded = False
    c.teacher.nfe = 30
    c.teacher.batch_size = c.learn.valid_batch = 2
    c.data.train, c.data.test = 24, 8
    c.data.candidates = 0
    c.learn.batch_size, c.learn.steps, c.learn.validate_every = 4, 24, 12
    c.learn.tangents = 4
    return c
