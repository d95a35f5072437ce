"""The tables of one net, whose rows were measured by one protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.leaderboard.match import TOLERANCE
from bench.leaderboard.row import Row, measured
from bench.leaderboard.text import fixed

# What the SNN lacks of its own ANN: a difference in these comes from the conversion, not from the training of the ANN.
GAPS = ("our SNN - ANN", "their SNN - ANN")


@dataclass(frozen=True)
class Table:
    """Head and body of a table."""

    head: list[str]
    body: list[list[object]]


def accuracy(board: Sequence[Row]) -> Table:
    """One line for each experiment: its accuracy at every T."""
    steps = sorted({row.steps for row in board})
    head = ["rank", "method", "recipe", "L", "n", "ANN", "warm-up", *(f"T={T}" for T in steps), "papers", "marks"]
    body: list[list[object]] = []
    for rows in measured(board):
        first = rows[0]
        cells = ["; ".join(row.shown for row in rows if row.T == T) for T in steps]
        badges = [row.badge for row in rows if row.printed is not None]
        verdict = f"{badges.count('matches')} of {len(badges)} match" if badges else "ours only"
        warmup = ", ".join(map(str, sorted({row.warmup for row in rows})))
        start = [first.rank or "-", first.method, first.recipe, first.L or "", first.n, first.ann_shown, warmup]
        body.append([*start, *cells, verdict, "; ".join(first.marks or ())])
    return Table(head, body)


def comparisons(board: Sequence[Row]) -> Iterable[tuple[str, Table]]:
    """Tables that are not empty, each with a sentence that counts."""
    beside = [row for row in board if row.printed is not None]
    again = [other for row in board for other in row.replications]
    for title, rows, theirs, ends in (
        ("Against the papers", beside, "paper", ["kind", "printed in"]),
        ("Against others who ran it again", again, "theirs", ["by", "source"]),
    ):
        if rows:
            head = ["method", "recipe", "L", "T", "ours", theirs, "difference", *GAPS, "badge", *ends, "remark"]
            yield f"{title}: {_matching(rows)}.", Table(head, [_beside(row) for row in rows])


def _beside(row: Row) -> list[object]:
    assert row.printed is not None
    again = row.printed.kind == "replication"
    origin = [row.printed.who, row.printed.source] if again else [row.printed.kind.replace("_", " "), row.reported_in]
    numbers = [row.T, row.shown, f"{row.reported_top1:f}", fixed(row.difference, sign=True), *row.gaps]
    return [row.method, row.recipe, row.L or "", *numbers, row.badge, *origin, row.remark]


def _matching(rows: Sequence[Row]) -> str:
    """How many rows match, and how many of those that are of a paper's recipe."""
    badges = [row.badge for row in rows]
    full = [row.badge for row in rows if row.recipe == "paper"]
    return (
        f"{badges.count('matches')} of {len(badges)} within {TOLERANCE} points or two standard deviations; "
        f"of the papers' own recipes {full.count('matches')} of {len(full)}"
    )


def ledger(board: Sequence[Row]) -> Table:
    """What each row costs, and what kind of conversion it is."""
    head = ["method", "recipe", "T", "warm-up", "latency", "twin", "firing rate", "SynOps (M)", "MACs (M)"]
    head += ["energy (uJ)", "alphabet", "levels per step", "causal", "retrained", "calibration images"]
    return Table(head, [_cost(row) for row in board])


def _cost(row: Row) -> list[object]:
    yes = {True: "yes", False: "no", None: ""}
    return [
        *(row.method, row.recipe, row.T, row.warmup, row.latency),
        fixed(row.quantised_top1),
        fixed(row.firing_rate, 4),
        *(fixed(value and value / 10**6) for value in (row.synops, row.snn_macs)),
        fixed(row.energy_joule and row.energy_joule * 10**6, 1),
        *(row.alphabet, row.levels_per_step, yes[row.causal], yes[row.retrained], row.calibration_images),
    ]
