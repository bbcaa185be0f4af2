"""LD3's own pairs, a file of torch.save for each, as pairs to learn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial

from configs import default
from experiments.run import Run
from ld3_jax.interop.imported_files import read_pairs
from ld3_jax.pretrained import Pretrained, Settings
from ld3_jax.schedules import VELinear
from ld3_jax.teacher import Pairs

SCHEDULE = VELinear()
STATE, CONDITION = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 5, 3), (7, 6)))
PLAIN, WITH_CONDITION = Pairs(STATE, STATE), Pairs(STATE, STATE, CONDITION)


def write(folder, count, **changes):
    """As gen_data.py does: views of a batch, single precision of the noise, double of the sample."""
    folder.mkdir(exist_ok=True)
    latents, images = torch.randn(count, 3, 4, 5), torch.rand(count, 3, 4, 5).double()
    c, uc = torch.randn(2, count, 7, 6)
    for i in range(count):
        pair = {"latent": latents[i], "img": images[i], "c": c[i], "uc": uc[i]} | changes
        torch.save(pair, folder / f"latent_{i:06d}.pt")
    return latents, images, c


def test_pairs_are_read_in_our_layout_with_the_prior_s_scale(tmp_path):
    latents, images, c = write(tmp_path, 3)
    pairs = read_pairs(tmp_path, SCHEDULE, 2, WITH_CONDITION)
    np.testing.assert_allclose(pairs.x_T, 80 * latents[:2].permute(0, 2, 3, 1), rtol=1e-6)
    np.testing.assert_allclose(pairs.x_0, images[:2].permute(0, 2, 3, 1), rtol=1e-6)
    np.testing.assert_array_equal(pairs.cond, c[:2])
    assert pairs.x_0.dtype == jnp.float32
    one = read_pairs(tmp_path / "latent_000002.pt", SCHEDULE, 1, WITH_CONDITION)
    np.testing.assert_allclose(one.x_T[0], 80 * latents[2].permute(1, 2, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "like", "message"),
    [
        ({"c": None, "uc": None}, WITH_CONDITION, r"it lacks \['c'\] and holds img, latent"),
        ({"img": None}, WITH_CONDITION, r"it lacks \['img'\]"),
        ({}, PLAIN, "has a condition c, and the model takes none"),
        (
            {"img": torch.zeros(1, 4, 5)},
            WITH_CONDITION,
            r"its img is of shape \(4, 5, 1\) here, the model's is \(4,",
        ),
        ({"latent": torch.zeros(5)}, WITH_CONDITION, r"its latent is of shape \(5,\) here"),
        ({"c": torch.ones(7, 6), "uc": torch.ones(7, 6)}, WITH_CONDITION, "c and uc are the same"),
    ],
)
def test_what_is_no_pair_of_the_model_is_refused(tmp_path, changes, like, message):
    write(tmp_path, 1, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_pairs(tmp_path, SCHEDULE, 1, like)
    assert "latent_000000.pt" in str(error.value)


def test_too_few_damaged_or_missing_files_are_refused(tmp_path):
    write(tmp_path, 2)
    with pytest.raises(ValueError, match="3 pairs are wanted, and it has 2 files"):
        read_pairs(tmp_path, SCHEDULE, 3, WITH_CONDITION)
    damaged = tmp_path / "latent_000001.pt"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    with pytest.raises(ValueError, match="latent_000001"):
        read_pairs(tmp_path, SCHEDULE, 2, WITH_CONDITION)
    with pytest.raises(FileNotFoundError, match="nothing: neither a folder nor a file"):
        read_pairs(tmp_path / "nothing", SCHEDULE, 3, WITH_CONDITION)


def test_a_configuration_learns_from_them_and_is_judged_on_the_teacher_s(tmp_path):
    latents, images, _ = write(tmp_path / "pairs", 3, c=None, uc=None)
    config = default.get_config()
    config.teacher.pairs, config.data.train, config.data.valid, config.data.test = str(tmp_path / "pairs"), 2, 1, 4
    model = Pretrained("own", Settings(), Partial(lambda x, t, cond: 0.1 * x), SCHEDULE, STATE.shape)
    config.teacher.name, config.teacher.nfe = "ddim", 2
    config.teacher.cache, config.learn.batch_size = str(tmp_path / "teacher"), 2
    known, held_out = Run.of(config).sharing(model=model).pairs
    np.testing.assert_allclose(known.x_T, 80 * latents.permute(0, 2, 3, 1), rtol=1e-6)
    np.testing.assert_allclose(known.x_0, images.permute(0, 2, 3, 1), rtol=1e-6)
    assert held_out.x_T.shape == (4, *STATE.shape)
