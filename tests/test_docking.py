"""Learning for poses, the schedule's file, its format for DiffDock; real molecules if the extra is installed."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from mains import main
from test_poses import NOISE

import ld3_jax
from ld3_jax import learning, losses, poses, pretrained
from ld3_jax.grids import GRIDS
from ld3_jax.interop import formats
from ld3_jax.learning import ByPart, Discretization, Gaps, GaussNewton, GradientDescent, Learned, WithCoefficients
from ld3_jax.learning.second_order import quadratic_model
from ld3_jax.poses import Pose, diffdock, molecules, rotations
from ld3_jax.schedules import VPLinear
from ld3_jax.solvers import Solver
from ld3_jax.teacher import Teacher

KEY = jax.random.key(2)
EXTRA = all(importlib.util.find_spec(name) for name in ("rdkit", "MDAnalysis", "prolif", "posebusters"))
with_extra = pytest.mark.skipif(not EXTRA, reason="needs the extra docking")
FEW = Solver("dpmpp", 3, 2)


@Partial
def smooth(x, t, cond=None):
    """Stands in for a score: smooth, not linear, with all parts depending on one another; it compiles fast."""
    sigma = NOISE.sigmas(t)
    down = jax.vmap(rotations.rotate)(rotations.inverse(x.rotation), jnp.ones((len(x.rotation), 1, 3)))[:, 0]
    pull = x.translation * sigma.translation / (1 + sigma.translation**2)
    turn = sigma.rotation / (0.2 + sigma.rotation) * jnp.cross(down, jnp.asarray([[1.0, 0.0, 0.5]]))
    twist = jnp.sin(x.torsions) + 0.3 * jnp.tanh(x.translation[:, :2])
    return Pose(pull + 0.1 * down, turn, twist * sigma.torsions / (0.2 + sigma.torsions))


@Partial
def coordinates(pose):
    """Stands in for atoms: numbers that tell poses apart; they compile fast."""
    axes = jax.vmap(rotations.rotate)(pose.rotation, jnp.broadcast_to(jnp.eye(3), (len(pose.rotation), 3, 3)))
    parts = (pose.translation, axes.reshape(-1, 9), jnp.cos(pose.torsions), jnp.sin(pose.torsions))
    return jnp.concatenate(parts, -1)


@pytest.fixture(scope="module")
def setting():
    """A student of poses, pairs to learn from, and pairs that were never seen."""
    x_T = poses.draw_prior(KEY, 60, 2)
    pairs = ld3_jax.make_pairs(smooth, NOISE, x_T, teacher=Teacher(Solver("ipndm", 100, 2), "uniform", batch_size=60))
    pairs = pairs._replace(x_0=jax.jit(coordinates)(pairs.x_0))
    student = learning.make_student(smooth, NOISE, FEW, losses.both(pairs.x_0), coordinates)
    return student, jax.tree.map(lambda leaf: leaf[:30], pairs), jax.tree.map(lambda leaf: leaf[30:], pairs)


def test_learning_on_the_manifold_beats_the_standard_grids_on_unseen_noise(setting):
    student, known, unseen = setting
    learner = GaussNewton(steps=8, batch_size=10, validate_every=4, tangents=2000)
    learned = learning.fit(student, known, KEY, parametrisation=ByPart(), learner=learner, start="edm")
    of_grids = [learning.distances(student, learning.on_grid(name, NOISE, FEW), unseen).mean() for name in GRIDS]
    assert learned.t.shape == learned.lam.shape == (4, 3)
    assert learned.distances(student, unseen).mean() < 0.9 * min(of_grids)


def test_the_quadratic_model_on_a_manifold_has_the_gradient_of_the_loss(setting):
    student, known, _ = setting
    few = jax.tree.map(lambda leaf: leaf[:4], known)
    student = student._replace(solver=Solver("euler", 2), loss=losses.l2)
    task = learning.make_task(student, few, KEY, ByPart(), GaussNewton(batch_size=4))
    params = task.parametrisation.init(learning.on_grid("uniform", NOISE, student.solver), NOISE, student.solver)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return learning.student.sample_losses(student, task.discretization(params), few).mean()

    value, gradient = loss(params)
    model = jax.jit(quadratic_model, static_argnums=3)(task, params, few, 12)
    assert task.learner.calls(task, params) == 2 + 2 * 9  # two logits and a shift for each part
    np.testing.assert_allclose(model.loss, value, rtol=1e-4)
    expected = jax.flatten_util.ravel_pytree(gradient)[0]
    np.testing.assert_allclose(model.gradient, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_what_was_learned_for_parts_reads_back_bit_for_bit(tmp_path):
    change = learning.Coefficients((), 0.1 * jax.random.normal(KEY, (5, 2, 3)))
    learned = learned_times(t_c=0.05, coefficients=change)
    learned.save(tmp_path / "schedule.json")
    again = learning.load(tmp_path / "schedule.json")
    chex.assert_trees_all_equal(again.discretization, learned.discretization)
    table = jax.jit(again.discretization.table, static_argnums=(0, 1))(NOISE, again.solver)
    for i, part in enumerate(NOISE.parts):
        own = jax.tree.map(lambda column, i=i: column[i], tuple(table), is_leaf=lambda x: isinstance(x, Pose))
        chex.assert_trees_all_close(own, tuple(again.discretization.of_part(i).table(part, again.solver)), rtol=1e-5)
    record = json.loads((tmp_path / "schedule.json").read_text())
    for change, message in [
        ({"t": record["t"][::-1]}, "t must descend"),
        ({"t": [row[0] for row in record["t"]]}, r"t, t_c and lam must have one shape, got \(6,\), \(6, 3\)"),
        ({"version": 2, "variant": "bh1"}, "t must be a list of finite numbers"),
    ]:
        (tmp_path / "other.json").write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match=message):
            learning.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="t has times for 3 parts, the noise schedule has 1"):
        again.check_range(NOISE.translation)


@pytest.mark.parametrize("each", [Gaps(), WithCoefficients()], ids=["gaps", "coefficients"])
def test_the_numbers_of_the_parts_are_those_of_each(each, float64):
    schedule, solver = poses.PoseNoise(), Solver("dpmpp", 4, 2)
    both, start = ByPart(each), learning.on_grid("edm", schedule, solver)
    params = both.init(start, schedule, solver)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    params = both.project(unravel(flat + 0.1 * jnp.cos(jnp.arange(flat.size))), schedule)
    found = both.discretization(params, schedule, solver)
    again = both.discretization(both.init(found, schedule, solver), schedule, solver)
    chex.assert_trees_all_close(again, found, atol=1e-9)
    for i, part in enumerate(schedule.parts):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        chex.assert_trees_all_close(found.of_part(i), each.discretization(own, part, solver), atol=1e-12)
    chex.assert_trees_all_equal_shapes(both.learned(params), params)
    assert set(both.groups(solver)) == set(params)
    assert set(both.starts("edm", schedule, solver)) == set(each.starts("edm", schedule.translation, solver))
    # A noise schedule of one part is learned as without parts.
    one = VPLinear()
    plain = each.init(learning.on_grid("edm", one, solver), one, solver)
    of_one = both.init(learning.on_grid("edm", one, solver), one, solver)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[0], of_one), plain)
    chex.assert_trees_all_equal(both.discretization(of_one, one, solver), each.discretization(plain, one, solver))


def test_the_soft_surrogate_needs_vectors(setting):
    student, known, _ = setting
    learner = GradientDescent(surrogate=learning.SoftSurrogate())
    with pytest.raises(ValueError, match=r"the soft surrogate, .* is for states that are vectors"):
        learning.make_task(student, known, KEY, ByPart(), learner)


def learned_times(solver="euler", t_c=0.0, coefficients=None):
    u = jnp.linspace(1.0, 0.0, 6)
    t = jnp.stack([u, u**1.5, u**0.8], -1)
    shift = jnp.zeros_like(t).at[2].set(t_c)
    found = Discretization(t, t + shift, coefficients)
    return Learned(Solver(solver, 5, 1), found, np.asarray(found.lam(NOISE)))


def test_diffdocks_sampler_makes_the_same_steps_with_the_exported_times(float64):
    """Its update, written out: each part by half of g^2 dt times the score, with the last step to 0."""
    record = json.loads(json.dumps(diffdock.schedules(learned_times(), NOISE)))
    x = x_T = jax.tree.map(lambda leaf: leaf.astype(float), poses.draw_prior(KEY, 3, 2))
    for i in range(record["inference_steps"]):
        schedules = [record[f"{name}_schedule"] for name in ("tr", "rot", "tor")]
        t = Pose(*(jnp.asarray(times[i]) for times in schedules))
        eps, steps = jax.jit(smooth)(x, t), []
        for part, times, sigma, noise in zip(NOISE.parts, schedules, NOISE.sigmas(t), eps, strict=True):
            dt = times[i] - (times[i + 1] if i < len(times) - 1 else 0.0)
            g = sigma * np.sqrt(2 * np.log(part.sigma_max / part.sigma_min))
            steps.append(0.5 * g**2 * dt * (-noise / sigma))
        x = poses.retract(x, Pose(*steps))
    learned = learned_times()
    ours = jax.jit(lambda x_T: learned.sample(smooth, NOISE, x_T))(x_T)
    chex.assert_trees_all_close(ours, x, rtol=1e-6, atol=1e-8)


def test_the_export_command_writes_what_the_sampler_takes(tmp_path):
    schedule, out = tmp_path / "schedule.json", tmp_path / "diffdock.json"
    learned_times().save(schedule)
    arguments = f"--schedule={schedule}", f"--out={out}"
    unknown = main("export", *arguments, "--format=word", check=False)
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: ")
    assert "diffdock" in unknown.stderr
    for flag, name in (("--check", "table"), ("--lossy", "diffdock"), ("--last=zero", "diffusers-sigmas")):
        ignored = main("export", *arguments, f"--format={name}", flag, check=False)
        assert f"--last is for sigmas, got --format={name}" in ignored.stderr
    assert not out.exists()
    main("export", *arguments, "--format=diffdock")
    assert json.loads(out.read_text()) == diffdock.schedules(learning.load(schedule), NOISE)


def test_a_form_of_ones_own_is_one_line(tmp_path, monkeypatch):
    own = formats.Format(lambda source: formats.Written(str(source.learned.solver), "a line"))
    monkeypatch.setitem(formats.FORMATS, "mine", own)
    schedule, out = tmp_path / "schedule.json", tmp_path / "mine.txt"
    learned_times().save(schedule)
    said = main("export", f"--schedule={schedule}", f"--out={out}", "--format=mine").stdout
    assert said == f"wrote {out}: mine, a line\n"
    assert out.read_text() == "euler of order 1, 5 calls"


def test_the_documented_wrapper_gives_diffdocks_sampler_what_was_learned(tmp_path, monkeypatch):
    """The stand-in calls as DiffDock's inference.py does: with all its own values, by these names."""
    record = diffdock.schedules(learned_times(), NOISE)
    (tmp_path / "diffdock.json").write_text(json.dumps(record))
    scales = {key: value for key, value in record["assumes"].items() if "_sigma_" in key}
    theirs = {"inference_steps": 19, "ode": False, "temp_sampling": [1.17, 2.06, 7.04], "temp_psi": [0.7, 0.9, 0.6]}
    theirs |= dict.fromkeys(("tr_schedule", "rot_schedule", "tor_schedule"), np.linspace(1, 0, 21)[:-1])
    calls = []

    def main(model_args):
        inference.randomize_position([], False, False, 19.0, initial_noise_std_proportion=1.46, choose_residue=False)
        inference.sampling(data_list=[], model_args=model_args, batch_size=10, **theirs)

    inference = ModuleType("inference")
    inference.sampling = lambda **given: calls.append(given)
    inference.randomize_position = lambda *given, **options: calls.append(options)
    inference.get_parser = lambda: SimpleNamespace(parse_args=lambda: SimpleNamespace(**scales))
    inference.main = main
    monkeypatch.setitem(sys.modules, "inference", inference)
    (block,) = re.findall(r"```py\n(.*?)```", Path("docs/guides/docking.md").read_text(), re.DOTALL)
    monkeypatch.setattr(sys, "argv", ["learned_inference.py", str(tmp_path / "diffdock.json")])
    exec(block, {})
    start, given = calls
    assert start == {"initial_noise_std_proportion": -1.0, "choose_residue": False}
    expected = {key: value for key, value in record.items() if key.endswith(("_schedule", "_steps"))}
    expected |= {"ode": True, "temp_sampling": 1.0, "batch_size": 10}
    assert {key: given[key] for key in expected} == expected
    scales["tr_sigma_max"] = 34.0
    with pytest.raises(SystemExit, match=r"learned for a model with .*19\.0.* this one has .*34\.0"):
        main(SimpleNamespace(**scales))


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        ({"solver": "dpmpp"}, "learn with solver.name=euler.*got dpmpp of order 1"),
        ({"t_c": 0.05}, "got euler of order 1, 5 calls, network times"),
        ({"coefficients": learning.Coefficients((), jnp.zeros((5, 1, 3)))}, "5 calls, coefficients"),
    ],
)
def test_steps_that_diffdock_cannot_make_are_refused(learned, message):
    with pytest.raises(ValueError, match=message):
        diffdock.schedules(learned_times(**learned), NOISE)
    with pytest.raises(ValueError, match="the noise must be a PoseNoise, got VPLinear"):
        diffdock.schedules(learned_times(), VPLinear())


def test_a_missing_extra_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "MDAnalysis", None)
    with pytest.raises(ImportError, match=r"^docking needs MDAnalysis: pip install 'ld3-jax\[docking\]'$"):
        pretrained.load("ergotamine")


def test_an_unknown_complex_is_refused():
    with pytest.raises(ValueError, match=r"a complex is one of .*'1ia1'.* got '9xyz'"):
        molecules.load("9xyz")


@with_extra
def test_a_crystal_complex_is_a_model_with_pictures_and_files(tmp_path):
    model = pretrained.load("1uou")
    x_T, cond = model.draw(KEY, 2)
    assert cond is None
    assert (x_T.torsions.shape, model.shape) == ((2, 2), (16, 3))
    samples = np.asarray(jax.jit(model.decode)(x_T))
    assert model.display(samples, samples).shape == (2, 240, 240, 3)
    assert b"<canvas" in model.formats[".html"](samples)
    (tmp_path / "poses.sdf").write_bytes(model.formats[".sdf"](samples))
    molecule, positions = molecules.read_sdf(tmp_path / "poses.sdf")
    assert molecule.GetNumAtoms() == 16
    # In the coordinates of the protein's file, the ligand's crystal pose is where it was.
    offset = positions - samples
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:1, :1], offset.shape), atol=1e-3)


@with_extra
def test_a_broken_sdf_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.sdf"):
        molecules.read_sdf(tmp_path / "none.sdf")
    for content in ("", "nothing\n\n\n  7  7\nbroken\n$$$$\n"):
        (tmp_path / "broken.sdf").write_text(content)
        with pytest.raises(ValueError, match=r"broken\.sdf: record 1 is not a molecule"):
            molecules.read_sdf(tmp_path / "broken.sdf")


@with_extra
@pytest.mark.parametrize(
    ("smiles", "change", "message"),
    [
        (("CC(C)C", "CCCC"), None, r"record 2 is another molecule than the first, .*: CCCC and CC\(C\)C"),
        (("CCCO", "CCC=O"), None, "record 2 is another molecule"),
        (("C[C@H](F)Cl", "C[C@@H](F)Cl"), None, "record 2 is another molecule"),
        (("CCO", "OCC"), None, "record 2 is another molecule than the first, or its atoms are reordered: CCO and CCO"),
        (("CCCC", "CCCC"), "flat", "record 2 is flat, a drawing"),
        (("CCO",), "flat", "record 1 is flat, a drawing"),
        (("CCO",), "nowhere", "a ligand's atoms lie apart: got .* of atom 0 and .* of atom 1"),
        (("CC([O-])=O", "CC(=O)[O-]"), None, None),  # one molecule, drawn in two ways
    ],
)
def test_records_that_are_no_poses_of_one_molecule_are_refused(smiles, change, message, tmp_path):
    from rdkit import Chem
    from rdkit.Chem import AllChem

    with Chem.SDWriter(str(tmp_path / "ligand.sdf")) as writer:
        for i, one in enumerate(smiles):
            molecule = Chem.AddHs(Chem.MolFromSmiles(one))
            AllChem.EmbedMolecule(molecule, randomSeed=1)
            molecule = Chem.RemoveHs(molecule)
            if change == "flat" and i == len(smiles) - 1:
                AllChem.Compute2DCoords(molecule)
            if change == "nowhere":
                molecule.GetConformer().SetPositions(np.zeros((molecule.GetNumAtoms(), 3)))
            writer.write(molecule)

    def read():
        molecule, positions = molecules.read_sdf(tmp_path / "ligand.sdf")
        return molecules.to_ligand(molecule, positions[0])

    if message is None:
        assert read().positions.shape == (4, 3)
    else:
        with pytest.raises(ValueError, match=message):
            read()


@with_extra
def test_a_single_atom_and_a_rigid_ligand_are_ligands():
    from rdkit import Chem
    from rdkit.Chem import AllChem

    for smiles, atoms in (("[Na+]", 1), ("c1ccccc1", 6)):
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        AllChem.EmbedMolecule(molecule, randomSeed=1)
        molecule = Chem.RemoveHs(molecule)
        ligand = molecules.to_ligand(molecule, molecule.GetConformer().GetPositions())
        assert ligand.positions.shape == (atoms, 3)
        assert ligand.bonds.shape == (0, 2)
        found, fit = molecules.to_poses(ligand, np.asarray(ligand.positions)[None] + 3.0)
        np.testing.assert_allclose(found.translation, 3.0, atol=1e-5)
        np.testing.assert_allclose(fit, 0, atol=1e-4)


def test_a_share_has_wilsons_interval_and_a_median_that_of_order_statistics():
    from ld3_jax import metrics
    from ld3_jax.poses import checks

    np.testing.assert_allclose(metrics.share(np.arange(20) < 10), (0.5, 0.2993, 0.7007), atol=1e-4)
    assert checks.median(np.arange(101.0)) == (50.0, 40.0, 61.0)


def test_the_documentation_has_the_figures_of_the_benchmark():
    exact, network = Path("docs/guides/docking.md").read_text().partition("The same with the trained network")[::2]
    crystals = network.partition("The crystal complexes")[2].partition("\n## ")[0]
    measured, found = json.loads(Path("results/docking.json").read_text())["rows"], 0
    for text, suffix in ((exact, ""), (network, ", ergotamine_network")):
        for line in re.findall(r"^\| \d+ \| .* % \(.*\|$", text, re.MULTILINE):
            calls, name, median, mean_square, *shares = line.strip("| ").split(" | ")
            row = measured[f"docking: {calls} {name}{suffix}"]
            percents = [
                "{:.1f} % ({:.0f}-{:.0f})".format(*(100 * float(x) for x in re.findall(r"[\d.]+", row[column])))
                for column in ("under 0.5", "under 2")
            ]
            assert [median, mean_square, *shares] == [row["median RMSD"], f"{row['mean square']:.3f}", *percents]
            found += 1
    assert found == 36
    header, _, *rows = (line.strip("| ").split(" | ") for line in crystals.splitlines() if line.startswith("|"))
    assert len(rows) == 6
    for name, *figures in rows:
        for complex_, figure in zip(header, figures, strict=True):
            row = measured[f"docking: 6 {name}, {complex_}"]
            assert figure == f"{row['median RMSD'].split()[0]} ({row['mean square']:.2g})"
