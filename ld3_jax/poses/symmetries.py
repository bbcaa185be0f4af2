"""All orders of a molecule's atoms that keep its bonds, as products of independent orders.

Atoms that no order moves cut the molecule into pieces; equal pieces that are bonded to the same atoms form a group.
Within a group, the places of the branching atoms decide everything except the chains between them, which are
independent.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from scipy.sparse import csgraph

from ld3_jax.poses.ligand import Groups

_MOST = 2**15  # numbers of an array of orders, which a loss gathers by for each sample


def groups(labels: Sequence[str], bonds: Sequence[tuple[int, int]]) -> Groups:
    """All symmetries of a molecule as `Ligand.symmetries` has them; atoms of one label may take each other's places.

    Raises:
        ValueError: if some atoms have more than 32,768 / n orders that are not products of independent ones.
    """
    count = len(labels)
    graph = np.zeros((count, count))
    for a, b in bonds:
        graph[a, b] = graph[b, a] = 1
    far, colours = csgraph.shortest_path(graph, unweighted=True), np.unique(labels, return_inverse=True)[1]
    for _ in range(4):  # atoms with the same colours around them have one colour
        colours = np.unique(np.sort(far * count + colours, axis=1), axis=0, return_inverse=True)[1].ravel()
    orders, pieces = partial(_orders, far, colours), partial(_pieces, graph, colours)
    fixed, found = [atom for atom in range(count) if (colours == colours[atom]).sum() == 1], []
    for piece in pieces(set(range(count)).difference(fixed)):
        pinned = fixed + [atom for atom in piece if graph[atom].sum() > 2]
        rest = [atom for atom in piece if atom not in pinned]
        frames = (next(orders(pinned + rest, frame[pinned].tolist()), None) for frame in orders(pinned, fixed))
        swaps = (np.stack(list(orders(pinned + chain, pinned))) for chain in pieces(set(rest)))
        found.append((np.stack([one for one in frames if one is not None]), [swap for swap in swaps if len(swap) > 1]))
    return found


def _pieces(graph: np.ndarray, colours: np.ndarray, atoms: set[int]) -> list[list[int]]:
    """The connected pieces of these atoms, grouped if they are equal and bonded to the same other atoms."""
    found, among = defaultdict(list), np.array(sorted(atoms), int)
    number, of = csgraph.connected_components(graph[np.ix_(among, among)])
    for piece in (among[of == i] for i in range(number)):
        ends = set(np.flatnonzero(graph[piece].any(0))).difference(piece)
        found[frozenset(ends), tuple(sorted(colours[piece]))] += piece.tolist()
    return list(found.values())


def _orders(far: np.ndarray, colours: np.ndarray, atoms: list[int], start: Sequence[int]) -> Iterator[np.ndarray]:
    """Orders of these atoms that keep colours and distances, the identity first; the first atoms go to `start`."""
    waiting, left = [list(start)], _MOST // len(far)
    while waiting:
        places = waiting.pop()
        if len(places) < len(atoms):
            atom, before = atoms[len(places)], atoms[: len(places)]
            fits = np.flatnonzero(colours == colours[atom])
            for some in (slice(-1, None), slice(None)):  # few are as far from the last one
                fits = fits[(far[fits][:, places[some]] == far[atom, before[some]]).all(1)]
            waiting += [[*places, i] for i in sorted(fits.tolist(), key=lambda i, atom=atom: i == atom)]
            continue
        if not left:
            raise ValueError(
                f"the ligand has more than {_MOST // len(far)} symmetries of the atoms {atoms[len(start) :][:9]} that "
                "are not products of independent ones; give ligand.of_turning_bonds those that matter"
            )
        left -= 1
        order = np.arange(len(far))
        order[atoms] = places
        yield order
