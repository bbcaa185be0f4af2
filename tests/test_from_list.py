"""Lists of others as schedules, and schedules as lists: the two commands, end to end."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from learned_anything import moved
from mains import main

from ld3_jax import learning, pretrained
from ld3_jax.interop import read
from ld3_jax.interop.imported_files import read_times
from ld3_jax.networks.latent import scaled_linear
from ld3_jax.schedules import RectifiedFlow, VELinear
from ld3_jax.solvers import Solver

SD = scaled_linear(0.00085, 0.012)


def levels(schedule, t):
    return np.asarray(schedule.sigma(t) / schedule.alpha(t))


def test_a_text_of_levels_is_read_whatever_ends_it(tmp_path):
    path = tmp_path / "sigmas.txt"
    for end in ("0.002", "0", "0.0"):
        path.write_text(f"[80.0, 10, 1;\n 0.1, {end}]\n")
        found = read_times(str(path), VELinear(), 4)
        np.testing.assert_allclose(found.t, [80, 10, 1, 0.1, 0.002], rtol=1e-5)
    finer = read_times(str(path), VELinear(), 8)
    np.testing.assert_allclose(finer.t[3], np.sqrt(10), rtol=1e-5)
    path.write_text("0.999 0.5 0.25 0")
    np.testing.assert_allclose(read_times(str(path), RectifiedFlow(), 3).t, [0.999, 0.5, 0.25, 1e-3], rtol=1e-5)


@pytest.mark.parametrize("least", [0.002, 0.0019999, 0.00205])
def test_a_list_that_ends_at_the_least_level_and_then_at_0_is_for_solvers_that_end_there(least, tmp_path):
    path, schedule = tmp_path / "sigmas.txt", VELinear()
    path.write_text(f"80, 10, 1, 0.1, {least}, 0")
    for n, expected in [(5, [80, 10, 1, 0.1, 0.002, 0.002]), (3, [80, 1, 0.002, 0.002]), (1, [80, 0.002])]:
        found = read_times(str(path), schedule, n)
        np.testing.assert_allclose(found.t, expected, rtol=1e-5)
        to_zero = Solver("dpmpp", n, 1, last_sigma=0.0)
        learned = learning.Learned(to_zero, found, np.asarray(found.lam(schedule)))
        learned.save(tmp_path / "theirs.json", schedule)
        np.testing.assert_allclose(read(tmp_path / "theirs.json").levels, [*expected[:-1], 0], rtol=1e-5)
        np.testing.assert_array_equal(learning.load(tmp_path / "theirs.json").t, found.t)
    found = read_times(str(path), schedule, 5)
    learned = learning.Learned(Solver("dpmpp", 5), found, np.asarray(found.lam(schedule)))
    with pytest.raises(ValueError, match=r"t must descend, .* a last step of no length is sampled with last_sigma=0"):
        learned.save(tmp_path / "other.json", schedule)
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("version", ["zip", "stream"])
def test_ld3_s_own_file_is_read(tmp_path, version):
    t, t_c = torch.tensor([80.0, 5, 0.4, 0.002]), torch.tensor([80.0, 4.5, 0.5, 0.002])
    content = {"params1": torch.zeros(3), "params2": torch.zeros(4), "best_t_steps": torch.cat([t, t_c])}
    torch.save(content, tmp_path / "best_v2.pt", _use_new_zipfile_serialization=version == "zip")
    found = read_times(str(tmp_path / "best_v2.pt"), VELinear(), 3)
    np.testing.assert_allclose(found.t, t)
    np.testing.assert_allclose(found.t_c, t_c)
    with pytest.raises(ValueError, match=r"best_v2\.pt: 2 x 5 times are needed for 4 steps, got .* \(8,\)"):
        read_times(str(tmp_path / "best_v2.pt"), VELinear(), 4)
    with pytest.raises(ValueError, match=r"must descend from 1 to 0\.001"):
        read_times(str(tmp_path / "best_v2.pt"), SD, 3)
    for wrong in (
        [80.0, 4.5, 5.5, 0.002],
        [80.0, 90.0, 0.5, 0.002],
        [80.0, 4.5, -0.5, 0.002],
        [80.0, torch.nan, 1, 0.002],
    ):
        torch.save({"best_t_steps": torch.cat([t, torch.tensor(wrong)])}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"other\.pt: t_c must"):
            read_times(str(tmp_path / "other.pt"), VELinear(), 3)
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"lacks best_t_steps and holds other"):
        read_times(str(tmp_path / "other.pt"), VELinear(), 3)


def test_what_is_no_list_is_refused(tmp_path):
    path = tmp_path / "sigmas.txt"
    for text, message in [
        ("80, ten, 0.002", "numbers and commas alone"),
        ("80, 1, 2, 0.002", "descending"),
        ("", "descending"),
        ("999, 500, 100, 0", r"run from 999 to 0.002, .* from 80 to 0.002; if these are timesteps: .* \(i \+ 1\) / N"),
        ("80, 1, 0.001, 0", "run from 80 to 0.001, but the noise schedule's from 80 to 0.002"),
        ("80, 1, nan, 0", "descending"),
        ("14.6, 1, 0.03", "run from 14.6 to 0.03, but the noise schedule's from 80 to 0.002"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            read_times(str(path), VELinear(), 3)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="neither text nor"):
        read_times(str(path), VELinear(), 3)
    with pytest.raises(FileNotFoundError, match=r"no list nothing\.txt: it is neither a file nor one of ays-sd15, "):
        read_times("nothing.txt", VELinear(), 3)
    with pytest.raises(ValueError, match="ays-sd15: these noise levels run from"):
        read_times("ays-sd15", VELinear(), 3)


def test_a_schedule_becomes_a_list_and_the_list_a_schedule(tmp_path):
    ring = pretrained.load("ring")
    learned = moved(ring.schedule, Solver("dpmpp", 4, 2, lower_order_final=False), network_times=0)
    mine, out, theirs = tmp_path / "schedule.json", tmp_path / "sigmas.txt", tmp_path / "theirs.json"
    learning.Learned(learned.solver, learned.discretization, learned.lam, ring.identity()).save(mine)
    command = ["export", f"--schedule={mine}", f"--out={out}", "--format=sigmas"]
    said = main(*command, check=False).stderr
    assert "a list of times cannot hold the coefficients that were learned" in said
    assert not out.exists()
    said = main(*command, "--lossy", "--check", "--num=50").stdout
    assert "not in it: coefficients" in said
    assert 1e-4 < float(re.search(r"relative (\S+)", said)[1]) < 1
    main(
        "from_list", "--config=configs/gaussian.py", f"--list={out}", f"--out={theirs}",
        "--config.solver.name=dpmpp", "--config.solver.order=2", "--config.solver.nfe=4",
        "--config.solver.lower_order_final=False",
    )  # fmt: skip
    again = learning.load(theirs)
    assert again.solver == learned.solver
    assert again.coefficients is None
    np.testing.assert_allclose(again.t, learned.t, rtol=1e-4)
    assert again.model == ring.identity()
    np.testing.assert_allclose(read(theirs).levels, levels(ring.schedule, jnp.asarray(again.t)), rtol=1e-5)
