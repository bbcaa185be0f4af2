"""Stable Diffusion 1.5, 512 x 512 pixels, conditioned on text, guidance 7.5.

python -m experiments.train --config=configs/stable_diffusion.py --workdir=runs/stable_diffusion

Needs the weights, 4.3 GB; missing files are downloaded to models/:
https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/v1-5-pruned-emaonly.safetensors
(version 1.4 is --config.network.file=models/sd-v1-4.ckpt).
Needs a file of prompts, one per line or MS-COCO's captions, and the text encoder, a copy of
https://huggingface.co/openai/clip-vit-large-patch14; transformers and torch embed the prompts once:
  --config.network.prompts=captions_val2014.json --config.network.text_encoder=models/clip-vit-large-patch14
Solver, number of teacher calls and rates are from the published code (script_stable_diff.sh); the uniform grid
replaces its GITS grid. With the published weights it has not been run here;
--config.network.random_weights=True tries the run without them.
"""

from ml_collections import config_dict

from configs import default, paper


def get_config() -> config_dict.ConfigDict:
    """The paper's settings on Stable Diffusion."""
    c = default.get_config()
    c.network.name = "stable_diffusion"
    c.network.file = "models/v1-5-pruned-emaonly.safetensors"
    c.network.guidance = 7.5
    c.solver.name, c.solver.order = "ipndm", 2
    c.teacher.name, c.teacher.order, c.teacher.grid = "ipndm", 2, "uniform"
    c.teacher.nfe = c.solver.get_ref("nfe") + 1
    c.teacher.batch_size = c.learn.valid_batch = 5
    c.learn.loss = "lpips"
    return paper.with_paper_settings(c, "t", pairs=25, batch_size=1, rounds=5)
