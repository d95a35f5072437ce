"""The tables of one net, whose rows were measured by one protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from bench.leaderboard.aggregate import Cell, Row, Statistic
from bench.leaderboard.match import TOLERANCE, Match
from bench.leaderboard.text import fixed

# What the SNN lacks of its own ANN: a difference in these comes from the conversion, not from the training of the ANN.
GAPS = ("our SNN - ANN", "their SNN - ANN")


@dataclass(frozen=True)
class Table:
    """Head and body of a table."""

    head: list[str]
    body: list[list[object]]


def accuracy(board: Sequence[Row]) -> Table:
    """One line for each row: its accuracy at every T."""
    steps = sorted({cell.T for row in board for cell in row.cells})
    head = ["rank", "method", "recipe", "L", "n", "ANN", "warm-up", *(f"T={T}" for T in steps), "papers", "marks"]
    body: list[list[object]] = []
    for row in board:
        cells = ["; ".join(show(c.top1, len(row.seeds)) for c in row.cells if c.T == T) for T in steps]
        compared = [cell.badge for cell in row.cells if cell.match is not None]
        verdict = f"{compared.count('matches')} of {len(compared)} match" if compared else "ours only"
        warmup = ", ".join(str(steps) for steps in sorted({cell.warmup for cell in row.cells}))
        start = [row.rank or "-", row.method, row.recipe, row.L or "", len(row.seeds), _ann(row), warmup]
        body.append([*start, *cells, verdict, "; ".join(row.marks)])
    return Table(head, body)


def _ann(row: Row) -> str:
    """NQ's paper evaluates its ANN with the training noise on."""
    return show(row.ann) if row.ann_noisy is None else f"{show(row.ann)} (noise on: {show(row.ann_noisy)})"


def comparisons(board: Sequence[Row]) -> Iterable[tuple[str, Table]]:
    """Tables that are not empty, each with a sentence that counts."""
    tables = (("Against the papers", _comparison(board)), ("Against others who ran it again", _replicated(board)))
    return ((f"{title}: {_matching(table)}.", table) for title, table in tables if table.body)


def _comparison(board: Sequence[Row]) -> Table:
    head = ["method", "recipe", "L", "T", "ours", "paper", "difference", *GAPS, "badge", "kind", "printed in", "remark"]
    body: list[list[object]] = []
    for row in board:
        for cell in row.cells:
            if cell.match is None:
                continue
            printed = cell.match.row
            where = printed.table or printed.source or cell.match.paper
            body.append([*_beside(row, cell, cell.match), printed.kind.replace("_", " "), where, cell.match.remark])
    return Table(head, body)


def _replicated(board: Sequence[Row]) -> Table:
    head = ["method", "recipe", "L", "T", "ours", "theirs", "difference", *GAPS, "badge", "by", "source", "remark"]
    return Table(
        head,
        [
            [*_beside(row, cell, other), other.row.who, other.row.source, other.remark]
            for row in board
            for cell in row.cells
            for other in cell.replications
        ],
    )


def _beside(row: Row, cell: Cell, other: Match) -> list[object]:
    difference, verdict = cell.against(other)
    numbers = [cell.T, show(cell.top1, len(row.seeds)), f"{other.top1:f}", fixed(difference, sign=True)]
    gaps = [fixed(gap, sign=True) for gap in _gaps(row, cell, other)]
    return [row.method, row.recipe, row.L or "", *numbers, *gaps, verdict]


def _gaps(row: Row, cell: Cell, other: Match) -> tuple[Decimal | None, Decimal | None]:
    """Ours and theirs; theirs is unknown where no accuracy of the ANN is printed, ours where some seeds lack this T."""
    # NQ's paper evaluates its ANN with the training noise on.
    ann = row.ann_noisy or row.ann
    theirs = other.row.ann_top1
    return (
        cell.top1.mean - ann.mean if cell.top1.n == ann.n else None,
        None if theirs is None else other.top1 - theirs,
    )


def _matching(table: Table) -> str:
    """How many lines of a comparison match, and how many of those that are of a paper's recipe."""
    badge_at, recipe_at = (table.head.index(name) for name in ("badge", "recipe"))
    badges = [line[badge_at] for line in table.body]
    full = [line[badge_at] for line in table.body if line[recipe_at] == "paper"]
    return (
        f"{badges.count('matches')} of {len(badges)} within {TOLERANCE} points or two standard deviations; "
        f"of the papers' own recipes {full.count('matches')} of {len(full)}"
    )


def ledger(board: Sequence[Row]) -> Table:
    """What each cell costs, and what kind of conversion it is."""
    head = ["method", "recipe", "T", "warm-up", "latency", "twin", "firing rate", "SynOps (M)", "MACs (M)"]
    head += ["energy (uJ)", "alphabet", "levels per step", "causal", "retrained", "calibration images"]
    body = [[row.method, row.recipe, *_cost(cell), *_conversion(row)] for row in board for cell in row.cells]
    return Table(head, body)


def _cost(cell: Cell) -> list[object]:
    return [
        *(cell.T, cell.warmup, cell.latency),
        fixed(cell.quantised.mean) if cell.quantised else "",
        fixed(cell.firing_rate.mean, 4),
        fixed(cell.synops.mean / 10**6) if cell.synops else "",
        fixed(cell.macs.mean / 10**6) if cell.macs else "",
        fixed(cell.energy_joule.mean * 10**6, 1) if cell.energy_joule else "",
    ]


def _conversion(row: Row) -> list[object]:
    ledger = row.conversion
    yes = {True: "yes", False: "no"}
    calibration = row.protocol.calibration_images
    return [ledger.alphabet, ledger.levels_per_step, yes[ledger.causal], yes[ledger.retrained], calibration]


def show(statistic: Statistic, seeds: int | None = None) -> str:
    """Mean ± standard deviation; says over how many seeds where that is not all ``seeds`` of the row."""
    text = fixed(statistic.mean)
    if statistic.std is not None:
        text += f" ± {fixed(statistic.std)}"
    return text if seeds in (None, statistic.n) else f"{text} (n={statistic.n})"
