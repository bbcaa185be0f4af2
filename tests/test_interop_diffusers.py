"""In diffusers' own pipelines the scheduler gives JAX's sample: all that was learned, with and without guidance."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from learned_anything import moved

from ld3_jax.networks.latent import scaled_linear
from ld3_jax.schedules import RectifiedFlow, VPDiscrete, VPLinear
from ld3_jax.solvers import Solver

diffusers = pytest.importorskip("diffusers")

from ld3_jax.interop import LearnedScheduler  # noqa: E402

DDPM, SD = VPDiscrete(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))), scaled_linear(0.00085, 0.012)
SOLVERS = [Solver("dpmpp", 4, 3), Solver("unipc", 4, 3), Solver("ipndm", 5, 4), Solver("heun", 4)]
GUIDANCE = 3.0


@pytest.fixture(scope="module")
def ddpm():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = diffusers.UNet2DModel(
        sample_size=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, attention_head_dim=4, **blocks
    )
    return diffusers.DDPMPipeline(unet.eval(), diffusers.DDPMScheduler())


@pytest.fixture(scope="module")
def stable_diffusion():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        attention_head_dim=2, **blocks,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,
        clip_sample=False,
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae, None, None, unet.eval(), scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def in_jax(network, shape, steps=1000):
    """The PyTorch network, called from JAX, at the same fractional timesteps."""

    @torch.no_grad()
    def call(x, t):
        return network(torch.from_numpy(np.array(x)), torch.tensor(steps * float(t) - 1)).numpy()

    return lambda x, t, cond=None: jax.pure_callback(call, jax.ShapeDtypeStruct(shape, "float32"), x, t)


def last_state(pipe, monkeypatch, run):
    """What the scheduler's last step gives, before the pipeline clips it."""
    steps, step = [], pipe.scheduler.step
    monkeypatch.setattr(pipe.scheduler, "step", lambda *a, **k: steps.append(step(*a, **k)) or steps[-1])
    run()
    return steps[-1][0], len(steps)


def close(given, expected):
    expected = np.asarray(expected)
    assert np.abs(np.asarray(given) - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[3]], ids=str)
def test_ddpm_s_pipeline_gives_jax_s_sample(tmp_path, monkeypatch, ddpm, solver):
    learned = moved(DDPM, solver)
    learned.save(tmp_path / "schedule.json", DDPM)
    monkeypatch.setattr(ddpm, "scheduler", LearnedScheduler.from_file(tmp_path / "schedule.json", ddpm.scheduler))
    ddpm.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    given, calls = last_state(
        ddpm, monkeypatch, lambda: ddpm(batch_size=2, generator=generator, num_inference_steps=solver.nfe)
    )
    network = in_jax(lambda x, t: ddpm.unet(x, t).sample, x_T.shape)
    close(given, learned.sample(network, DDPM, jnp.asarray(x_T.numpy())))
    assert calls == solver.nfe


def test_what_was_learned_matters(ddpm):
    """By more than the tolerance, so that the tests above would fail without it."""
    x_T = torch.randn(2, 3, 4, 4)
    network = in_jax(lambda x, t: ddpm.unet(x, t).sample, x_T.shape)
    learned = moved(DDPM, SOLVERS[0])
    expected = learned.sample(network, DDPM, jnp.asarray(x_T.numpy()))
    found = learned.found
    for less in (found._replace(coefficients=None), found._replace(t_c=found.t)):
        with pytest.raises(AssertionError):
            close(dataclasses.replace(learned, found=less).sample(network, DDPM, jnp.asarray(x_T.numpy())), expected)


@pytest.mark.parametrize("solver", SOLVERS[1:3], ids=str)
def test_stable_diffusion_s_pipeline_with_guidance_gives_jax_s_sample(tmp_path, monkeypatch, stable_diffusion, solver):
    pipe, schedule = stable_diffusion, SD
    learned = moved(schedule, solver)
    learned.save(tmp_path / "schedule.json", schedule)
    scheduler = LearnedScheduler.from_file(tmp_path / "schedule.json", pipe.scheduler)
    scheduler.save_pretrained(tmp_path)
    monkeypatch.setattr(pipe, "scheduler", LearnedScheduler.from_pretrained(tmp_path))
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    prompt, nothing, x_T = torch.randn(1, 3, 8), torch.randn(1, 3, 8), torch.randn(1, 4, 8, 8)

    def run():
        return pipe(
            prompt_embeds=prompt, negative_prompt_embeds=nothing, latents=x_T, guidance_scale=GUIDANCE,
            num_inference_steps=solver.nfe, output_type="latent",
        )  # fmt: skip

    given, _ = last_state(pipe, monkeypatch, run)

    def guided(x, t):
        with_text, without = (pipe.unet(x, t, c).sample for c in (prompt, nothing))
        v = without + GUIDANCE * (with_text - without)
        alpha = float(torch.as_tensor(np.interp(float(t), np.arange(1000), np.log(schedule.alphas_cumprod)) / 2).exp())
        return alpha * v + (1 - alpha**2) ** 0.5 * x

    close(given, learned.sample(in_jax(guided, x_T.shape), schedule, jnp.asarray(x_T.numpy())))


def scheduler_of(tmp_path, schedule=SD, solver=SOLVERS[0], **how):
    moved(schedule, solver).save(tmp_path / "schedule.json", schedule)
    return LearnedScheduler.from_file(tmp_path / "schedule.json", **how)


def test_another_number_of_steps_is_refused(tmp_path):
    scheduler = scheduler_of(tmp_path)
    with pytest.raises(ValueError, match="learned for 4 network calls: num_inference_steps must be 4, got 50"):
        scheduler.set_timesteps(50)
    with pytest.raises(ValueError, match=r"call set_timesteps\(4\) before each run"):
        scheduler.step(torch.zeros(1), 0, torch.zeros(1))
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="must be shaped like the state"):
        scheduler.step(torch.zeros(1, 6), 0, torch.zeros(1, 3))
    for _ in range(4):
        scheduler.step(torch.zeros(1), 0, torch.zeros(1))
    with pytest.raises(ValueError, match="before each run"):
        scheduler.step(torch.zeros(1), 0, torch.zeros(1))
    with pytest.raises(ValueError, match="not at call 2"):
        scheduler.set_begin_index(2)


def test_a_run_leaves_nothing_to_the_next(tmp_path):
    scheduler = scheduler_of(tmp_path, solver=SOLVERS[1])

    def run():
        scheduler.set_timesteps(4, "cpu")
        x = torch.ones(2, 3)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x) + t / 1000, t, scheduler.scale_model_input(x, t), return_dict=False)[0]
        return x

    assert torch.equal(run(), run())


def test_half_precision_is_summed_in_single_precision(tmp_path):
    scheduler = scheduler_of(tmp_path)
    scheduler.set_timesteps(4)
    x = scheduler.step(torch.full((2,), 0.1, dtype=torch.float16), 0, torch.ones(2, dtype=torch.float16)).prev_sample
    assert x.dtype == torch.float16
    scheduler.set_timesteps(4)
    exact = scheduler.step(torch.full((2,), 0.1).half().float(), 0, torch.ones(2)).prev_sample
    assert torch.equal(x, exact.half())


@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[3]], ids=str)
def test_noise_is_added_as_the_states_have_it(tmp_path, solver):
    scheduler, learned = scheduler_of(tmp_path, solver=solver), moved(SD, solver)
    scheduler.set_timesteps(solver.nfe)
    data, noise = torch.randn(2, 3), torch.randn(2, 3)
    row = 2  # of both solvers the first call of a step
    t = learned.t[row // scheduler._table.calls_per_step]
    given = scheduler.add_noise(data, noise, scheduler.timesteps[[row]])
    np.testing.assert_allclose(given, float(SD.alpha(t)) * data + float(SD.sigma(t)) * noise, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="timesteps must be among"):
        scheduler.add_noise(data, noise, torch.tensor([3.0]))


def test_timesteps_are_those_of_the_pipeline_s_noise_levels(tmp_path):
    like = diffusers.DDPMScheduler()
    scheduler = scheduler_of(tmp_path, DDPM)
    by_level = scheduler_of(tmp_path, DDPM, like=like)
    torch.testing.assert_close(scheduler.timesteps, by_level.timesteps)
    assert (scheduler.timesteps % 1 != 0).any()
    with pytest.raises(ValueError, match="learned for other noise levels"):
        scheduler_of(tmp_path, SD, like=like)
    continuous = scheduler_of(tmp_path, VPLinear(t_min=2e-3), like=like)
    known, table = like.alphas_cumprod.log().numpy() / 2, continuous._table
    found = np.interp(continuous.timesteps, np.arange(1000), known)
    np.testing.assert_allclose(found, np.log(table.alpha), atol=1e-3)
    with pytest.raises(ValueError, match=r"give the pipeline's scheduler \(like=\)"):
        scheduler_of(tmp_path, VPLinear())
    flow = scheduler_of(tmp_path, RectifiedFlow())
    np.testing.assert_allclose(flow.timesteps, 1000 * np.array(flow._table.t), rtol=1e-6)
    assert flow.config.prediction_type == "flow_prediction"


def test_impossible_configurations_are_refused(tmp_path):
    scheduler = scheduler_of(tmp_path)
    config = json.loads(json.dumps(dict(scheduler.config)))
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        LearnedScheduler(config["table"], config["timesteps"], "magic")
    with pytest.raises(ValueError, match="3 timesteps for 4 network calls"):
        LearnedScheduler(config["table"], config["timesteps"][:-1])
