"""Matches measured numbers with printed ones, and labels the outcome."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

from bench.leaderboard.reported import KINDS, Paper, ReportedRow
from bench.leaderboard.row import Badge, Row
from bench.registry.methods import METHODS

# Two accuracies within this many points match, whatever the spread of the seeds.
TOLERANCE = Decimal("0.5")


# Printed rows with the keys of their files, by data set, net, method, warm-up and T.
Cells = Mapping[tuple[object, ...], Sequence[tuple[str, ReportedRow]]]


def cells(papers: Iterable[Paper]) -> Cells:
    """Returns every printed number for a net and method of this suite, in the order of the files."""
    found: dict[tuple[object, ...], list[tuple[str, ReportedRow]]] = defaultdict(list)
    for paper in papers:
        for row in paper.rows:
            for T in row.top1:
                found[row.dataset, row.same_as.arch, row.same_as.method, row.warmup, T].append((paper.key, row))
    return found


def compared(row: Row, printed: Cells) -> Row:
    """Compares a row with the printed number of the same method, net, data set, T and warm-up, and with replications.

    A printed row with another L is another experiment. So is one that states no L, if our L was set against the recipe,
    and any if our spikes were permuted or our read-out was delayed, which papers print as methods of their own.
    If several remain, the authors' own number comes before one printed by others, then a row with the same L before one
    without L, then the order of the files decides.
    """
    delays = row.method in METHODS and METHODS[row.method].delays
    other = ("snn.permute",) if delays else ("snn.permute", "snn.delay")
    if any(change.startswith(other) for change in row.records[0].recipe.overrides):
        return row
    there = printed.get((row.dataset, row.arch, row.method, row.warmup, str(row.T)), ())
    found = [_beside(row, key, line) for key, line in there if _same_levels(row, line)]
    again = tuple(other for other in found if other.reported_kind == "replication")
    theirs = [other for other in found if other.reported_kind != "replication"]
    best = min(
        theirs, key=lambda other: (KINDS.index(str(other.reported_kind)), other.reported_L != row.L), default=row
    )
    return replace(best, replications=again) if again else best


def reported_only(rows: Sequence[Row], papers: Sequence[Paper]) -> list[Row]:
    """Returns the printed numbers that no row of ours is compared with, in the order of the files."""
    used = {(id(row.printed), str(row.T)) for row in rows}
    return [
        _stated(_alone(paper.key, printed, steps), paper.key, printed, printed.who or printed.table or printed.source)
        for paper in papers
        for printed in paper.rows
        for steps in printed.top1
        if (id(printed), steps) not in used
    ]


def badge(difference: Decimal, std: Decimal | None) -> Badge:
    """``matches`` when |difference| <= max(0.5 points, 2 standard deviations)."""
    return "matches" if abs(difference) <= max(TOLERANCE, 2 * (std or Decimal(0))) else "differs"


def _changes(row: Row) -> list[str]:
    """Returns the method's options that differ from the recipe; all seeds have the same."""
    return [c.removeprefix("model.") for c in row.records[0].recipe.overrides if c.startswith("model.")]


def _same_levels(row: Row, printed: ReportedRow) -> bool:
    if printed.L is None:
        return not any(change.startswith("L=") for change in _changes(row))
    return row.L in (None, printed.L)


def _beside(row: Row, key: str, printed: ReportedRow) -> Row:
    assert row.top1 is not None
    difference = row.top1 - printed.top1[str(row.T)]
    altered = [change for change in _changes(row) if not change.startswith("L=")]
    ours = f"ours with {', '.join(altered)}" if altered else ""
    remark = "; ".join(part for part in (_doubt(row.L, printed.L), ours, printed.note) if part)
    beside = replace(row, difference=difference, badge=badge(difference, row.std), remark=remark)
    return _stated(beside, key, printed, printed.table or printed.source or key)


def _alone(key: str, printed: ReportedRow, steps: str) -> Row:
    return Row(
        dataset=printed.dataset,
        # A net or method that is not exactly ours keeps the paper's name, prefixed with the paper's key.
        arch=printed.same_as.arch or f"{key}/{printed.arch or 'not stated'}",
        method=printed.same_as.method or f"{key}/{printed.method}",
        paper=key,
        T=int(steps) if steps.isdigit() else steps,
        warmup=printed.warmup,
        badge="reported only",
        remark=printed.note,
    )


def _stated(row: Row, key: str, printed: ReportedRow, where: str | None) -> Row:
    return replace(
        row,
        reported_top1=printed.top1[str(row.T)],
        reported_ann=printed.ann_top1,
        reported_L=printed.L,
        reported_kind=printed.kind,
        reported_in=where,
        reported_as=printed.method,
        printed=printed,
        printed_by=key,
    )


def _doubt(ours: int | None, theirs: int | None) -> str:
    if ours == theirs:
        return ""
    return f"the paper states no L (ours {ours})" if theirs is None else f"the record states no L (paper {theirs})"
