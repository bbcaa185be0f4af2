# %% [markdown]
# # From a diffusers pipeline to a learned scheduler
#
# What you will see: a pipeline of [diffusers](https://github.com/huggingface/diffusers) that draws images of small
# bright discs, a scheduler learned for it, and the same pipeline with that scheduler in 5 network calls, beside
# diffusers' own schedulers.
#
# The pipeline here is an unconditional `DDPMPipeline` with a small U-Net, so that the notebook runs anywhere. A
# pipeline for text to image takes the same steps, with a file of prompts: `load("diffusers", file=folder,
# prompts="prompts.txt")`.

# %%
import math

import diffusers
import jax
import numpy as np
import torch

import ld3_jax
from ld3_jax import interop, learning, plots

torch.manual_seed(0)
torch.set_num_threads(1)  # a network this small is slower on several

# %% [markdown]
# How much is done: network calls, training steps of the U-Net, pairs to learn from, held-out noises, learning steps,
# calls of the teacher, and the grid that learning starts from, or "best" of them.

# %% tags=["parameters"]
nfe, train_steps, count, held_out, teacher_calls, steps, start = 5, 500, 60, 60, 40, 12, "best"

# %% [markdown]
# ## A pipeline
#
# Skip this part if you have one. The U-Net learns to predict $v = \alpha \epsilon - \sigma x_0$ in images of 16 x 16
# pixels with one disc each, of random place, size, angle and thickness.


# %%
def discs(n, size=16):
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    right, down, turn, long, thin = torch.rand(5, n, 1, 1)
    x, y, turn, long = x - right + 0.5, y - down + 0.5, math.pi * turn, 0.3 + 0.3 * long
    along, across = x * turn.cos() + y * turn.sin(), (y * turn.cos() - x * turn.sin()) / (0.3 + 0.7 * thin)
    return (2 * torch.exp(-(((along**2 + across**2) / long**2) ** 2)) - 1)[:, None]


unet = diffusers.UNet2DModel(
    sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
    add_attention=False, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
)  # fmt: skip
noising = diffusers.DDPMScheduler(1000, prediction_type="v_prediction", clip_sample=False)
optimizer = torch.optim.AdamW(unet.parameters())
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, train_steps)
for _ in range(train_steps):
    images, t = discs(16), torch.randint(0, 1000, (16,))
    noise = torch.randn_like(images)
    loss = ((unet(noising.add_noise(images, noise, t), t).sample - noising.get_velocity(images, noise, t)) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rate.step()
pipe = diffusers.DDPMPipeline(unet.eval(), noising)
pipe.set_progress_bar_config(disable=True)
pipe.save_pretrained("runs/discs")

# %% [markdown]
# ## The pipeline as a model
#
# The folder of a pipeline is a model like any other. With `decoded=False` its states are compared, and not the
# pictures made of them. Its network stays in PyTorch, and the noise schedule is the one of its scheduler.

# %%
discs_model = ld3_jax.pretrained.load("diffusers", file="runs/discs", decoded=False)
model, schedule = discs_model.model, discs_model.schedule
teacher = ld3_jax.Teacher(ld3_jax.Solver("unipc", teacher_calls))
known, test = (
    ld3_jax.make_pairs(model, schedule, *discs_model.draw(jax.random.key(seed), n), teacher=teacher)
    for seed, n in ((0, count), (1, held_out))
)
shown = np.asarray(test.x_0)
plots.image_rows(None, {"teacher": discs_model.display(shown[:8], shown)}, f"{teacher_calls} network calls")

# %% [markdown]
# ## Learn a scheduler

# %%
student = ld3_jax.make_student(model, schedule, ld3_jax.Solver("dpmpp", nfe=nfe))
learned = ld3_jax.fit(student, known, jax.random.key(2), learner=ld3_jax.GaussNewton(steps=steps), start=start)
learned.save("runs/discs.json", schedule)
errors = {name: learning.distances(student, learning.on_grid(name, schedule, student.solver), test)
          for name in ld3_jax.grids.GRIDS}  # fmt: skip
errors["learned"] = learned.distances(student, test)
for name, error in sorted(errors.items(), key=lambda item: float(item[1].mean())):
    print(f"{name:<12}mean squared error to the teacher {error.mean():.5f}, median {np.median(error):.5f}")

# %% [markdown]
# ## Back in diffusers
#
# `LearnedScheduler` runs the learned table in any pipeline, and needs no JAX. `num_inference_steps` counts network
# calls.

# %%
schedulers = {
    "DPM-Solver++,\n40 calls": (diffusers.DPMSolverMultistepScheduler.from_config(noising.config), 40),
    f"learned, {nfe} calls": (interop.LearnedScheduler.from_file("runs/discs.json", like=noising), nfe),
    f"DPM-Solver++,\n{nfe} calls": (diffusers.DPMSolverMultistepScheduler.from_config(noising.config), nfe),
    f"DDIM, {nfe} calls": (diffusers.DDIMScheduler.from_config(noising.config), nfe),
}
rows, notes = {}, {}
for name, (pipe.scheduler, n) in schedulers.items():
    drawn = pipe(batch_size=8, num_inference_steps=n, generator=torch.manual_seed(1), output_type="np")
    rows[name] = drawn.images
    first = next(iter(rows.values()))
    notes[name] = [f"{error:.4f}" for error in ((drawn.images - first) ** 2).mean((1, 2, 3))]
plots.image_rows(None, rows, "the same pipeline from the same noise", notes)

# %% [markdown]
# Below each image is its squared error to the first row. `pipe.save_pretrained(folder)` keeps the scheduler with the
# pipeline, and `pipe.scheduler.replaced()` is the scheduler that was there before.
