"""The benchmark's table of docs/docking.md: poses in few network calls against a converged teacher."""

from functools import partial

import numpy as np

from configs import docking
from experiments.run import Run
from experiments.tables import Measure, Row
from ld3_jax import learning, metrics
from ld3_jax.comparison import SQUARED_ERROR
from ld3_jax.learning import Discretization
from ld3_jax.poses import checks, molecules

_NFES, _TEST = (6, 20, 4, 8, 10), 500
_NETWORK = "ergotamine_network"  # the trained one
_OTHERS = (_NETWORK, "1ia1", "1of6", "1s3v", "1uou")  # and crystals' own poses
_CHECKED = 25  # poses that PoseBusters checks, seconds each
_EULER = "DiffDock's steps"
_LEARNED = {
    "learned, one schedule": {"what": ("times", "shifts"), "by_part": False},
    "learned, three schedules": {"what": ("times", "shifts"), "by_part": True},
    "learned, everything": {"what": ("times", "shifts", "coefficients"), "by_part": True},
}
_ROWS = (_EULER, "uniform", "best hand-made", *_LEARNED)


def docking_table(quick: bool) -> list[tuple[str, Measure]]:
    """Poses of ergotamine, then of others, against a converged teacher, 500 noises: angstrom, 95 % intervals."""

    def measure(nfe: int, name: str, model: str = "ergotamine") -> Row:
        config = docking.get_config()
        config.network.name, config.solver.nfe, config.data.test = model, nfe, _TEST
        config.learn.update(_LEARNED.get(name, {}))
        if model == _NETWORK:  # its calls take a hundred times as long
            config.data.train, config.learn.batch_size, config.learn.steps = 400, 40, 32
        if name == _EULER:
            config.solver.name, config.solver.order = "euler", 1
        run = Run.of(config).check()
        return measured(run, times(run, name), model.removesuffix("_network"))

    rows = [(f"{nfe} {name}", partial(measure, nfe, name)) for nfe in _NFES for name in _ROWS]
    rows += [(f"6 {name}, {model}", partial(measure, 6, name, model)) for model in _OTHERS for name in _ROWS]
    return rows[: 1 if quick else None]


def times(run: Run, name: str) -> Discretization:
    """A hand-made grid, or what is learned."""
    if name in _LEARNED:
        return run.learn()[0].found
    grids = run.judge.hand_made()
    if name != "best hand-made":
        return grids["uniform"]
    return min(grids.values(), key=lambda one: float(learning.distances(run.student, one, run.pairs[0]).mean()))


def measured(run: Run, times: Discretization, molecule: str) -> Row:
    """Distances to the teacher's poses, and the share of poses that pass PoseBusters' checks."""
    judged = run.judge(times, _CHECKED)
    rmsd = np.sqrt(judged.errors[SQUARED_ERROR])
    shares = {
        "under 0.5": metrics.share(rmsd < 0.5),
        "under 2": metrics.share(rmsd < 2.0),
        "passes checks": metrics.share(checks.passes(molecules.load(molecule), judged.samples)),
    }
    shown = {"median RMSD": "{:.4f} ({:.4f}-{:.4f})".format(*checks.median(rmsd))}
    shown |= {name: "{:.3f} ({:.3f}-{:.3f})".format(*share) for name, share in shares.items()}
    return {"mean square": float(np.mean(rmsd**2)), **shown}
