"""Pictures of poses in their pocket: small images, and an HTML page to rotate with the mouse."""

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

import numpy as np
from jaxtyping import Float

_COLORS = {
    "C": "#303030",
    "N": "#2a52be",
    "O": "#d4261c",
    "S": "#c9a400",
    "CL": "#2e9e3f",
    "F": "#2e9e3f",
    "P": "#e07b00",
}
_OTHER, _TARGET, _POCKET = "#8c4fb0", "#2e9e6b", "#9aa0a6"
_BOND = 2.0  # angstrom: atoms of the pocket that are nearer are drawn as bonded
_SIDE = 240  # pixels


def images(
    atoms: Float[np.ndarray, "k n 3"],
    targets: Float[np.ndarray, "k n 3"],
    elements: list[str],
    bonds: list[tuple[int, int]],
    pocket: Float[np.ndarray, "p 3"],
) -> Float[np.ndarray, "k side side 3"]:
    """An image in [0, 1] of each pose: the ligand by element, the target's pose thin and green, the pocket grey.

    All are seen along the shortest axis of the targets, in one window around them.

    Args:
        atoms: poses to draw.
        targets: as many poses to compare with; the poses themselves draw no target.
        elements: of the ligand's atoms.
        bonds: of the ligand.
        pocket: atoms of the pocket.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    centre = targets.mean((0, 1))
    axes = np.linalg.svd((targets - centre).reshape(-1, 3), full_matrices=False)[2]
    reach = np.abs((targets - centre) @ axes.T)[..., :2].max() + 2.5
    around = (pocket - centre) @ axes.T
    around = around[(np.abs(around[:, :2]) < 1.4 * reach).all(1) & (np.abs(around[:, 2]) < 7)]
    apart = np.linalg.norm(around[:, None] - around[None], axis=-1)
    walls = around[np.argwhere(np.triu(apart < _BOND, 1))]
    drawn = []
    for pose, target in zip((atoms - centre) @ axes.T, (targets - centre) @ axes.T, strict=True):
        figure = Figure(figsize=(1, 1), dpi=_SIDE)
        canvas, panel = FigureCanvasAgg(figure), figure.add_axes((0, 0, 1, 1))
        panel.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        panel.axis("off")
        panel.add_collection(LineCollection(list(walls[..., :2]), colors=_POCKET, linewidths=0.35, alpha=0.55))
        if not np.array_equal(pose, target):
            segments = [target[list(bond), :2] for bond in bonds]
            panel.add_collection(LineCollection(segments, colors=_TARGET, linewidths=0.8, zorder=3))
        both_ways = bonds + [bond[::-1] for bond in bonds]
        halves = [(pose[a, :2], (pose[a, :2] + pose[b, :2]) / 2, elements[a]) for a, b in both_ways]
        colors = [_COLORS.get(element.upper(), _OTHER) for *_, element in halves]
        panel.add_collection(LineCollection([half[:2] for half in halves], colors=colors, linewidths=1.4, zorder=4))
        if not bonds:
            panel.plot(pose[:, 0], pose[:, 1], ".", color=_COLORS.get(elements[0].upper(), _OTHER), zorder=4)
        canvas.draw()
        drawn.append(np.asarray(canvas.buffer_rgba())[..., :3] / 255.0)
    return np.stack(drawn)


def page(
    title: str,
    poses: Mapping[str, Float[np.ndarray, "k n 3"]],
    elements: list[str],
    bonds: list[tuple[int, int]],
    pocket: Float[np.ndarray, "p 3"],
) -> str:
    """A self-contained HTML page: drag to turn, wheel to zoom, a box for each set of poses, a slider for which pose.

    Args:
        title: of the page.
        poses: name -> poses from the same noises.
        elements: of the ligand's atoms.
        bonds: of the ligand.
        pocket: atoms of the pocket.
    """
    apart = np.linalg.norm(pocket[:, None] - pocket[None], axis=-1)
    centre = next(iter(poses.values())).mean((0, 1))

    def rounded(values: np.ndarray) -> list:
        return np.round(np.asarray(values, float) - centre, 2).tolist()

    data = {
        "poses": {name: rounded(values) for name, values in poses.items()},
        "colors": [_COLORS.get(element.upper(), _OTHER) for element in elements],
        "bonds": [list(bond) for bond in bonds],
        "pocket": rounded(pocket),
        "walls": np.argwhere(np.triu(apart < _BOND, 1)).tolist(),
    }
    template = Template((Path(__file__).parent / "view.html").read_text())
    return template.substitute(title=title, data=json.dumps(data, separators=(",", ":")))
