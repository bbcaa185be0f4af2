"""The benchmark's table of single changes to the default: what each of its choices, and of the paper's, is worth."""

from collections.abc import Callable
from functools import partial

import numpy as np
from ml_collections import config_dict

from configs import paper
from experiments.cells import frechet
from experiments.run import Run
from experiments.tables import Measure, Row, configured
from ld3_jax.batches import to_host

_SEEDS = (0, 1, 2)  # of the pairs and of the held-out noise
_TIMES, _COEFFICIENTS = ("times", "shifts"), ("coefficients",)


def ablation_table(quick: bool) -> list[tuple[str, Measure]]:
    """One change at a time on hsc32, DPM-Solver++ 3M with 5 calls: error and Frechet distance (8 x 8 pixels) to the
    converged teacher, means of three seeds; the seeds' lowest and highest mean error; network calls of learning.
    """
    rows = {"default": _with({})}
    rows |= {f"learn {', '.join(what)}": _with({"learn.what": what}) for what in (_TIMES, _COEFFICIENTS, ("times",))}
    rows |= {"learn times, coefficients": _with({"learn.what": ("times", *_COEFFICIENTS)})}
    rows |= {f"start from {grid}": _with({"learn.init": grid}) for grid in ("logsnr", "quadratic")}
    rows |= {f"loss {loss}": _with({"learn.loss": loss}) for loss in ("l2", "rmse")}
    rows |= {f"{count} pairs": _with({"data.train": count}) for count in (10, 25, 50, 200)}
    rows |= {"100 pairs as drawn": _with({"data.candidates": 0})}
    rows |= {f"teacher of {nfe} calls": _with({"teacher.nfe": nfe}) for nfe in (10, 20)}
    rows |= {"Adam, 60 steps": _with({"learn.learner": "optax", "learn.steps": 60})}
    rows |= {f"the paper's settings, gamma {gamma:g}": partial(_of_paper, gamma) for gamma in (0, 1e-4, 1e-3, 1e-2)}
    rows |= {"loss lpips": _with({"learn.loss": "lpips"})}
    named = [(name, partial(_measure, change, _SEEDS[: 1 if quick else None])) for name, change in rows.items()]
    return named[: 1 if quick else None]


def _with(changes: dict) -> Callable[[config_dict.ConfigDict], None]:
    return lambda config: config.update_from_flattened_dict(changes)


def _of_paper(gamma: float, config: config_dict.ConfigDict) -> None:
    paper.with_paper_settings(config)
    config.learn.loss, config.learn.gamma, config.learn.move_validation = "l2", gamma, gamma > 0


def _measure(change: Callable[[config_dict.ConfigDict], None], seeds: tuple[int, ...]) -> Row:
    errors, distances = [], []
    for seed in seeds:
        config = configured("hsc32", "dpmpp", 5)
        config.seed = seed
        converged = Run.of(config).check()
        changed = config.copy_and_resolve_references()
        change(changed)
        run = Run.of(changed).check()
        learned, ended = run.learn()
        judged = converged.judge(learned.discretization, None)
        errors.append([*judged.summary().values()])
        distances.append(frechet(judged.samples, to_host(converged.pairs[1].x_0)))
    means = [error[0] for error in errors]
    return {
        "error": np.mean(errors, 0).tolist(),
        "of the seeds": f"{min(means):.5f} to {max(means):.5f}",
        "Frechet": float(np.mean(distances)),
        "network calls": ended.network_calls,
    }
