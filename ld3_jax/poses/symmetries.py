"""The orders of a molecule's atoms that keep its bonds: all of them, as products of independent ones.

Atoms that no order moves cut the molecule into pieces; pieces that are alike and hang on the same atoms are a group.
Within it, where the branching atoms go decides the rest but for the chains between them, which are independent again.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csgraph

from ld3_jax.poses.ligand import Groups

_MOST = 2**15  # numbers of an array of orders, which a loss gathers by for each sample


def groups(labels: Sequence[str], bonds: Sequence[tuple[int, int]]) -> Groups:
    """All symmetries of a molecule as `Ligand.symmetries` has them.

    Args:
        labels: of the atoms; those of one label may take each other's places.
        bonds: pairs of atoms.

    Raises:
        ValueError: if some atoms have more than 32,768 / n orders that are not products of independent ones.
    """
    count = len(labels)
    graph = np.zeros((count, count))
    for a, b in bonds:
        graph[a, b] = graph[b, a] = 1
    far = csgraph.shortest_path(graph, unweighted=True)
    colours = _colours(labels, far)

    def orders(start: Sequence[int], atoms: list[int]) -> Iterator[np.ndarray]:
        for places in _places(start, atoms, colours, far):
            order = np.arange(count)
            order[atoms] = places
            yield order

    fixed, found = [atom for atom in range(count) if (colours == colours[atom]).sum() == 1], []
    for piece in _pieces(set(range(count)).difference(fixed), graph, colours):
        pinned = fixed + [atom for atom in piece if graph[atom].sum() > 2]
        rest = [atom for atom in piece if atom not in pinned]
        places = _few(_places(fixed, pinned, colours, far), piece, count)
        frames = [order for start in places for order in itertools.islice(orders(start, pinned + rest), 1)]
        chains = _pieces(set(rest), graph, colours)
        swaps = [np.stack(_few(orders(pinned, pinned + chain), chain, count)) for chain in chains]
        found.append((np.stack(frames), [swap for swap in swaps if len(swap) > 1]))
    return found


def _few(found: Iterator, atoms: list[int], count: int) -> list:
    some = list(itertools.islice(found, _MOST // count + 1))
    if len(some) * count > _MOST:
        raise ValueError(
            f"atoms {atoms} have more than {_MOST // count} orders under which the ligand is the same "
            "and which are not products of independent ones; give ligand.of_turning_bonds those that matter"
        )
    return some


def _colours(labels: Sequence[str], far: np.ndarray) -> np.ndarray:
    """The same number for atoms that are alike at every distance; others may be told apart only by their places."""
    colours, known = np.unique(labels, return_inverse=True)[1], 0
    while colours.max() >= known:
        known = colours.max() + 1
        around = np.sort(far * len(labels) + colours, axis=1)  # its own colour first
        colours = np.unique(around, axis=0, return_inverse=True)[1].ravel()
    return colours


def _pieces(atoms: set[int], graph: np.ndarray, colours: np.ndarray) -> list[list[int]]:
    """The connected pieces of these atoms, those together that are alike and hang on the same other atoms."""
    found, among = defaultdict(list), np.array(sorted(atoms), int)
    number, of = csgraph.connected_components(graph[np.ix_(among, among)])
    for piece in (among[of == i] for i in range(number)):
        ends = set(np.flatnonzero(graph[piece].any(0))).difference(piece)
        found[frozenset(ends), tuple(sorted(colours[piece]))] += piece.tolist()
    return list(found.values())


def _places(start: Sequence[int], atoms: list[int], colours: np.ndarray, far: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Every way to place atoms on those of their colour with all distances kept; the first of them go to `start`."""
    waiting = [tuple(start)]
    while waiting:
        places = waiting.pop()
        if len(places) == len(atoms):
            yield places
            continue
        atom, before = atoms[len(places)], atoms[: len(places)]
        fits = np.flatnonzero(colours == colours[atom])
        for some in (slice(-1, None), slice(None)):  # few are as far from the last one
            fits = fits[(far[np.ix_(fits, places[some])] == far[atom, before[some]]).all(1)]
        waiting += [(*places, i) for i in sorted(fits.tolist(), key=lambda i, atom=atom: i == atom)]
