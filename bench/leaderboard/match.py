"""Which printed number a measured one is compared with, and what to call the outcome."""

from __future__ import annotations

from collections.abc import Sequence
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


def find(
    papers: Sequence[Paper],
    dataset: str,
    arch: str,
    method: str,
    levels: int | None,
    steps: int,
    warmup: int,
    chosen: bool,
) -> Match | None:
    """Finds the printed number of the same method, net, data set, T and warm-up.

    A row with another L is another experiment, and so may be one without any, where ours was chosen. Where several rows
    remain, the authors' own number comes before one printed by others, then a row with the same L before one without
    any, then the order of the files.

    Args:
        papers: all files.
        dataset: the paper's spelling.
        arch: the suite's name of the net.
        method: the suite's name of the method.
        levels: the record's L, if it states one.
        steps: counted steps T.
        warmup: steps before the first counted one.
        chosen: whether L was set against the recipe, as in a series over L.
    """
    from_best: list[tuple[int, bool, Match]] = []
    for paper in papers:
        for row in paper.rows:
            ours = row.dataset == dataset and row.same_as.method == method and row.same_as.arch == arch
            if not ours or row.kind == "replication" or row.warmup != warmup or str(steps) not in row.top1:
                continue
            if (chosen and row.L is None) or (row.L is not None and levels not in (None, row.L)):
                continue
            doubt = _doubt(row.L, levels)
            remark = "; ".join(part for part in (doubt, row.note) if part)
            from_best.append((KINDS.index(row.kind), bool(doubt), Match(paper.key, row, row.top1[str(steps)], remark)))
    return min(from_best, key=lambda item: item[:2])[2] if from_best else None


def badge(ours: Decimal, std: Decimal | None, printed: Decimal) -> Badge:
    """``matches`` when |difference| <= max(0.5 points, 2 standard deviations)."""
    return "matches" if abs(ours - printed) <= max(TOLERANCE, 2 * (std or Decimal(0))) else "differs"


def _doubt(printed: int | None, ours: int | None) -> str:
    if printed == ours:
        return ""
    if printed is None:
        return f"the paper states no L (ours {ours})"
    return f"the record states no L (paper {printed})"
