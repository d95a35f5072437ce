"""Pictures of a diagnosis: errors, offset spikes and residual potentials of each layer."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bench.snn.diagnosis import EDGES, KINDS, VIEWS, Diagnosis

# From Okabe and Ito's palette, as in the leaderboard's curves.
_COLOURS = {"clipping": "#0072b2", "quantisation": "#009e73", "unevenness": "#d55e00", "total": "#555555"}
_LEGEND = {"end_to_end": "end to end", "same_input": "on the layer's own input"}
# Larger offsets are counted in the outermost rows.
_MOST_OFFSET = 4


def draw(found: Sequence[Diagnosis], title: str) -> dict[str, Figure]:
    """Figures by name: ``errors``, ``offsets``, ``membranes``, each with a column for each T.

    Args:
        found: from :func:`bench.snn.diagnosis.diagnose`, one for each T.
        title: of the pictures.
    """
    return {"errors": _errors(found, title), "offsets": _offsets(found, title), "membranes": _membranes(found, title)}


def to_svg(figure: Figure) -> bytes:
    """Renders a figure as SVG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _columns(found: Sequence[Diagnosis], rows: int, title: str) -> tuple[Figure, NDArray[np.object_]]:
    figure = Figure(figsize=(1.5 + 3.5 * len(found), 1 + 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, len(found), squeeze=False, sharex=True, sharey="row")
    figure.suptitle(title)
    for column, diagnosis in zip(axes.T, found, strict=True):
        top1 = diagnosis["top1"]
        column[0].set_title(f"T = {diagnosis['T']}: ANN {100 * top1['ann']:.1f} %, SNN {100 * top1['snn']:.1f} %")
        column[-1].set_xlabel("layer")
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _errors(found: Sequence[Diagnosis], title: str) -> Figure:
    figure, axes = _columns(found, len(VIEWS), f"{title}: mean error / mean activation")
    for row, view in zip(axes, VIEWS, strict=True):
        for axis, diagnosis in zip(row, found, strict=True):
            layers = diagnosis["layers"]
            for kind in KINDS:
                values = [_ratio(layer[view][kind]["mean_abs"], layer["activation_mean"]) for layer in layers]
                axis.plot(range(1, len(layers) + 1), values, ".-", color=_COLOURS[kind], label=kind)
        row[0].set_ylabel(_LEGEND[view])
    axes[0, 0].legend()
    return figure


def _ratio(value: float, of: float) -> float:
    return value / of if of > 0 else float("nan")


def _offsets(found: Sequence[Diagnosis], title: str) -> Figure:
    figure, axes = _columns(found, 1, f"{title}: offset spikes, share of the neurons")
    for axis, diagnosis in zip(axes[0], found, strict=True):
        shares = np.zeros((2 * _MOST_OFFSET + 1, len(diagnosis["layers"])))
        for column, layer in enumerate(diagnosis["layers"]):
            for offset, count in layer["offsets"].items():
                row = max(-_MOST_OFFSET, min(_MOST_OFFSET, int(offset))) + _MOST_OFFSET
                shares[row, column] += count / sum(layer["offsets"].values())
        _heat(figure, axis, shares, np.arange(-_MOST_OFFSET, _MOST_OFFSET + 2) - 0.5)
    axes[0, 0].set_ylabel("spikes too many")
    return figure


def _membranes(found: Sequence[Diagnosis], title: str) -> Figure:
    figure, axes = _columns(found, 1, f"{title}: residual potential / theta, share of the neurons")
    borders = np.array([EDGES[0] - 0.1, *EDGES, EDGES[-1] + 0.1])
    for axis, diagnosis in zip(axes[0], found, strict=True):
        counts = np.array([layer["residuals"]["counts"] for layer in diagnosis["layers"]]).T
        _heat(figure, axis, counts / counts.sum(0), borders)
        for border in (0, 1):
            axis.axhline(border, color="white", linewidth=0.7, linestyle="--")
    axes[0, 0].set_ylabel("v / theta")
    return figure


def _heat(figure: Figure, axis: Axes, shares: NDArray[np.floating], borders: NDArray[np.floating]) -> None:
    columns = np.arange(shares.shape[1] + 1) + 0.5
    mesh = axis.pcolormesh(columns, borders, shares, vmin=0, vmax=max(shares.max(), 1e-9), cmap="viridis")
    figure.colorbar(mesh, ax=axis)
