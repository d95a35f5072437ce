"""Which printed number a measured one is compared with, and what to call the outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from bench.leaderboard.reported import KINDS, Paper, ReportedRow

Badge = Literal["matches", "differs", "ours only", "reported only"]
# Points within which two accuracies count as the same whatever the spread of the seeds.
TOLERANCE = Decimal("0.5")


@dataclass(frozen=True)
class Match:
    """A printed number.

    Attributes:
        paper: key of the file it stands in.
        row: the printed row.
        top1: percent, as printed.
        remark: what is not known to be the same, and what the file notes about the row; may be empty.
    """

    paper: str
    row: ReportedRow
    top1: Decimal
    remark: str


@dataclass(frozen=True)
class Wanted:
    """What a measured number is of, in the suite's terms.

    Attributes:
        dataset: the papers' spelling.
        arch: net.
        method: its name.
        L: the record's, if it states one.
        T: counted steps.
        warmup: steps before the first counted one.
        chosen: whether L was set against the recipe, as in a series over L.
        altered: the method's other options that were, as ``name=value``.
    """

    dataset: str
    arch: str
    method: str
    L: int | None
    T: int
    warmup: int
    chosen: bool
    altered: tuple[str, ...] = ()


def find(papers: Sequence[Paper], wanted: Wanted) -> Match | None:
    """Finds the printed number of the same method, net, data set, T and warm-up.

    A row with another L is another experiment, and so may be one without any, where ours was chosen. Where several rows
    remain, the authors' own number comes before one printed by others, then a row with the same L before one without
    any, then the order of the files.
    """
    found = [match for match in _same(papers, wanted) if match.row.kind != "replication"]
    return min(found, key=lambda match: (KINDS.index(match.row.kind), _doubt(match.row, wanted) != ""), default=None)


def replications(papers: Sequence[Paper], wanted: Wanted) -> tuple[Match, ...]:
    """What others got for the same cell, in the order of the file."""
    return tuple(match for match in _same(papers, wanted) if match.row.kind == "replication")


def _same(papers: Sequence[Paper], wanted: Wanted) -> Iterator[Match]:
    for paper in papers:
        for row in paper.rows:
            known = (row.dataset, row.same_as.arch, row.same_as.method, row.warmup)
            if known != (wanted.dataset, wanted.arch, wanted.method, wanted.warmup) or str(wanted.T) not in row.top1:
                continue
            if (wanted.chosen and row.L is None) or (row.L is not None and wanted.L not in (None, row.L)):
                continue
            ours = f"ours with {', '.join(wanted.altered)}" if wanted.altered else ""
            remark = "; ".join(part for part in (_doubt(row, wanted), ours, row.note) if part)
            yield Match(paper.key, row, row.top1[str(wanted.T)], remark)


def badge(ours: Decimal, std: Decimal | None, printed: Decimal) -> Badge:
    """``matches`` when |difference| <= max(0.5 points, 2 standard deviations)."""
    return "matches" if abs(ours - printed) <= max(TOLERANCE, 2 * (std or Decimal(0))) else "differs"


def _doubt(row: ReportedRow, wanted: Wanted) -> str:
    if row.L == wanted.L:
        return ""
    if row.L is None:
        return f"the paper states no L (ours {wanted.L})"
    return f"the record states no L (paper {row.L})"
