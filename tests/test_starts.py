"""A start below full noise is a noise schedule like any other: a schedule learned for it runs from noised data."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_anything import moved
from mains import main
from noise_schedules import SCHEDULES
from PIL import Image

import ld3_jax
from configs import gaussian
from experiments import train as train_main
from ld3_jax import grids, interpolate, pretrained, starts
from ld3_jax.interop import PlainTable
from ld3_jax.interop.imported_files import read_times
from ld3_jax.interop.standalone.table import from_record
from ld3_jax.learning import GaussNewton, distances, make_student, on_grid
from ld3_jax.pretrained import starting
from ld3_jax.schedules import RectifiedFlow, VELinear, VPLinear
from ld3_jax.solvers import Solver
from ld3_jax.space import Space
from ld3_jax.starts import StartingAt, noised, starting_at
from ld3_jax.teacher import Teacher, make_pairs

RING, SOLVER, KEY = pretrained.load("ring"), Solver("dpmpp", 4), jax.random.key(0)
WHOLE = RING.schedule
HALF = starting_at(WHOLE, t=float(WHOLE.inverse_lam(WHOLE.lam(jnp.array([WHOLE.t_max, WHOLE.t_min])).mean())))


@pytest.fixture(scope="module")
def pairs():
    """Pairs from the teacher's own samples: some to learn from, others to judge by."""
    model = RING.starting_at(starting.by_teacher(RING), HALF.t_start)
    return [make_pairs(RING.model, HALF, *model.draw(jax.random.key(seed), 100)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def learned(pairs):
    student = make_student(RING.model, HALF, SOLVER)
    return ld3_jax.fit(student, pairs[0], KEY, start="logsnr", learner=GaussNewton(steps=16, batch_size=10))


@pytest.mark.parametrize(
    ("name", "strength", "t", "level"),
    [
        ("VPLinear", 0.6, 0.6, None),
        ("VPDiscrete", 0.6, 0.6, None),  # step 599 of 1000
        ("VELinear", 0.5, None, (0.5 * (0.002 ** (1 / 7) + 80 ** (1 / 7))) ** 7),
        ("VEGeometric", 0.5, None, (0.5 * (0.01 ** (1 / 7) + 50 ** (1 / 7))) ** 7),
        ("RectifiedFlow", 0.6, 0.6, 0.6),
    ],
)
def test_a_strength_is_the_share_that_programs_mean(name, strength, t, level):
    schedule = SCHEDULES[name]
    at = starting_at(schedule, strength=strength)
    if t is not None:
        assert at.t_max == pytest.approx(t, rel=1e-7)
    if level is not None:
        assert starts.noise_level(schedule, at.t_max) == pytest.approx(level, rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_noise_level_has_its_time(name):
    schedule = SCHEDULES[name]
    low, high = (starts.noise_level(schedule, end) for end in (schedule.t_min, schedule.t_max))
    sigma = math.sqrt(low * high)
    at = starting_at(schedule, sigma=sigma)
    assert schedule.t_min < at.t_max < schedule.t_max
    assert starts.noise_level(schedule, at.t_max) == pytest.approx(sigma, rel=1e-4)


def test_to_grids_it_is_a_noise_schedule_from_there_on():
    for name in grids.GRIDS:
        t = grids.grid(name, HALF, 4)
        assert (float(t[0]), float(t[-1])) == pytest.approx((HALF.t_start, WHOLE.t_min))
    other = starting_at(starting_at(WHOLE, 0.5), 0.3)
    assert (other, hash(other)) == (StartingAt(WHOLE, 0.3), hash(StartingAt(WHOLE, 0.3)))
    assert other != HALF
    assert other.whole is WHOLE
    assert starting_at(other, 0.3) is other
    lam = jax.jit(lambda schedule: schedule.lam(jnp.float32(0.2)))(other)
    assert lam == pytest.approx(float(WHOLE.lam(jnp.float32(0.2))))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"t": 1.0}, r"above t_min = 0.001 .* below t_max = 1 \(sigma = 152.2\), got t=1$"),
        ({"t": 0.001}, "above t_min = 0.001 .* got t=0.001"),
        ({"sigma": 200.0}, "got sigma=200, which is t = 1.0"),
        ({"sigma": 0.01}, "got sigma=0.01, which is t = 0.0009"),
        ({"sigma": -1.0}, "sigma must be greater than 0, got -1"),
        ({"strength": 0.0}, "strength must be greater than 0"),
        ({"strength": 1.0}, "strength must be less than 1, got 1"),
        ({"strength": 1.2}, "strength must be less than 1, got 1.2"),
        ({"strength": 0.001}, "got strength=0.001, which is t = 0.001"),
        ({"t": float("nan")}, "t must be a number"),
        ({}, r"one of \['t', 'sigma', 'strength'\], got none"),
        ({"t": 0.5, "strength": 0.5}, "one of .*, got {'t': 0.5, 'strength': 0.5}"),
    ],
)
def test_a_wrong_start_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        starting_at(VPLinear(), **given)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VPLinear()], ids=str)
def test_a_start_that_single_precision_does_not_tell_from_an_end_is_refused(schedule):
    for t in (schedule.t_max * (1 - 1e-9), schedule.t_min * (1 + 1e-9)):
        with pytest.raises(ValueError, match="a start must lie above t_min"):
            starting_at(schedule, t)
    grids.grid("uniform", starting_at(schedule, schedule.t_max * (1 - 1e-6)), 4)


def test_messages_name_a_start_and_not_a_thousand_numbers():
    schedule = starting_at(SCHEDULES["VPDiscrete"], 0.5)
    assert str(schedule).startswith("VPDiscrete(alphas_cumprod=(0.9999, ")
    assert str(schedule).endswith(" ... from t = 0.5 on")
    assert len(str(schedule)) < 200 < len(repr(schedule))
    assert str(HALF) == f"{WHOLE} from t = 0.304631 on"


def test_a_list_of_levels_is_of_a_flow_wherever_the_flow_starts(tmp_path):
    (tmp_path / "levels.txt").write_text("0.6, 0.4, 0.2, 0")
    found = read_times(str(tmp_path / "levels.txt"), starting_at(RectifiedFlow(), sigma=0.6), 3)
    np.testing.assert_allclose(found.t, [0.6, 0.4, 0.2, 0.001], rtol=1e-5)


def test_a_start_is_in_the_range_of_what_it_restricts():
    with pytest.raises(ValueError, match=r"below t_max = 0\.3"):
        starting_at(starting_at(WHOLE, 0.3), 0.5)
    with pytest.raises(ValueError, match=r"below t_max = 0\.999"):
        starting_at(RectifiedFlow(), sigma=1.5)

    @dataclasses.dataclass(frozen=True)
    class Curved(VELinear):
        space = Space(flat=False)

    with pytest.raises(ValueError, match="a start below full noise is for states that are vectors"):
        starting_at(Curved(), sigma=1.0)


@pytest.mark.parametrize("text", ["", "half", "0.5", "t=", "t=a", "time=0.5", "strength=0.5=1"])
def test_a_text_that_is_no_start_is_refused(text):
    with pytest.raises(ValueError, match="it must be one of t=NUMBER, sigma=NUMBER and strength=NUMBER, got"):
        starts.parse(text)


def test_data_are_noised_to_the_start():
    x_0 = jnp.full((4000, 2), 3.0)
    x_s = noised(KEY, x_0, HALF)
    t = jnp.float32(HALF.t_start)
    assert x_s.mean() == pytest.approx(3 * float(WHOLE.alpha(t)), abs=0.05)
    assert x_s.std() == pytest.approx(float(WHOLE.sigma(t)), rel=0.03)
    np.testing.assert_allclose(noised(KEY, x_0[5:7], HALF, first=5), x_s[5:7], rtol=1e-6)
    tree = noised(KEY, {"a": x_0, "b": x_0}, HALF)
    assert not np.allclose(tree["a"], tree["b"])
    with pytest.raises(ValueError, match="x_0 must be arrays of real floating-point numbers"):
        noised(KEY, jnp.ones((2, 2), int), HALF)


def test_what_is_learned_halves_the_error_of_the_best_standard_grid(learned, pairs):
    student = make_student(RING.model, HALF, SOLVER)
    errors = [distances(student, on_grid(name, HALF, SOLVER), pairs[1]) for name in grids.GRIDS]
    found = learned.distances(student, pairs[1])
    assert float(found.mean()) < 0.5 * min(float(each.mean()) for each in errors)
    assert float(jnp.median(found)) < 0.5 * min(float(jnp.median(each)) for each in errors)


def test_it_samples_with_the_whole_noise_schedule_and_with_its_own(learned, pairs, tmp_path):
    x_s = pairs[1].x_T[:8]
    given = learned.sample(RING.model, WHOLE, x_s)
    np.testing.assert_array_equal(given, learned.sample(RING.model, HALF, x_s))
    np.testing.assert_allclose(given, pairs[1].x_0[:8], atol=0.1)
    learned.save(tmp_path / "schedule.json", WHOLE)
    again = ld3_jax.load(tmp_path / "schedule.json")
    assert again.t_start == HALF.t_start
    np.testing.assert_array_equal(given, again.sample(RING.model, starting_at(WHOLE, 0.9), x_s))
    learned.save(tmp_path / "own.json", HALF)
    own, record = (json.loads((tmp_path / name).read_text()) for name in ("own.json", "schedule.json"))
    assert own == record
    assert record["version"] == 7
    table = from_record(record["table"])
    assert table.prior_scale is None
    assert table.full_noise == pytest.approx(152.17, rel=1e-4)
    assert table.levels[0] == pytest.approx(starts.noise_level(WHOLE, HALF.t_start), rel=1e-5)


def test_another_range_is_refused(learned, tmp_path):
    for schedule, message in (
        (starting_at(WHOLE, 0.2), "below t_max = 0.2"),
        (VPLinear(t_max=0.25), "below t_max = 0.25"),
        (VPLinear(beta_1=10.0), "learned for another noise schedule"),
    ):
        with pytest.raises(ValueError, match=message):
            learned.sample(RING.model, schedule, jnp.zeros((1, 2)))
    full = moved(WHOLE, SOLVER)
    with pytest.raises(ValueError, match=r"learned from full noise, and the noise schedule starts at 0\.3"):
        full.sample(RING.model, HALF, jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"t must run from 1 to 0.001, the noise schedule's range, got 0\.30"):
        dataclasses.replace(learned, t_start=None).check_range(WHOLE)
    learned.save(tmp_path / "schedule.json", WHOLE)
    record = json.loads((tmp_path / "schedule.json").read_text())
    (tmp_path / "schedule.json").write_text(json.dumps({**record, "t_start": 0.5}))
    with pytest.raises(ValueError, match=r"t must start at t_start, 0.5, got \[0\.30"):
        ld3_jax.load(tmp_path / "schedule.json")


@pytest.mark.parametrize("start", [None, True, "0.3", [0.3], math.nan, 10**400], ids=lambda start: f"{start!r:.9}")
def test_a_file_whose_start_is_no_number_is_refused(start, tmp_path):
    path = tmp_path / "schedule.json"
    moved(HALF, SOLVER).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "t_start": start}))
    with pytest.raises(ValueError, match="t_start must be the time at which it starts, got "):
        ld3_jax.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"full_noise": None},
            "must have a prior_scale, or full_noise",
        ),
        ({"prior_scale": 1.0}, "and not both"),
        ({"full_noise": 1.0}, "it does not start below full_noise"),
        ({"full_noise": "much"}, "numbers must be finite"),
        ({"prior_scale": "1"}, "and not both"),
    ],
)
def test_a_table_that_contradicts_its_start_is_refused(change, message):
    record = moved(HALF, SOLVER).plain_table(WHOLE)
    assert isinstance(from_record(record), PlainTable)
    with pytest.raises(ValueError, match=message):
        from_record({**record, **change})


def test_a_model_from_a_start_draws_noised_samples_of_its_own(tmp_path, monkeypatch):
    teacher = Teacher(Solver("unipc", 10), cache=tmp_path)
    model = RING.starting_at(starting.by_teacher(RING, teacher), strength=0.05)
    x_s, cond = model.draw(KEY, 6)
    assert cond is None
    assert np.linalg.norm(x_s, axis=-1).std() < 0.5  # little noise: on the ring
    np.testing.assert_allclose(model.draw(KEY, 3, 2)[0], x_s[2:5], atol=1e-5)
    assert not np.allclose(model.draw(jax.random.key(1), 6)[0], x_s)
    monkeypatch.setattr("ld3_jax.teacher._integrate", lambda *args: pytest.fail("the teacher runs"))
    np.testing.assert_array_equal(model.draw(KEY, 6)[0], x_s)  # from the cache


def test_times_between_two_starts():
    low, middle, high = (starting_at(WHOLE, t) for t in (0.2, 0.4, 0.8))
    some = [moved(at, Solver("dpmpp", n), coefficients=0) for at in (low, high) for n in (4, 6)]
    full = moved(WHOLE, SOLVER, coefficients=0)
    for nfe in (4, 5):
        found = interpolate(some, nfe, WHOLE, t_start=0.4)
        found.check_range(WHOLE)
        assert (found.t_start, found.solver.nfe) == (0.4, nfe)
        ends = [interpolate(some, nfe, WHOLE, t_start=t).t for t in (0.2, 0.8)]
        assert (ends[0] < found.t)[:-1].all()
        assert (found.t < ends[1])[:-1].all()
    even = [moved(at, SOLVER, times=0, network_times=0, coefficients=0) for at in (low, high)]
    np.testing.assert_allclose(interpolate(even, 4, WHOLE, t_start=0.4).t, grids.grid("logsnr", middle, 4), rtol=1e-5)
    assert interpolate([*some, full], 4, WHOLE, t_start=1.0) is full
    assert interpolate([full, some[0]], 4, WHOLE, t_start=0.5).t_start == 0.5
    for given, t_start, message in (
        (some, None, r"learned from t = \[0.2, 0.8\] on: give t_start"),
        (some, 0.9, r"between the learned starts, \[0.2, 0.8\], got 0.9"),
        ([moved(low, SOLVER), moved(high, SOLVER)], 0.4, "only times are interpolated"),
        ([some[0], some[0]], None, "different numbers of calls"),
    ):
        with pytest.raises(ValueError, match=message):
            interpolate(given, 4, WHOLE, t_start=t_start)


def test_states_of_a_file_are_read_or_refused(tmp_path):
    states = np.random.default_rng(0).normal(size=(3, 4, 4, 3)).astype("f4")
    np.save(tmp_path / "a.npy", states.astype("f8"))
    np.savez(tmp_path / "a.npz", samples=states)
    for name in ("a.npy", "a.npz"):
        np.testing.assert_array_equal(starting.read(tmp_path / name, (4, 4, 3)), states)
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((4, 4, 3), 255, "u1")).save(tmp_path / "images" / "white.png")
    np.testing.assert_array_equal(starting.read(tmp_path / "images", (4, 4, 3)), np.ones((1, 4, 4, 3)))
    np.save(tmp_path / "bytes.npy", states.astype("u1"))
    np.save(tmp_path / "nan.npy", states * np.nan)
    np.save(tmp_path / "large.npy", states.astype("f8") * 1e300)
    np.save(tmp_path / "other.npy", states.astype(">f4"))
    np.testing.assert_array_equal(starting.read(tmp_path / "other.npy", (4, 4, 3)), states)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "a.txt").touch()
    for name, error, message in (
        ("bytes.npy", ValueError, r"uint8\[3, 4, 4, 3\]'; images of 8 bits are x / 127.5 - 1"),
        ("nan.npy", FloatingPointError, "nan.npy: 3 of 3 are not finite"),
        ("large.npy", FloatingPointError, "large.npy: 3 of 3 are not finite"),
        ("cut.npy", ValueError, "damaged, or no .npy"),
        ("a.txt", ValueError, "must be a .npy, a .npz or a folder"),
        ("none.npy", FileNotFoundError, "no images .*none.npy"),
    ):
        with pytest.raises(error, match=message):
            starting.read(tmp_path / name, (4, 4, 3))
    with pytest.raises(ValueError, match=r"of shape \(n, 8, 8, 3\), as the network sees them, got 'float"):
        starting.read(tmp_path / "a.npy", (8, 8, 3))
    images = starting.of_states(states)
    np.testing.assert_array_equal(images(KEY, 3, 2, None), states[[2, 0, 1]])


QUICK = {"data.train": 10, "data.test": 4, "learn.steps": 2, "learn.batch_size": 4, "solver.nfe": 3, "teacher.nfe": 10}
QUICK |= {"learn.init": "logsnr", "teacher.batch_size": 14}


def train(folder, check=True, **changes):
    config = {**QUICK, "teacher.cache": folder / "cache", **changes}
    options = [f"--config.{name}={value}" for name, value in config.items()]
    return main("train", "--config=configs/gaussian.py", f"--workdir={folder / 'run'}", *options, check=check)


def test_the_commands_learn_and_sample_from_a_start(tmp_path):
    states = np.asarray(RING.draw(KEY, 14)[0])
    np.save(tmp_path / "data.npy", states)
    train(tmp_path, **{"solver.start": "strength=0.4", "data.file": tmp_path / "data.npy"})
    schedule = tmp_path / "run" / "schedule.json"
    learned = ld3_jax.load(schedule)
    assert learned.t_start == 0.4
    images, out = f"--images={tmp_path / 'data.npy'}", tmp_path / "samples.npy"
    main("sample", f"--schedule={schedule}", "--num=3", images, f"--out={out}")
    model = RING.starting_at(starting.of_states(states), 0.4)
    expected = learned.sample(RING.model, WHOLE, *model.draw(jax.random.key(1), 3))
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)
    for flags, message in (
        (["--images=none.npy"], "no images none.npy"),
        (["--start=t=0.3"], "--start=t=0.3 is for schedules that are interpolated"),
        (["--nfe=3", "--start=t=0.3"], r"t_start must lie between the learned starts, \[0.4\], got 0.3"),
    ):
        failed = main("sample", f"--schedule={schedule}", f"--out={out}", *flags, check=False)
        assert failed.returncode
        assert message.replace("\\", "") in failed.stderr
    np.save(tmp_path / "data.npy", states + 1)
    config = gaussian.get_config()
    text = {**QUICK, "teacher.cache": str(tmp_path / "cache"), "solver.start": "strength=0.4"}
    config.update_from_flattened_dict({**text, "data.file": str(tmp_path / "data.npy")})
    with pytest.raises(ValueError, match=r"another configuration: contents\.data_file: '\w+', here '\w+'\. Take"):
        train_main.run(config, tmp_path / "run")
    own = main("evaluate", f"--schedule={schedule}", "--num=4", "--teacher_nfe=10", f"--cache={tmp_path / 'cache'}")
    assert "learned" in own.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver.start": "strength=1"}, "solver.start: strength must be less than 1, got 1.0"),
        ({"solver.start": "half"}, "solver.start: it must be one of t=NUMBER"),
        ({"solver.start": "t=2"}, "solver.start: a start must lie above t_min = 0.001"),
        ({"data.file": "data.npy"}, "data.file is what solver.start adds noise to, and there is none"),
        (
            {"solver.start": "t=0.5", "data.file": "data.npy", "data.candidates": "9"},
            "data.candidates are noises that are drawn, and data.file and teacher.pairs give states or pairs, got 9",
        ),
        ({"solver.start": "t=0.5", "teacher.pairs": "pairs"}, "teacher.pairs are of full noise"),
        ({"solver.start": "t=0.5", "data.file": "{}/few.npy"}, "has 3 states, train + valid + test are 14"),
        (
            {"learn.init": "{}/start.json"},
            "learn.init: it was learned from t = 0.304631 on, and this student from VP",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, changes, message):
    np.save(tmp_path / "few.npy", np.zeros((3, 2), "f4"))
    moved(HALF, Solver("dpmpp", 3)).save(tmp_path / "start.json")
    failed = train(tmp_path, check=False, **{key: value.format(tmp_path) for key, value in changes.items()})
    assert failed.returncode
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1
