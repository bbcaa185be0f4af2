"""Networks trained from scratch: data sets, the transformer and its files, its loss, and the command."""

import gzip
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mains import main
from PIL import Image

from ld3_jax import checkpoint, datasets, denoisers, pretrained
from ld3_jax.networks import files, training, transformer

KEY = jax.random.key(5)
SMALL = transformer.Network(transformer.DiffusionTransformer(32, 1, 4, 10), 8, 1)


@pytest.fixture
def clothes(tmp_path, monkeypatch):
    """A folder as the package of Fashion-MNIST has it, with a few images of noise, whose digests are known."""
    rng, digests = np.random.default_rng(0), []
    for part, count in (("train", 40), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8).tobytes()
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels))
        digests.append(hashlib.sha256(pixels + labels).hexdigest())
    known = datasets.DATASETS["fashion_mnist"]._replace(sha256=tuple(digests))
    monkeypatch.setitem(datasets.DATASETS, "fashion_mnist", known)
    return tmp_path


def test_images_and_labels_belong_together(clothes):
    seen, unseen = datasets.load("fashion_mnist", clothes)
    assert seen.images.shape == (40, 28, 28, 1)
    assert unseen.labels.tolist() == [*range(10), *range(10)]
    assert (
        seen.images[0, 0, :3, 0].tolist()
        == np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)[0, 0, :3].tolist()
    )


def test_bad_files_of_images_are_refused_by_name(clothes):
    labels = clothes / "t10k-labels-idx1-ubyte.gz"
    content = labels.read_bytes()
    labels.write_bytes(gzip.compress(bytes(8) + bytes(20)))
    with pytest.raises(ValueError, match=r"not the test images of fashion_mnist; the SHA-256 is [0-9a-f]{64}, not"):
        datasets.load("fashion_mnist", clothes)
    labels.write_bytes(gzip.compress(bytes(8) + bytes(19)))
    with pytest.raises(ValueError, match="15,680 pixels with 19 labels"):
        datasets.load("fashion_mnist", clothes)
    for damaged in (content[:-9], b"<html>", content[:12] + b"\0\0\0\0" + content[16:]):
        labels.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz is damaged"):
            datasets.load("fashion_mnist", clothes)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        datasets.load("fashion_mnist", clothes)
    with pytest.raises(ValueError, match=r"dataset must be one of \['cifar10', 'fashion_mnist'\], got 'mnist'"):
        datasets.load("mnist", clothes)


def test_both_forms_of_cifar10_are_the_same_images(tmp_path):
    rng = np.random.default_rng(0)
    binary, pictures = tmp_path / "binary", tmp_path / "pictures"
    binary.mkdir()
    pictures.mkdir()
    images, labels = rng.integers(0, 256, (10, 32, 32, 3), np.uint8), rng.integers(0, 10, 10).astype(np.uint8)
    for i in range(5):
        two = slice(2 * i, 2 * i + 2)
        records = np.concatenate([labels[two, None], images[two].transpose(0, 3, 1, 2).reshape(2, -1)], 1)
        (binary / f"data_batch_{i + 1}.bin").write_bytes(records.tobytes())
        Image.fromarray(images[two].reshape(2, 1024, 3)).save(pictures / f"data_batch_{i + 1}.png")
    (pictures / "train_lables.json").write_text(json.dumps(labels.tolist()))
    for folder in (binary, pictures):
        found = datasets.DATASETS["cifar10"].read(folder, True)
        np.testing.assert_array_equal(found.images, images)
        np.testing.assert_array_equal(found.labels, labels)
    (binary / "data_batch_3.bin").write_bytes(bytes(3000))
    (pictures / "data_batch_2.png").write_bytes(b"\x89PNG")
    for folder, message in (
        (binary, "3,000 bytes, not a multiple of 3,073"),
        (pictures, "data_batch_2.png is damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            datasets.load("cifar10", folder)


def test_the_loss_is_that_of_the_denoiser():
    """Against D(x; sigma) of `denoisers.edm_preconditioned`, weighted as in EDM's table 1, on the same draws."""
    params = jax.tree.map(lambda leaf: leaf + 0.1, transformer.initial(SMALL, KEY))
    images, labels = jnp.arange(5 * 64, dtype=jnp.uint8).reshape(5, 8, 8, 1), jnp.arange(5)
    found = jax.jit(training.Denoising(SMALL.module, 10, batch_size=6))(params, KEY, images, labels)
    which, level, noise, drop, _ = jax.random.split(KEY, 5)
    chosen = jax.random.randint(which, (6,), 0, 5)
    sigma = jnp.exp(-1.2 + 1.2 * jax.random.normal(level, (6, 1, 1, 1)))
    y = images[chosen] / 127.5 - 1
    x = y + sigma * jax.random.normal(noise, y.shape)
    one_hot = jax.nn.one_hot(labels[chosen], 10) * jax.random.bernoulli(drop, 0.9, (6, 1))
    predict = jax.jit(denoisers.convert(transformer.model(SMALL, params), transformer.SCHEDULE, "data"))
    denoised = jnp.stack([predict(x[i : i + 1], sigma[i, 0, 0, 0], one_hot[i : i + 1])[0] for i in range(6)])
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    assert float(found) == pytest.approx(float(jnp.mean(weight * (denoised - y) ** 2)), rel=1e-4)


def test_a_written_network_is_read_back(tmp_path):
    params = transformer.initial(SMALL, KEY)
    transformer.write(tmp_path / "model.safetensors", SMALL, params)
    network, read = transformer.read(tmp_path / "model.safetensors")
    assert network == SMALL
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), params, read)
    loaded = pretrained.load("trained", file=str(tmp_path / "model.safetensors"), guidance=2.0)
    x_T, cond = loaded.draw(KEY, 3)
    assert loaded.model(x_T, jnp.asarray(2.0), cond).shape == (3, 8, 8, 1)
    (tmp_path / "other.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    state = files.read(tmp_path / "model.safetensors").state
    files.write(tmp_path / "plain.safetensors", files.Checkpoint("safetensors", state, {}), {})
    files.write(tmp_path / "sizes.safetensors", files.Checkpoint("transformer", state, {"width": 0}), {})
    cases = {
        "other": "other.safetensors",
        "plain": "not a network of experiments.pretrain",
        "sizes": "width must be at",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            transformer.read(tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors that experiments\.pretrain wrote"):
        pretrained.load("trained")


@pytest.mark.parametrize(
    ("sides", "classes", "message"), [(9, 10, "multiples of 4, got 9 and 9"), (8, 3, "of 10 classes .* got 3")]
)
def test_inputs_that_do_not_fit_are_refused(sides, classes, message):
    with pytest.raises(ValueError, match=message):
        SMALL.module.init(KEY, jnp.zeros((1, sides, sides, 1)), jnp.zeros(()), jnp.zeros((1, classes)))


def test_a_killed_run_ends_with_the_same_network(clothes, tmp_path, monkeypatch):
    small = ("width=32", "depth=1", "patch=14")
    keys = [f"--config.network.{one}" for one in small]
    keys += [f"--config.train.{one}" for one in ("steps=3", "batch_size=2", "save_every=1", "rule=adam")]
    of_all = ("pretrain", "--config=configs/pretraining/fashion.py", f"--config.data.folder={clothes}", *keys)
    whole = main(*of_all, f"--workdir={tmp_path / 'whole'}")
    assert "training 3/3" in whole.stderr
    assert "held-out loss" in whole.stdout

    saved, save = [], checkpoint.save

    def killed(folder, step, state):
        if saved:
            raise KeyboardInterrupt
        saved.append(step)
        save(folder, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        assert main(*of_all, f"--workdir={tmp_path / 'killed'}", check=False).returncode == 130
    main(*of_all, f"--workdir={tmp_path / 'killed'}")
    networks = [transformer.read(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    jax.tree.map(np.testing.assert_array_equal, networks[0][1], networks[1][1])
    for name in ("metrics.jsonl", "samples.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    with Image.open(tmp_path / "whole" / "samples.png") as sheet:
        assert sheet.size == (1164, 1164)  # ten rows, one for each class
    (tmp_path / "killed" / "metrics.jsonl").write_text('{"step": 1')
    damaged = main(*of_all, f"--workdir={tmp_path / 'killed'}", check=False)
    assert damaged.returncode == 1
    assert "metrics.jsonl is damaged" in damaged.stderr


@pytest.mark.parametrize("rule", ["adam", "muon"])
def test_both_rules_reach_a_minimum(rule):
    recipe = training.Recipe(steps=60, rate=0.1, rule=rule)
    begun = training.begin({"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}, recipe)

    def loss(params, key):
        return jnp.sum((params["a"] - jnp.eye(2)) ** 2) + jnp.sum((params["b"] + 1) ** 2)

    states = [state for state, _ in training.train(loss, begun, KEY, recipe)]
    assert [int(state.step) for state in states] == [25, 50, 60]
    assert float(loss(states[-1].params, KEY)) < 0.02


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--config.network.width=40", "the width of the network must be a multiple of 32, got 40"),
        ("--config.train.save_every=0", "train.save_every must be at least 1, got 0"),
        ("--config.train.label_dropout=2.0", "label_dropout must be at most 1, got 2.0"),
        ("--config.train.rule=sgd", "rule must be one of ['adam', 'muon'], got 'sgd'"),
        ("--config=configs/gaussian.py", "a configuration of pre-training has the keys"),
    ],
)
def test_bad_settings_end_in_one_line(given, message, clothes, tmp_path):
    keys = ("--config=configs/pretraining/fashion.py", f"--config.data.folder={clothes}")
    ended = main("pretrain", *(keys * (given[:9] != "--config=")), given, f"--workdir={tmp_path / 'run'}", check=False)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_loss_that_is_not_finite_ends_training():
    state = training.begin({"a": jnp.zeros(())}, training.Recipe(steps=2))
    with pytest.raises(FloatingPointError, match="not finite by step 2"):
        list(training.train(lambda params, key: params["a"] * jnp.nan, state, KEY, training.Recipe(steps=2)))
