"""Accuracy against T as SVG, one picture for each data set and net: measured curves, printed numbers as hollow marks.

Written by hand rather than by a plotting library, whose output changes with its version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from markupsafe import escape

from bench.leaderboard.aggregate import SPELLING, ReportedOnly, Row
from bench.leaderboard.reported import DATASETS, REPLICATIONS, ReportedRow
from bench.leaderboard.text import fixed, one_line

FOLDER = "curves"
# Kept legible: a net with more rows shows its best, the table has them all.
MOST_ROWS = 8
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1000, 52, 470, 34, 344
# Okabe and Ito's colours, which readers with any colour vision tell apart; on dark ground the dark ones are lightened.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b08900", "#56b4e9", "#7a4fb5", "#555555")
DARK = ("#5db3e6", "#ff8b3d", "#3cc79d", "#e8a3c8", "#e0bd3e", "#9bd4f5", "#b79af0", "#bbbbbb")
SHAPES = ("circle", "square", "triangle", "diamond")

Points = tuple[tuple[int, Decimal], ...]
Scale = Callable[[float | Decimal], str]


@dataclass(frozen=True)
class Series:
    """What is drawn of one row.

    Attributes:
        label: its line in the legend.
        ink: number of its colour and shape.
        points: measured mean at each T, in percent.
        spread: standard deviation at the T that have one.
        printed: printed numbers.
        ann: accuracy of the measured ANN.
    """

    label: str
    ink: int
    points: Points = ()
    spread: Mapping[int, Decimal] | None = None
    printed: Points = ()
    ann: Decimal | None = None


def pictures(rows: Sequence[Row], rest: Sequence[ReportedOnly]) -> dict[tuple[object, ...], tuple[str, str]]:
    """Draws every net.

    Returns:
        For each board of rows (``Row.place[:5]``), and for each (data set, net) that has printed numbers alone: the
        name of the picture's file and its content.
    """
    boards: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        boards.setdefault(row.place[:5], []).append(row)
    printed: dict[tuple[str, str], list[ReportedOnly]] = {}
    for item in rest:
        same = item.row.same_as
        if same.arch is not None and same.method is not None and item.paper != REPLICATIONS:
            printed.setdefault((DATASETS[item.row.dataset], same.arch), []).append(item)
    found: dict[tuple[object, ...], tuple[str, str]] = {}
    used: dict[tuple[str, str], int] = {}
    for place, board in boards.items():
        net = (board[0].dataset, board[0].arch)
        used[net] = used.get(net, 0) + 1
        # Nets of one name but other sizes, and older protocols, are boards of their own.
        name = f"{net[0]}-{net[1]}" + (f"~{used[net]}" if used[net] > 1 else "")
        found[place] = (f"{FOLDER}/{name}.svg", draw(net, _series(board, printed.get(net, ())), len(board)))
    for net, items in sorted(printed.items()):
        if net not in used:
            found[net] = (f"{FOLDER}/{net[0]}-{net[1]}.svg", draw(net, _series([], items), 0))
    return found


def _series(board: Sequence[Row], rest: Sequence[ReportedOnly]) -> list[Series]:
    found: list[Series] = []
    inks: dict[int, int] = {}
    theirs: dict[int, tuple[ReportedRow, str, str]] = {}
    for row in board[:MOST_ROWS]:
        ink = len(found)
        for cell in row.cells:
            if cell.match is not None:
                # The colour and shape of our own curve that it is compared with, so that the two are read together.
                inks.setdefault(id(cell.match.row), ink)
        points = tuple((cell.T, cell.top1.mean) for cell in row.cells)
        spread = {cell.T: cell.top1.std for cell in row.cells if cell.top1.std is not None}
        label = f"{row.method}, {row.recipe} (n = {len(row.seeds)})"
        found.append(Series(label, ink, points, spread, ann=row.ann.mean))
    for row in board:
        for cell in row.cells:
            if cell.match is not None:
                theirs.setdefault(id(cell.match.row), (cell.match.row, cell.match.paper, row.method))
    for item in rest:
        theirs.setdefault(id(item.row), (item.row, item.paper, item.row.same_as.method or ""))
    for printed, paper, method in theirs.values():
        points = tuple((int(T), top1) for T, top1 in printed.top1.items() if T.isdigit())
        if points:
            level = "" if printed.L is None else f", L = {printed.L}"
            label = f"{method}{level}, {paper} ({printed.kind.replace('_', ' ')})"
            found.append(Series(label, inks.get(id(printed), len(found)), printed=points))
    return found


def draw(net: tuple[str, str], series: Sequence[Series], measured: int) -> str:
    """One picture as SVG text."""
    title = f"{SPELLING.get(net[0], net[0])}, {net[1]}: top-1 accuracy against T"
    every = [(T, y) for s in series for T, y in (*s.points, *s.printed)]
    ends = [y + sign * (s.spread or {}).get(T, 0) for s in series for T, y in s.points for sign in (-1, 1)]
    seen = [float(y) for y in (*ends, *(y for _, y in every), *(s.ann for s in series if s.ann is not None))]
    low = max(0, 5 * math.floor(min(seen, default=0) / 5))
    high = min(100, 5 * math.ceil(max(seen, default=100) / 5))
    high = max(high, low + 5)
    # Whole powers of two around all T: the axis is the same for one and for many points.
    first = min((math.floor(math.log2(T)) for T, _ in every), default=0)
    last = max(max((math.ceil(math.log2(T)) for T, _ in every), default=1), first + 1)

    def x(T: float | Decimal) -> str:
        return _number(LEFT + (RIGHT - LEFT) * (math.log2(T) - first) / (last - first))

    def y(top1: float | Decimal) -> str:
        return _number(BOTTOM - (BOTTOM - TOP) * (float(top1) - low) / (high - low))

    body = [*_axes(x, y, first, last, low, high)]
    for s in series:
        body += _curve(s, x, y)
    legend, bottom = _legend(series, measured)
    height = max(BOTTOM + 48, bottom + 12)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            ' role="img" aria-labelledby="title desc">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="desc">{escape(_description(series))}</desc>',
            f"<style>{_style()}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
            *body,
            *legend,
            "</svg>\n",
        ]
    )


def _number(value: float) -> str:
    # One decimal: below what a screen shows, above what another C library could compute differently.
    return f"{value:.1f}".replace("-0.0", "0.0")


def _style() -> str:
    def inks(colours: Sequence[str]) -> str:
        return "".join(f".i{k}{{--c:{colour}}}" for k, colour in enumerate(colours))

    return (
        "text{font:12px system-ui,sans-serif;fill:var(--text)}.ground{fill:var(--ground)}.grid{stroke:var(--grid)}"
        ".line{fill:none;stroke:var(--c);stroke-width:2}.ann{stroke:var(--c);stroke-dasharray:6 4;fill:none}"
        ".full{fill:var(--c);stroke:var(--c)}.hollow{fill:var(--ground);stroke:var(--c);stroke-width:1.6}"
        ".bar{stroke:var(--c);stroke-width:1.2}.quiet{fill:var(--quiet)}"
        "svg{--ground:#ffffff;--text:#1d2733;--quiet:#5a6675;--grid:#e3e8ee}" + inks(LIGHT) + "@media"
        "(prefers-color-scheme:dark){svg{--ground:#0f151c;--text:#e4e9ef;--quiet:#9aa6b4;--grid:#273240}"
        + inks(DARK)
        + "}"
    )


def _axes(x: Scale, y: Scale, first: int, last: int, low: int, high: int) -> Iterable[str]:
    step = next(s for s in (1, 2, 5, 10, 20) if (high - low) / s <= 8)
    for value in range(low, high + 1):
        if value % step == 0:
            yield f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y(value)}" y2="{y(value)}"/>'
            yield f'<text class="quiet" x="{LEFT - 8}" y="{y(value)}" dy="4" text-anchor="end">{value}</text>'
    for power in range(first, last + 1):
        at = x(2.0**power)
        yield f'<line class="grid" x1="{at}" x2="{at}" y1="{BOTTOM}" y2="{BOTTOM + 5}"/>'
        yield f'<text class="quiet" x="{at}" y="{BOTTOM + 20}" text-anchor="middle">{2**power}</text>'
    middle = (LEFT + RIGHT) // 2
    yield f'<text class="quiet" x="{middle}" y="{BOTTOM + 40}" text-anchor="middle">T (time-steps)</text>'
    yield f'<text class="quiet" x="12" y="{TOP - 16}">top-1 (%)</text>'


def _curve(s: Series, x: Scale, y: Scale) -> Iterable[str]:
    yield f'<g class="i{s.ink % len(LIGHT)}">'
    if s.ann is not None:
        yield f'<line class="ann" x1="{LEFT}" x2="{RIGHT}" y1="{y(s.ann)}" y2="{y(s.ann)}"/>'
    if s.points:
        yield '<polyline class="line" points="' + " ".join(f"{x(T)},{y(top1)}" for T, top1 in s.points) + '"/>'
    for T, top1 in s.points:
        if s.spread and T in s.spread:
            ends = f'y1="{y(top1 - s.spread[T])}" y2="{y(top1 + s.spread[T])}"'
            yield f'<line class="bar" x1="{x(T)}" x2="{x(T)}" {ends}/>'
        yield _mark(s.ink, x(T), y(top1), "full")
    for T, top1 in s.printed:
        yield _mark(s.ink, x(T), y(top1), "hollow")
    yield "</g>"


def _mark(ink: int, x: str, y: str, kind: str) -> str:
    # Another shape where the colours begin again, so that 32 series differ.
    shape = SHAPES[(ink + ink // len(LIGHT)) % len(SHAPES)]
    if shape == "circle":
        return f'<circle class="{kind}" cx="{x}" cy="{y}" r="4"/>'
    outline = {"square": "M-4-4h8v8h-8z", "triangle": "M0-5l5 9h-10z", "diamond": "M0-5.5l5 5.5-5 5.5-5-5.5z"}[shape]
    return f'<path class="{kind}" transform="translate({x} {y})" d="{outline}"/>'


def _legend(series: Sequence[Series], measured: int) -> tuple[list[str], int]:
    at, left, lines = TOP + 4, RIGHT + 24, []
    for s in series:
        label = one_line(s.label, 70)
        lines.append(f'<g class="i{s.ink % len(LIGHT)}">')
        if s.points:
            lines.append(f'<line class="line" x1="{left}" x2="{left + 24}" y1="{at}" y2="{at}"/>')
        lines.append(_mark(s.ink, str(left + 12), str(at), "full" if s.points else "hollow"))
        lines.append(f'</g><text x="{left + 32}" y="{at + 4}">{escape(label)}</text>')
        at += 20
    hints = ["filled: measured here", "hollow: printed by the paper", "dashed: the measured ANN"]
    if measured > MOST_ROWS:
        hints.insert(0, f"{measured - MOST_ROWS} more rows are in the table")
    for hint in hints:
        lines.append(f'<text class="quiet" x="{left}" y="{at + 12}">{hint}</text>')
        at += 18
    return lines, at


def _description(series: Sequence[Series]) -> str:
    def listed(points: Points) -> str:
        return ", ".join(f"{fixed(top1)} at T={T}" for T, top1 in points)

    parts = [f"{s.label}: {listed(s.points or s.printed)}" for s in series]
    return ". ".join(parts) + "."
