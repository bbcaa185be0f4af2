"""Any saved pipeline of diffusers is a model: its network is what its own call hands its scheduler, and both agree on
the samples of a learned schedule."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from learned_anything import moved
from safetensors.torch import load_file, save_file

pytest.importorskip("accelerate")
diffusers = pytest.importorskip("diffusers")

import tiny_pipelines as tiny  # noqa: E402
from mains import main  # noqa: E402

import ld3_jax  # noqa: E402
from ld3_jax import pretrained  # noqa: E402
from ld3_jax.interop import LearnedScheduler, pipeline_network, pipelines  # noqa: E402
from ld3_jax.interop.diffusers import described  # noqa: E402
from ld3_jax.interop.encoded_prompts import encoded  # noqa: E402
from ld3_jax.interop.pipeline_noise import noise  # noqa: E402
from ld3_jax.programs import of_model  # noqa: E402
from ld3_jax.solvers import Solver  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of diffusers and transformers, which change every month
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SOLVER = Solver("dpmpp", 3, 2)
LABELS = [3, 5]


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """saved(family) -> the pipeline, the keywords of its call, and its folder; each is built once."""
    folder = tmp_path_factory.mktemp("pipelines")

    @functools.cache
    def of(family):
        pipe, options = tiny.build(family)
        pipe.save_pretrained(folder / family)
        return pipe, options, folder / family

    return of


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(tiny.PROMPTS))
    return path


def loaded(saved, family, *, decoded=False, dtype="float32", **changed):
    """The pipeline as this library loads it."""
    _, options, folder = saved(family)
    given = {"prompt": tiny.PROMPTS, "class_labels": np.array(LABELS), "batch_size": None}
    return pipeline_network.load(
        str(folder), dtype=dtype, options={**options, **changed}, conditions=lambda kind, pipe: given[kind],
        decoded=decoded, on_progress=lambda *_: None,
    )  # fmt: skip


def call_of(pipe, options, count=2):
    """Keywords of a user's own call, for the first prompts."""
    takes = pipelines.Driven(pipe).takes
    given = {"prompt": tiny.PROMPTS[:count], "class_labels": LABELS[:count], "batch_size": count}
    texts = {name: [value] * count for name, value in options.items() if name == "negative_prompt"}
    kind = next(name for name in given if name in takes)
    return {**options, **texts, kind: given[kind], "generator": torch.Generator().manual_seed(1)}


def run(pipe, scheduler, options, monkeypatch, **more):
    """A user's own call with a learned scheduler: its images, and what each step got and gave."""
    seen, step = [], scheduler.step

    def recorded(output, t, x, *args, **kwargs):
        after = step(output, t, x, *args, **kwargs)
        seen.append((x.clone(), output.clone(), float(t), after[0]))
        return after

    monkeypatch.setattr(scheduler, "step", recorded)
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    images = pipe(num_inference_steps=SOLVER.nfe, output_type="pt", **call_of(pipe, options), **more)[0]
    return images, seen


def close(given, expected, tolerance=1e-3):
    given, expected = np.asarray(given), np.asarray(expected)
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() < tolerance * np.abs(expected).max()


def first(cond, count=2):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[:count]), cond)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_pipeline_s_own_call_and_jax_agree_on_network_and_samples(family, saved, tmp_path, monkeypatch):
    pipe, options, _ = saved(family)
    ours = loaded(saved, family)
    learned = moved(ours.schedule, SOLVER)
    learned.save(tmp_path / "schedule.json", ours.schedule)
    kept = LearnedScheduler.from_file(
        tmp_path / "schedule.json", pipe.scheduler, prediction_type=described(pipe.scheduler)[1]
    )
    kept.save_pretrained(tmp_path)
    images, seen = run(pipe, LearnedScheduler.from_pretrained(tmp_path), options, monkeypatch)
    assert all(step % 1 for _, _, step, _ in seen[1:])  # whole timesteps would hide that they are rounded
    cond, network = first(ours.cond), jax.jit(ours.model.predict)
    for (x, output, _, _), t in zip(seen, learned.discretization.t_c, strict=False):
        close(network(x[:2].numpy(), jnp.float32(t), cond), output[:2, : x.shape[1]].numpy())
    if cond is not None:  # each sample has its own condition
        other = jax.tree.map(lambda leaf: leaf[::-1], cond)
        with pytest.raises(AssertionError):
            close(network(x[:2].numpy(), jnp.float32(t), other), output[:2, : x.shape[1]].numpy())
    x_0 = learned.sample(ours.model, ours.schedule, jnp.asarray(seen[0][0][:2].numpy()), cond)
    close(x_0, seen[-1][-1][:2].numpy())
    frame = images[:, images.shape[1] // 2] if images.ndim == 5 else images  # the middle one of a video
    assert np.abs((ours.pictures(np.asarray(x_0)) + 1) / 2 - frame.movedim(1, -1).numpy()).max() < 2e-3


def trained(saved, prompts, family, folder, *more):
    _, options, file = saved(family)
    return main(
        "train", "--config=configs/diffusers.py", f"--workdir={folder}", f"--config.network.file={file}",
        f"--config.network.options={json.dumps(options)}", f"--config.network.prompts={prompts}",
        "--config.network.dtype=float32", f"--config.teacher.cache={folder}/teacher", "--config.teacher.nfe=6",
        f"--config.solver.nfe={SOLVER.nfe}", "--config.data.train=4", "--config.data.test=2",
        "--config.learn.init=uniform", "--config.learn.steps=2", "--config.learn.batch_size=2",
        "--config.learn.validate_every=2", *more,
    )  # fmt: skip


def test_one_command_learns_writes_what_the_same_pipeline_runs_and_draws_pictures(
    saved, prompts, tmp_path, monkeypatch
):
    pipe, options, folder = saved("flux")
    printed = trained(saved, prompts, "flux", tmp_path / "run").stdout
    assert "teacher: 36 network calls of about" in printed
    assert printed.index("learning: ") < printed.index("mean vs learned")
    for name in ("schedule.json", "report.json", "samples.png"):
        assert (tmp_path / "run" / name).stat().st_size
    main("sample", f"--schedule={tmp_path}/run/schedule.json", "--num=2", f"--out={tmp_path}/sampled.png")
    assert (tmp_path / "sampled.png").stat().st_size
    scheduler = LearnedScheduler.from_file(tmp_path / "run" / "schedule.json", like=pipe.scheduler)
    calls = []
    _, seen = run(
        pipe, scheduler, options, monkeypatch, callback_on_step_end=lambda pipe, i, t, given: calls.append(i) or {}
    )
    assert calls == [*range(SOLVER.nfe)]
    model = pretrained.load(
        "diffusers", file=str(folder), options=json.dumps(options), prompts=str(prompts), decoded=False
    )
    learned = ld3_jax.load(tmp_path / "run" / "schedule.json")
    assert (learned.model["digest"], learned.model["predicts"]) == (model.identity()["digest"], "flow")
    cond = first(loaded(saved, "flux").cond)
    close(learned.sample(model.model, model.schedule, jnp.asarray(seen[0][0].numpy()), cond), seen[-1][-1].numpy())


def test_a_loss_on_pictures_learns_through_the_pipeline_s_decoder(saved, prompts, tmp_path):
    trained(saved, prompts, "sd3", tmp_path, "--config.network.decoded=True", "--config.learn.loss=rmse")
    ours, pipe = loaded(saved, "sd3", decoded=True), saved("sd3")[0]
    x = 0.3 * np.random.default_rng(0).standard_normal((2, *ours.shape), np.float32)
    found = jax.grad(lambda x: (ours.decode(x) ** 3).sum())(jnp.asarray(x))
    latents = torch.tensor(x, requires_grad=True)
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
    (images.clamp(-1, 1) ** 3).sum().backward()
    close(ours.decode(jnp.asarray(x)), images.detach().clamp(-1, 1).movedim(1, -1).numpy())
    close(found, latents.grad.numpy(), 0.02)


def test_half_precision_is_of_the_network_alone(saved):
    exact, half = (loaded(saved, "wan", dtype=dtype) for dtype in ("float32", "bfloat16"))
    x, at = jax.random.normal(jax.random.key(0), (2, *exact.shape)), jnp.float32(0.5)
    expected, found = (ours.model.predict(x, at, first(ours.cond)) for ours in (exact, half))
    assert found.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05


def test_guidance_is_the_pipeline_s_own_default_unless_options_say_another(saved):
    of = [loaded(saved, "sdxl", **more) for more in ({}, {"guidance_scale": 5.0}, {"guidance_scale": 2.0})]
    x, at = jax.random.normal(jax.random.key(0), (2, *of[0].shape)), jnp.float32(0.5)
    default, five, two = (ours.model.predict(x, at, first(ours.cond)) for ours in of)
    close(default, five, 1e-6)
    with pytest.raises(AssertionError):
        close(default, two)
    # By which the teacher's cache tells them apart.
    programs = [of_model(ours.model, ours.schedule, at, x, first(ours.cond)) for ours in of]
    assert programs[0] == programs[1] != programs[2]
    assert not programs[0].unseen


def test_guidance_that_depends_on_the_step_s_number_is_refused(saved):
    with pytest.raises(ValueError, match=r"predicts depends on the number of a step.*skip_guidance"):
        loaded(saved, "sd3", skip_guidance_layers=[0], guidance_scale=4.0)


def _encode(prompts):
    """As a pipeline may: padded to the longest, no mask where nothing is padded, an array of no prompt, both halves."""
    length = max(map(len, prompts))
    hidden = torch.tensor([[float(ord(c)) for c in one.ljust(length, "\0")] for one in prompts])
    mask = hidden != 0
    both = torch.cat([0 * hidden[:, :1], hidden[:, :1]])
    return [(hidden, None if mask.all() else mask), (both.to(torch.bfloat16), torch.arange(64), "text")]


@pytest.mark.parametrize("prompts", [["ab"], ["ab", "cd"], ["ab", "cde"], ["ab"] * 33 + ["abc"] * 31, ["abc"] * 65])
def test_encoded_prompts_are_handed_back_for_any_batch(prompts):
    kept = encoded(_encode, prompts)
    for batch in (prompts[:1], prompts[-1:] * 3):
        rows = [prompts.index(one) for one in batch]
        (hidden, mask), (both, ids, text) = kept.of([torch.from_numpy(leaf[rows]) for leaf in kept.cond])
        (wanted, _), (wanted_both, wanted_ids, _) = _encode(batch)
        length = wanted.shape[1]
        assert torch.equal(hidden[:, :length], wanted)
        assert not hidden[:, length:].any()
        assert mask is None or torch.equal(mask, hidden != 0)
        assert both.dtype == torch.bfloat16
        assert torch.equal(both, wanted_both)
        assert torch.equal(ids, wanted_ids)
        assert text == "text"


def test_what_does_not_grow_with_the_prompts_is_refused():
    with pytest.raises(ValueError, match="encode_prompt gives 3 rows for 2 prompts, and 2 for one"):
        encoded(lambda prompts: [torch.zeros(1 + len(prompts), 2)], ["a", "b"])


SCHEDULERS = [
    (diffusers.DDPMScheduler(), "noise", 0.25, 249.0),
    (diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, timestep_spacing="trailing"), "noise", 0.25, 249.0),
    (diffusers.DDPMScheduler(num_train_timesteps=500, prediction_type="sample"), "data", 0.25, 124.0),
    (diffusers.DDIMScheduler(trained_betas=[0.1, 0.2, 0.3, 0.4], prediction_type="v_prediction"), "v", 0.5, 1.0),
    (diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), "flow", 0.25, 250.0),
    (diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "flow", 0.25, 250.0),
    (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "reversed_flow", 0.25, 750.0),
    (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "flow", 0.25, 250.0),
]


@pytest.mark.parametrize(("scheduler", "prediction", "t", "step"), SCHEDULERS, ids=lambda of: type(of).__name__)
def test_a_scheduler_s_noise_is_read_and_what_is_learned_gets_the_same_timesteps(
    scheduler, prediction, t, step, tmp_path
):
    says = noise(scheduler)
    assert (says.prediction, float(says.timestep(t))) == (prediction, pytest.approx(step))
    if prediction in ("noise", "data", "v"):
        alphas = np.sqrt(scheduler.alphas_cumprod.numpy())
        i = int(step)
        assert float(says.schedule.alpha(jnp.float32(t))) == pytest.approx(alphas[i], rel=1e-5)
    learned = moved(says.schedule, SOLVER)
    learned.save(tmp_path / "schedule.json", says.schedule)
    kept = LearnedScheduler.from_file(tmp_path / "schedule.json", scheduler)
    close(kept.timesteps.numpy(), [float(says.timestep(t)) for t in learned.discretization.t_c[:-1]], 1e-4)


def test_noise_that_ends_without_signal_starts_where_there_is_some():
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):  # the one writes 0, the other 2^-24
        to_zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
        scheduler = getattr(diffusers, name)(**tiny.SD_BETAS, **to_zero)
        assert 1e-4 < float(noise(scheduler).schedule.alpha(jnp.float32(1.0))) < 3e-4


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            diffusers.EDMEulerScheduler(),
            "EDMEulerScheduler must be a scheduler of variance-preserving noise or of a flow",
        ),
        (diffusers.DDIMScheduler(rescale_betas_zero_snr=True), "ends without signal .* predicted noise says nothing"),
    ],
    ids=str,
)
def test_other_noise_is_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        noise(scheduler)


def _without(*names):
    def remove(folder):
        for name in names:
            for path in folder.glob(name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _cut(folder):
    (folder / "model_index.json").write_text("[]")


def _poisoned(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({name: torch.full_like(one, torch.nan) for name, one in weights.items()}, path)


def _incomplete(part):
    def remove(folder):
        (path,) = (folder / part).glob("*.safetensors")
        weights = load_file(path)
        weights.pop(next(name for name in weights if name.endswith("embedding.weight") or name == "conv_in.bias"))
        save_file(weights, path, metadata={"format": "pt"})

    return remove


REFUSED = [
    ("ddpm", {}, _incomplete("unet"), "its files lack 1 weights, such as .'unet: conv_in.bias'"),
    (
        "sd1",
        {"prompts": "p.txt"},
        _incomplete("text_encoder"),
        "its files lack 1 weights, such as .'embeddings.*embedding.weight'",
    ),
    ("ddpm", {"options": '{"eta": NaN}'}, None, "network.options must be an object of JSON.*NaN is not a number"),
    (
        "ddpm",
        {"options": '{"a": 1, "a": 2}'},
        None,
        "network.options must be an object of JSON.*a name is there twice",
    ),
    ("ddpm", {}, _without("model_index.json"), "not the folder of a pipeline of diffusers, which has a model_index"),
    ("ddpm", {}, _without("unet/*.safetensors"), "no file named diffusion_pytorch_model"),
    ("ddpm", {}, _without("unet"), r"lacks \['unet'\], which its model_index.json names"),
    ("ddpm", {}, _cut, "model_index.json"),
    ("ddpm", {}, _poisoned, "not finite"),
    (
        "ddpm",
        {"prompts": "p.txt"},
        None,
        "DDPMPipeline takes no prompts: network.prompts must be '', got '.*prompts.txt'",
    ),
    ("ddpm", {"options": "{"}, None, r"network.options must be an object of JSON, such as .* got '\{'"),
    ("ddpm", {"options": "[1]"}, None, "network.options must be an object of JSON"),
    (
        "ddpm",
        {"options": '{"guidance": 2}'},
        None,
        r"network.options must be among \[\] .*DDPMPipeline, got \['guidance'\]",
    ),
    ("flux", {}, None, "FluxPipeline is conditioned on text: network.prompts must name a file"),
    (
        "flux",
        {"prompts": "p.txt", "options": '{"latents": 1}'},
        None,
        r"must be among \['prompt_2', .* got \['latents'\]",
    ),
    ("flux", {"prompts": "p.txt", "options": '{"height": "a"}'}, None, "flux: "),
    (
        "sana",
        {"prompts": "p.txt", "options": '{"height": 16, "use_resolution_binning": false}'},
        None,
        "divisible by 32",
    ),
    (
        "dit",
        {"prompts": "p.txt"},
        None,
        "must be a number below 1000 or a name of DiTPipeline.labels, got .'a red cat'",
    ),
    (
        "ddpm",
        {"guidance": 2.0},
        None,
        r"'diffusers' has no guidance: it must be 1.0, got 2.0; its settings are .*'options'",
    ),
]


@pytest.mark.parametrize(("family", "settings", "damage", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_loaded_is_refused_in_one_line(family, settings, damage, message, saved, prompts, tmp_path):
    folder = saved(family)[2]
    if damage:
        folder = shutil.copytree(folder, tmp_path / "copy")
        damage(folder)
    settings = {name: str(prompts) if name == "prompts" else value for name, value in settings.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        pretrained.load("diffusers", file=str(folder), decoded=False, **settings)
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_told():
    with pytest.raises(FileNotFoundError, match=r"no folder '': network\.file must name that of a saved pipeline"):
        pretrained.load("diffusers")


class _OfImages:
    scheduler = diffusers.DDPMScheduler()

    def __call__(self, image, batch_size=1):
        pass


class _OfSounds:
    scheduler = diffusers.DDPMScheduler()

    def __call__(self, sound=None):
        pass


class _OfText:
    scheduler = diffusers.DDPMScheduler()

    def __call__(self, prompt=None):
        pass


class _WithoutScheduler:
    def __call__(self, batch_size=1):
        pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_OfImages, r"the call of _OfImages needs \['image'\]: give it in network.options, or "),
        (_OfSounds, r"the call of _OfSounds takes none of \['prompt', 'class_labels', 'batch_size'\]"),
        (_OfText, "_OfText has no encode_prompt"),
        (_WithoutScheduler, "_WithoutScheduler has no scheduler"),
    ],
)
def test_a_pipeline_that_cannot_be_driven_is_told_what_it_lacks_and_where_to_go(kind, message):
    with pytest.raises(ValueError, match=f"FOLDER: {message}.*rite the network's call yourself"):
        pipelines.check(pipelines.Driven(kind()), "FOLDER")


def test_lists_among_the_options_are_tuples(saved, prompts):
    """To which SDXL's call adds others."""
    cropped, whole = (
        pretrained.load("diffusers", file=str(saved("sdxl")[2]), prompts=str(prompts), options=options, decoded=False)
        for options in (json.dumps({"crops_coords_top_left": [3, 4]}), "")
    )
    x, cond = whole.draw(jax.random.key(0), 2)
    outputs = [one.model(x, jnp.float32(0.5), cond) for one in (cropped, whole)]
    assert float(jnp.abs(outputs[0] - outputs[1]).max()) > 1e-6  # the network is told of the crop


def test_classes_are_named_or_numbered_or_all_of_them(saved, tmp_path):
    folder = str(shutil.copytree(saved("dit")[2], tmp_path / "dit"))
    index = json.loads(
        (tmp_path / "dit" / "model_index.json").read_text()
    )  # as published: nothing else writes it there
    index["id2label"] = {"0": "tench", "1": "goldfish, Carassius auratus"}
    (tmp_path / "dit" / "model_index.json").write_text(json.dumps(index))
    every = pretrained.load("diffusers", file=folder, decoded=False)
    _, drawn = every.draw(jax.random.key(0), 1000)
    assert sorted(np.asarray(drawn).tolist()) == [*range(1000)]
    (tmp_path / "classes.txt").write_text("goldfish\n7\n")
    some = pretrained.load("diffusers", file=folder, prompts=str(tmp_path / "classes.txt"), decoded=False)
    _, drawn = some.draw(jax.random.key(0), 2)
    assert sorted(np.asarray(drawn).tolist()) == [1, 7]


def test_a_pipeline_saved_with_what_was_learned_is_the_same_model(saved, tmp_path):
    pipe, _, folder = saved("ddpm")
    learned, schedule = (
        moved(noise(pipe.scheduler).schedule, SOLVER),
        noise(pipe.scheduler).schedule,
    )
    learned.save(tmp_path / "schedule.json", schedule)
    other = diffusers.DDPMPipeline(pipe.unet, LearnedScheduler.from_file(tmp_path / "schedule.json", pipe.scheduler))
    other.save_pretrained(tmp_path / "saved")
    models = [pretrained.load("diffusers", file=str(path), decoded=False) for path in (folder, tmp_path / "saved")]
    assert models[0].schedule == models[1].schedule
    assert models[0].identity()["digest"] == models[1].identity()["digest"]
