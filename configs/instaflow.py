"""InstaFlow's 2-rectified flow, 512 x 512 pixels, conditioned on text.

python -m experiments.train --config=configs/instaflow.py --workdir=runs/instaflow

Needs the weights of the flow, 3.4 GB, and Stable Diffusion's for the first stage; missing files are downloaded:
https://huggingface.co/XCLiu/2_rectified_flow_from_sd_1_5/resolve/main/unet/diffusion_pytorch_model.bin
https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/v1-5-pruned-emaonly.safetensors
Needs a file of prompts, one per line or MS-COCO's captions, and the text encoder, a copy of
https://huggingface.co/openai/clip-vit-large-patch14; transformers and torch embed the prompts once:
  --config.network.prompts=captions_val2014.json --config.network.text_encoder=models/clip-vit-large-patch14
Solver, teacher and rates are the paper's for Stable Diffusion (arXiv:2405.15506). With the published weights it has not
been run here; --config.network.random_weights=True tries the run without them.
"""

from ml_collections import config_dict

from configs import default, paper


def get_config() -> config_dict.ConfigDict:
    """The paper's settings for Stable Diffusion on a rectified flow."""
    c = default.get_config()
    c.network.name = "instaflow"
    c.network.file = "models/2_rectified_flow_from_sd_1_5.bin"
    c.network.first_stage = "models/v1-5-pruned-emaonly.safetensors"
    c.network.guidance = 1.5
    c.solver.name, c.solver.order = "ipndm", 2
    c.teacher.name, c.teacher.order, c.teacher.grid = "ipndm", 2, "uniform"
    c.teacher.nfe = c.solver.get_ref("nfe") + 1
    c.teacher.batch_size = c.learn.valid_batch = 5
    c.learn.loss = "lpips"
    return paper.with_paper_settings(c, "t", pairs=25, batch_size=1, rounds=5)
