"""The benchmark's table of what was learned in one place and used in another."""

import tempfile
import zipfile
from dataclasses import replace
from functools import cache, partial
from itertools import permutations
from pathlib import Path

from jax.tree_util import Partial
from jaxtyping import Array, PyTree
from ld3_jax.learning.curve import between

from configs import times
from experiments import models
from experiments.measurements import Case, Measure, Row, best_hand_made, configured, errors, fitted, prepared
from ld3_jax import learning
from ld3_jax.denoisers import Model
from ld3_jax.learning import Discretization
from ld3_jax.pretrained import Pretrained

_SWEPT = Path("results/schedules.zip")  # what sweeps have learned
_SCALES = (1.0, 1.5, 2.0)  # of guidance; 1 is none


def transfer_table(quick: bool) -> list[tuple[str, Measure]]:
    """What was learned for DPM-Solver++ 3M with 5 calls, used where it was not learned: on another network, with
    another solver, its times interpolated to another number of calls (`curve.between`), at another guidance
    scale. Guidance is that of ztf32 away from hsc32, eps = eps_hsc32 + scale (eps_ztf32 - eps_hsc32).
    """
    networks = ("hsc32",) if quick else ("hsc32", "ztf32", "quasar72")
    cells = []
    for network in networks:
        others = [other for other in networks if other != network]
        cells += [(what, network, other, "dpmpp", 5) for other in others for what in ("times", "everything")]
        cells += [("times", network, network, solver, 5) for solver in ("unipc", "ipndm")]
        cells += [("times", network, network, "dpmpp", nfe) for nfe in (4, 8)]

    def measure(what: str, origin: str, network: str, solver: str, nfe: int) -> Row:
        given, there = (_swept(what, *of) for of in ((origin, "dpmpp", 5), (network, solver, nfe)))
        case = prepared(configured(network, solver, nfe, 0))
        return _compared(case, between([given], case.student.schedule, case.student.solver), there)

    rows = [
        (f"{what} of {origin} dpmpp 5 on {' '.join(map(str, to))}", partial(measure, what, origin, *to))
        for what, origin, *to in cells
    ]
    return rows + ([] if quick else _between_scales())


def _swept(what: str, network: str, solver: str, nfe: int) -> Discretization:
    with zipfile.ZipFile(_SWEPT) as archive, tempfile.TemporaryDirectory() as folder:
        return learning.load(archive.extract(f"{network}-{solver}-{nfe}-0-{what}.json", folder)).found


def _compared(case: Case, given: Discretization, there: Discretization) -> Row:
    return {"hand-made": best_hand_made(case), "transferred": errors(case, given), "learned there": errors(case, there)}


def _between_scales() -> list[tuple[str, Measure]]:
    """Rows for ztf32 guided away from hsc32."""

    @cache
    def at(what: str, scale: float) -> tuple[Case, Discretization]:
        config = configured("ztf32", "dpmpp", 5, 0)
        if what == "times":
            config = times.with_times_alone(config)
        other = models.of_config(configured("hsc32", "dpmpp", 5, 0))
        case = prepared(config, _guided(models.of_config(config), other, scale))
        return case, fitted(case)[0].found

    def measure(what: str, origin: float, scale: float) -> Row:
        case, there = at(what, scale)
        return _compared(case, at(what, origin)[1], there)

    return [
        (f"{what} of guidance {origin:g} on guidance {scale:g}", partial(measure, what, origin, scale))
        for origin, scale in permutations(_SCALES, 2)
        for what in ("times", "everything")
    ]


def _guided(model: Pretrained, other: Pretrained, scale: float) -> Pretrained:
    """A model guided away from another one, as classifier-free guidance leads away from the unconditional model."""
    return replace(model, model=Partial(_away, model.model, other.model, scale))


def _away(model: Model, other: Model, scale: float, x: PyTree, t: Array, cond: PyTree = None) -> PyTree:
    start = other(x, t, cond)
    return start + scale * (model(x, t, cond) - start)
