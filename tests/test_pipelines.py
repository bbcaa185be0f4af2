"""Any saved pipeline of diffusers is a model: its network is what its own call hands its scheduler, and both agree on
the samples of what is learned."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from learned_anything import moved

pytest.importorskip("accelerate")
diffusers = pytest.importorskip("diffusers")

import tiny_pipelines as tiny  # noqa: E402
from mains import main  # noqa: E402

import ld3_jax  # noqa: E402
from ld3_jax import pretrained  # noqa: E402
from ld3_jax.interop import LearnedScheduler, pipeline_network, pipelines  # noqa: E402
from ld3_jax.interop.encoded_prompts import encoded  # noqa: E402
from ld3_jax.schedules import RectifiedFlow  # noqa: E402
from ld3_jax.solvers import Solver  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of diffusers and transformers, which change every month
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SOLVER = Solver("dpmpp", 3, 2)
LABELS = [3, 5]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks are slower on several, above all beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    """A user's own call with a learned scheduler: the states, outputs and timesteps of all steps, and the last state."""
    seen, step = [], scheduler.step

    def recorded(output, t, x, *args, **kwargs):
        after = step(output, t, x, *args, **kwargs)
        seen.append((x.clone(), output.clone(), float(t), after[0]))
        return after

    monkeypatch.setattr(scheduler, "step", recorded)
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    pipe(num_inference_steps=SOLVER.nfe, output_type="pt", **call_of(pipe, options), **more)
    return seen


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
        tmp_path / "schedule.json", pipe.scheduler, prediction_type=pipelines.described(pipe.scheduler)[1]
    )
    kept.save_pretrained(tmp_path)
    seen = run(pipe, LearnedScheduler.from_pretrained(tmp_path), options, monkeypatch)
    assert all(step % 1 for _, _, step, _ in seen[1:])  # whole timesteps would hide that they are rounded
    cond, network = first(ours.cond), jax.jit(ours.model.predict)
    for (x, output, _, _), t in zip(seen, learned.discretization.t_c, strict=False):
        close(network(x[:2].numpy(), jnp.float32(t), cond), output[:2, : x.shape[1]].numpy())
    close(
        learned.sample(ours.model, ours.schedule, jnp.asarray(seen[0][0][:2].numpy()), cond), seen[-1][-1][:2].numpy()
    )


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


def test_one_command_learns_writes_what_the_same_pipeline_runs_and_draws_pictures(saved, prompts, tmp_path, monkeypatch):
    pipe, options, folder = saved("flux")
    printed = trained(saved, prompts, "flux", tmp_path / "run").stdout
    assert "teacher: 36 network calls of about" in printed
    assert printed.index("learning: ") < printed.index("mean vs learned")
    for name in ("schedule.json", "report.json", "samples.png"):
        assert (tmp_path / "run" / name).stat().st_size
    scheduler = LearnedScheduler.from_file(tmp_path / "run" / "schedule.json", like=pipe.scheduler)
    seen = run(pipe, scheduler, options, monkeypatch)
    model = pretrained.load(
        "diffusers", file=str(folder), options=json.dumps(options), prompts=str(prompts), decoded=False
    )
    learned = ld3_jax.load(tmp_path / "run" / "schedule.json")
    assert (learned.model["digest"], learned.model["predicts"]) == (model.identity()["digest"], "flow")
    cond = first(loaded(saved, "flux").cond)
    close(learned.sample(model.model, model.schedule, jnp.asarray(seen[0][0].numpy()), cond), seen[-1][-1].numpy())
