"""In diffusers' own pipelines the scheduler gives JAX's sample, with all learned numbers, with and without guidance."""

import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from learned_anything import moved

from ld3_jax import interop
from ld3_jax.networks.latent import scaled_linear
from ld3_jax.schedules import RectifiedFlow, VELinear, VPDiscrete, VPLinear
from ld3_jax.solvers import Solver, to_record
from ld3_jax.starts import starting_at

diffusers = pytest.importorskip("diffusers")

from ld3_jax.interop import LearnedScheduler  # noqa: E402

# diffusers makes arrays of tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
DDPM, SD = VPDiscrete(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))), scaled_linear(0.00085, 0.012)
SOLVERS = [Solver("dpmpp", 4, 3), Solver("unipc", 4, 3), Solver("ipndm", 5, 4), Solver("heun", 4)]
GUIDANCE = 3.0
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW, VE = RectifiedFlow(), VELinear()


@pytest.fixture(scope="module")
def ddpm():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = diffusers.UNet2DModel(
        sample_size=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, attention_head_dim=4, **blocks
    )
    return diffusers.DDPMPipeline(unet.eval(), diffusers.DDPMScheduler())


@pytest.fixture(scope="module")
def flux():
    """What is common to Flux's pipelines."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=4, shift_factor=0.06)
    texts = dict.fromkeys(["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
    return {"transformer": transformer.eval(), "vae": vae, **texts}


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


@pytest.mark.parametrize(("pipeline", "solver"), [("DDPMPipeline", SOLVERS[0]), ("DDIMPipeline", SOLVERS[3])], ids=str)
def test_ddpm_s_and_ddim_s_pipelines_give_jax_s_sample(tmp_path, monkeypatch, ddpm, pipeline, solver):
    ddpm = getattr(diffusers, pipeline)(ddpm.unet, ddpm.scheduler)
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
    """They differ by more than the tolerance, so that the tests above would fail without it."""
    x_T = torch.randn(2, 3, 4, 4)
    network = in_jax(lambda x, t: ddpm.unet(x, t).sample, x_T.shape)
    learned = moved(DDPM, SOLVERS[0])
    expected = learned.sample(network, DDPM, jnp.asarray(x_T.numpy()))
    found = learned.discretization
    for less in (found._replace(coefficients=None), found._replace(t_c=found.t)):
        with pytest.raises(AssertionError):
            close(
                dataclasses.replace(learned, discretization=less).sample(network, DDPM, jnp.asarray(x_T.numpy())),
                expected,
            )


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


@functools.cache
def record(schedule, solver, output=None):
    learned = moved(schedule, solver)
    return {"table": to_record(learned.table(schedule), schedule, learned.t, solver, output)}


def scheduler_of(tmp_path, schedule=SD, solver=SOLVERS[0], output=None, **how):
    (tmp_path / "schedule.json").write_text(json.dumps(record(schedule, solver, output)))
    return LearnedScheduler.from_file(tmp_path / "schedule.json", **(how or {"prediction_type": "epsilon"}))


def test_another_number_of_steps_is_refused(tmp_path):
    scheduler = scheduler_of(tmp_path)
    with pytest.raises(ValueError, match="learned for 4 network calls: num_inference_steps must be 4, got 50"):
        scheduler.set_timesteps(50)
    with pytest.raises(ValueError, match=r"call set_timesteps\(4\) before each run"):
        scheduler.step(torch.zeros(1), 0, torch.zeros(1))
    with pytest.raises(ValueError, match="sigmas and timesteps must be lists"):
        scheduler.set_timesteps(sigmas=4)
    scheduler.set_timesteps(4)
    for timestep in (None, "x", []):
        with pytest.raises(ValueError, match="timestep must be one of"):
            scheduler.step(torch.zeros(1), timestep, torch.zeros(1))
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
    flow = scheduler_of(tmp_path, FLOW, output="flow", like=None)
    np.testing.assert_allclose(flow.timesteps, 1000 * np.array(flow._table.t), rtol=1e-6)
    assert flow.config.prediction_type == "flow_prediction"


def test_impossible_configurations_are_refused(tmp_path):
    scheduler = scheduler_of(tmp_path)
    config = json.loads(json.dumps(dict(scheduler.config)))
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        LearnedScheduler(config["table"], config["timesteps"], "magic")
    with pytest.raises(ValueError, match="timesteps must be 4 finite numbers"):
        LearnedScheduler(config["table"], config["timesteps"][:-1])
    for name in ("process", "train_steps", "output", "betas"):
        with pytest.raises(ValueError, match=f"the table's {name} must be .* or null"):
            LearnedScheduler({**config["table"], name: ["v"]}, config["timesteps"])


@pytest.mark.parametrize(
    ("schedule", "like", "arguments", "there"),
    [
        *((FLOW, like, SD_BETAS, "variance-preserving") for like in ("PNDMScheduler", "DDIMScheduler", "LCMScheduler")),
        *((FLOW, like, {}, "variance-preserving") for like in ("UniPCMultistepScheduler", "HeunDiscreteScheduler")),
        (FLOW, "EDMEulerScheduler", {}, "variance-exploding"),
        (FLOW, "IPNDMScheduler", {}, "other noise"),
        *((SD, like, {}, "a flow") for like in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")),
        (SD, "UniPCMultistepScheduler", {**SD_BETAS, "use_flow_sigmas": True}, "a flow"),
        (SD, "DPMSolverMultistepScheduler", {**SD_BETAS, "prediction_type": "flow_prediction"}, "a flow"),
        (SD, "EulerDiscreteScheduler", {**SD_BETAS, "timestep_type": "continuous"}, "variance-exploding"),
        (SD, "EDMDPMSolverMultistepScheduler", {}, "variance-exploding"),
        (VE, "EulerDiscreteScheduler", {}, "variance-preserving"),
        (VE, "FlowMatchEulerDiscreteScheduler", {}, "a flow"),
    ],
)
def test_a_schedule_for_noise_of_another_kind_is_refused(tmp_path, schedule, like, arguments, there):
    with pytest.raises(ValueError, match=f"json: it was learned for .*, and the pipeline's {like} is for {there}"):
        scheduler_of(tmp_path, schedule, like=getattr(diffusers, like)(**arguments), prediction_type="epsilon")


def test_what_no_pipeline_runs_is_refused(tmp_path):
    for like in (None, diffusers.EDMEulerScheduler()):
        with pytest.raises(ValueError, match="learned for variance-exploding noise"):
            scheduler_of(tmp_path, VE, like=like, prediction_type="sample")


def test_terminal_snr_of_zero_is_another_noise(tmp_path):
    like = diffusers.DDIMScheduler(**SD_BETAS, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    for schedule in (SD, VPLinear(t_min=2e-3)):
        with pytest.raises(ValueError, match=r"alpha begins at 0\..*rescale_betas_zero_snr"):
            scheduler_of(tmp_path, schedule, like=like)
    levels = like.alphas_cumprod.double().numpy()
    levels[-1] = 5e-8  # as files have it
    given = scheduler_of(tmp_path, VPDiscrete(levels), output="v", like=like)
    assert float(given.timesteps[0]) == 999


@pytest.mark.parametrize(
    ("schedule", "output", "like", "given", "expected"),
    [
        (SD, None, "epsilon", None, "epsilon"),
        (SD, "v", "v_prediction", None, "v_prediction"),
        (SD, "data", None, None, "sample"),
        (SD, None, None, None, "unknown by the file, unknown by like="),
        (SD, "noise", "v_prediction", None, "predicts epsilon by the file, v_prediction by like="),
        (SD, "score", "epsilon", None, "predicts score by the file, epsilon by like="),
        (SD, "noise", "v_prediction", "v_prediction", "v_prediction"),
        (FLOW, None, "flow", None, "flow_prediction"),
        (FLOW, "reversed_flow", "flow", None, "predicts reversed_flow by the file, flow_prediction by like="),
        (FLOW, "reversed_flow", None, None, "reversed_flow"),
        (FLOW, None, None, None, r"reversed_flow x_0 - eps"),
    ],
)
def test_the_file_and_the_pipeline_agree_on_the_prediction(tmp_path, schedule, output, like, given, expected):
    if like == "flow":
        like = diffusers.FlowMatchEulerDiscreteScheduler()
    elif like is not None:
        like = diffusers.PNDMScheduler(**SD_BETAS, prediction_type=like)
    how = {"like": like, "prediction_type": given}
    if " " in expected:
        with pytest.raises(ValueError, match=expected):
            scheduler_of(tmp_path, schedule, output=output, **how)
    else:
        assert scheduler_of(tmp_path, schedule, output=output, **how).config.prediction_type == expected


@pytest.mark.parametrize(
    ("how", "time", "sign"),
    [
        ({"prediction_type": "reversed_flow"}, lambda t: t, -1),
        ({"like": diffusers.FlowMatchEulerDiscreteScheduler()}, lambda t: t, 1),
        ({"like": diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)}, lambda t: 1 - t, -1),  # Mochi's
    ],
)
def test_a_velocity_of_either_sign_gives_the_sample(tmp_path, how, time, sign):
    scheduler = scheduler_of(tmp_path, FLOW, **how)
    scheduler.set_timesteps(4)
    x = x_T = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    velocity = lambda x, t: torch.tanh(x) * (1 + t)  # noqa: E731
    for t in scheduler.timesteps:
        x = scheduler.step(sign * velocity(x, time(float(t) / 1000)), t, x).prev_sample
    close(x, interop.solve(scheduler._table, velocity, x_T, "flow"))


@pytest.mark.parametrize("image", [False, True])
def test_flux_s_pipelines_give_the_table_s_sample(tmp_path, monkeypatch, flux, image):
    name = "FluxImg2ImgPipeline" if image else "FluxPipeline"
    like = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = getattr(diffusers, name)(scheduler=scheduler_of(tmp_path, FLOW, like=like), **flux)
    pipe.set_progress_bar_config(disable=True)
    seen, states, step = [], [], pipe.scheduler.step
    hook = flux["transformer"].register_forward_pre_hook(lambda _, a, given: seen.append(given), with_kwargs=True)
    monkeypatch.setattr(pipe.scheduler, "step", lambda v, t, x, **k: states.append(x) or step(v, t, x, **k))
    inputs = {"image": torch.rand(1, 3, 8, 8), "strength": 1.0} if image else {}
    texts = {"prompt_embeds": torch.randn(1, 5, 32), "pooled_prompt_embeds": torch.randn(1, 32)}
    size = {"height": 8, "width": 8, "num_inference_steps": 4, "output_type": "latent"}
    given = pipe(**texts, **size, **inputs).images
    hook.remove()

    @torch.no_grad()
    def network(x, t):
        return flux["transformer"](**{**seen[0], "hidden_states": x, "timestep": torch.full((1,), t)})[0]

    close(given, interop.solve(pipe.scheduler._table, network, states[0], "flow"))
    with pytest.raises(ValueError, match="num_inference_steps must be 4, got 3"):
        pipe(**texts, **size, **inputs, sigmas=[1.0, 0.5, 0.2])
    if image:
        with pytest.raises(ValueError, match=r"not at call 1; pass strength=1 \(SDXL inpainting's default is 0.9999\)"):
            pipe(**texts, **size, image=inputs["image"], strength=0.6)


def test_lists_of_pipelines_are_counted_and_not_used(tmp_path):
    scheduler = scheduler_of(tmp_path, FLOW)
    learned = scheduler.timesteps.tolist()
    for how in ({"sigmas": np.linspace(1, 0.25, 4), "mu": 1.15}, {"timesteps": [999, 700, 400, 100]}, {}):
        scheduler.set_timesteps(**{"device": "cpu", **how})
        assert scheduler.timesteps.tolist() == learned
    assert scheduler.sigmas.tolist() == pytest.approx(scheduler._table.grid_sigma, rel=1e-6)
    for how in ({"sigmas": [1.0, 0.5]}, {"timesteps": [999, 1]}, {"num_inference_steps": 2}):
        with pytest.raises(ValueError, match="must be 4, got 2"):
            scheduler.set_timesteps(**how)


def test_options_of_other_schedulers_are_taken_or_refused(tmp_path):
    scheduler = scheduler_of(tmp_path, like=diffusers.DDPMScheduler(**SD_BETAS, variance_type="learned_range"))
    scheduler.set_timesteps(4)
    x, t = torch.ones(1, 3, 2, 2), scheduler.timesteps[0]
    plain_step = scheduler.step(torch.tanh(x), t, x, eta=0.0, use_clipped_model_output=None, variance_noise=None)
    scheduler.set_timesteps(4)
    with_variance = scheduler.step(torch.cat([torch.tanh(x), x], 1), t, x)
    assert torch.equal(plain_step.prev_sample, with_variance.prev_sample)
    for name, value in {"eta": 0.3, "use_clipped_model_output": True, "variance_noise": x, "s_churn": 1.0}.items():
        with pytest.raises(ValueError, match=f"leave {name} out"):
            scheduler.step(x, t, x, **{name: value})
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="call 0 got the timestep of call 2; pass strength=1"):
        scheduler.step(x, scheduler.timesteps[2], x)  # what does not call set_begin_index


def test_flows_add_noise_under_their_name(tmp_path):
    scheduler, data, noise = scheduler_of(tmp_path, FLOW), torch.randn(2, 3), torch.randn(2, 3)
    times = scheduler.timesteps[:1].repeat(2)
    expected = 1e-3 * data + 0.999 * noise
    torch.testing.assert_close(scheduler.scale_noise(data, times, noise), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "like",
    [
        diffusers.PNDMScheduler(**SD_BETAS, skip_prk_steps=True, steps_offset=1),
        diffusers.EulerDiscreteScheduler(**SD_BETAS, prediction_type="v_prediction", timestep_spacing="trailing"),
        diffusers.DDIMScheduler(trained_betas=(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).tolist()),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=lambda like: type(like).__name__,
)  # fmt: skip
def test_the_way_back_is_the_pipeline_s_own_scheduler(tmp_path, like):
    learned = scheduler_of(tmp_path, FLOW if "shift" in like.config else SD, like=like)
    learned.save_pretrained(tmp_path)
    loaded = LearnedScheduler.from_pretrained(tmp_path)
    again = scheduler_of(tmp_path, FLOW if "shift" in like.config else SD, like=loaded)
    x = torch.linspace(-1, 1, 6).reshape(1, 6)

    def sample(scheduler):
        scheduler.set_timesteps(5)
        state = x * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else x
        for t in scheduler.timesteps:
            state = scheduler.step(torch.tanh(state) + t / 1000, t, state, return_dict=False)[0]
        return state

    expected = sample(like)
    for back in (type(like).from_config(learned.config), type(like).from_config(loaded.config), again.replaced()):
        assert torch.equal(sample(back), expected)
    assert LearnedScheduler.from_config(learned.config).timesteps.tolist() == learned.timesteps.tolist()
    with pytest.raises(ValueError, match="it replaces None, which is not a diffusers scheduler"):
        scheduler_of(tmp_path).replaced()


def test_a_saved_pipeline_loads_where_the_scheduler_was_not_imported(tmp_path, monkeypatch, ddpm):
    monkeypatch.setattr(ddpm, "scheduler", scheduler_of(tmp_path, DDPM, like=diffusers.DDPMScheduler()))
    ddpm.save_pretrained(tmp_path / "saved")
    monkeypatch.delitem(sys.modules, "ld3_jax.interop.diffusers")
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved").scheduler
    assert type(loaded).__name__ == "LearnedScheduler"
    assert loaded.timesteps.tolist() == ddpm.scheduler.timesteps.tolist()
    monkeypatch.delitem(sys.modules, "ld3_jax.interop")
    with pytest.raises(ValueError, match=r"import ld3_jax\.interop before calling"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")


FROM_STRENGTH = {one: starting_at(one, strength=0.6) for one in (SD, FLOW)}  # of 7 steps 4.2, of 6 steps 3.6


def of_image(pipe, scheduler, **inputs):
    """Run an image pipeline; the state at its first step, what its last one gives, and how many there are."""
    pipe.set_progress_bar_config(disable=True)
    states, steps, step = [], [], scheduler.step

    def watched(output, t, x, **options):
        states.append(x)
        steps.append(step(output, t, x, **options))
        return steps[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe, "scheduler", scheduler)
        patch.setattr(scheduler, "step", watched)
        pipe(output_type="latent", generator=torch.Generator().manual_seed(0), **inputs)
    return states[0], steps[-1][0], len(steps)


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[3]], ids=str)
def test_image_to_image_runs_all_calls_from_the_strength_that_was_learned(tmp_path, stable_diffusion, name, solver):
    parts = dict(stable_diffusion.components)
    pipe = getattr(diffusers, name)(**parts, requires_safety_checker=False)
    image, prompt = torch.rand(1, 3, 8, 8), torch.randn(1, 2, 8)
    inputs = {"image": image, "prompt_embeds": prompt, "guidance_scale": 1.0}
    inputs |= {"mask_image": torch.ones(1, 1, 8, 8), "height": 8, "width": 8} if "Inpaint" in name else {}
    scheduler = scheduler_of(tmp_path, FROM_STRENGTH[SD], solver, output="v", like=parts["scheduler"])
    x_s, given, calls = of_image(pipe, scheduler, num_inference_steps=7, strength=0.6, **inputs)
    assert calls == 4

    def network(x, t):
        alpha = float(np.exp(np.interp(float(t), np.arange(1000), np.log(SD.alphas_cumprod)) / 2))
        return alpha * pipe.unet(x, t, prompt).sample + (1 - alpha**2) ** 0.5 * x

    learned = moved(FROM_STRENGTH[SD], solver)
    close(given, learned.sample(in_jax(network, x_s.shape), SD, jnp.asarray(x_s.numpy())))
    noised = scheduler.add_noise(torch.ones(1, 4), torch.zeros(1, 4), scheduler.timesteps[[3]])
    np.testing.assert_allclose(noised, float(SD.alpha(jnp.float32(0.6))), rtol=1e-5)
    remedy = "pass strength=0.6 and num_inference_steps=7 .6 where it rounds up"
    for wrong in ({"num_inference_steps": 7, "strength": 0.8}, {"num_inference_steps": 4, "strength": 0.6},
                  {"num_inference_steps": 4, "strength": 1.0}, {"num_inference_steps": 50, "strength": 0.6},
                  {"num_inference_steps": 7, "strength": 1.0}):  # fmt: skip
        with pytest.raises(ValueError, match=remedy):
            of_image(pipe, scheduler, **wrong, **inputs)
    with pytest.raises(ValueError, match=remedy):  # text to image
        of_image(stable_diffusion, scheduler, num_inference_steps=7, prompt_embeds=prompt, guidance_scale=1.0)


@pytest.mark.parametrize(("shift", "strength"), [(1.0, 0.6), (3.0, 1 / 3)])
def test_flux_s_image_to_image_starts_from_the_strength_before_the_shift(tmp_path, flux, shift, strength):
    like = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler = scheduler_of(tmp_path, FROM_STRENGTH[FLOW], like=like)
    pipe = diffusers.FluxImg2ImgPipeline(scheduler=like, **flux)
    texts = {"prompt_embeds": torch.randn(1, 5, 32), "pooled_prompt_embeds": torch.randn(1, 32)}
    inputs = {"height": 8, "width": 8, "image": torch.rand(1, 3, 8, 8), **texts}
    seen = []
    hook = flux["transformer"].register_forward_pre_hook(lambda _, a, given: seen.append(given), with_kwargs=True)
    number = {1.0: 6, 3.0: 12}[shift]
    x_s, given, calls = of_image(pipe, scheduler, num_inference_steps=number, strength=strength, **inputs)
    hook.remove()
    assert calls == 4

    @torch.no_grad()
    def network(x, t):
        return flux["transformer"](**{**seen[0], "hidden_states": x, "timestep": torch.full((1,), t)})[0]

    close(given, interop.solve(scheduler._table, network, x_s, "flow"))
    for wrong in ({"num_inference_steps": number, "strength": 0.9}, {"num_inference_steps": 4, "strength": strength}):
        with pytest.raises(ValueError, match=f"pass strength={strength:.4g}"):
            of_image(pipe, scheduler, **wrong, **inputs)
    del inputs["image"]
    with pytest.raises(ValueError, match=f"pass strength={strength:.4g}"):
        of_image(diffusers.FluxPipeline(scheduler=like, **flux), scheduler, num_inference_steps=number, **inputs)


def test_the_dynamic_shift_of_an_image_s_size_tells_the_strength(tmp_path):
    like = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler = scheduler_of(tmp_path, FROM_STRENGTH[FLOW], like=like)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12), mu=float(np.log(3)))  # sigma 0.6 is 1/3, shifted by 3
    scheduler.set_begin_index(8)
    with pytest.raises(ValueError, match=r"pass strength=0\.3333 and num_inference_steps=13"):
        scheduler.set_begin_index(7)


def test_the_shift_of_a_pipeline_tells_the_strength_before_a_run_too(tmp_path):
    like = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler = scheduler_of(tmp_path, FROM_STRENGTH[FLOW], like=like)
    with pytest.raises(ValueError, match=r"pass strength=0\.3333 and num_inference_steps=13"):
        _ = scheduler.init_noise_sigma


def test_where_a_start_is_as_many_steps_as_calls_an_image_must_be_noised(tmp_path):
    scheduler = scheduler_of(tmp_path, starting_at(FLOW, strength=0.9), output="flow")
    scheduler.set_timesteps(4)
    x, t = torch.ones(1, 3), scheduler.timesteps[0]
    with pytest.raises(ValueError, match=r"none was noised; in a pipeline .* strength=0\.9 and num_inference_steps=5"):
        scheduler.step(x, t, x)
    scheduler.scale_noise(x, t[None], x)
    scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="starts from an image, not from noise alone"):
        _ = scheduler.init_noise_sigma


def test_a_start_for_another_model_s_noise_levels_is_refused(tmp_path):
    for schedule, betas in ((FROM_STRENGTH[SD], {}), (starting_at(DDPM, 0.4), SD_BETAS)):
        with pytest.raises(ValueError, match="learned for other noise levels"):
            scheduler_of(tmp_path, schedule, like=diffusers.DDIMScheduler(**betas), prediction_type="epsilon")
    like = diffusers.DDIMScheduler(**SD_BETAS, rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        scheduler_of(tmp_path, FROM_STRENGTH[SD], like=like, prediction_type="epsilon")
