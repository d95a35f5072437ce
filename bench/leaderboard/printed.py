"""The part of a page that shows printed numbers nothing of ours is compared with: grouped by net, T as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from bench.leaderboard.aggregate import ReportedOnly
from bench.leaderboard.reported import KINDS, REPLICATIONS

COLUMNS = (1, 2, 4, 8, 16, 32)
UNKNOWN = "net not stated"


@dataclass(frozen=True)
class Group:
    """One net's table and its numbered notes."""

    title: str
    head: list[str]
    body: list[list[object]]
    notes: list[str]


@dataclass(frozen=True)
class Part:
    """A section with one group for each net."""

    title: str
    intro: str
    groups: list[Group]


def printed_parts(items: Sequence[ReportedOnly]) -> list[Part]:
    """Splits printed rows into the papers' own section and that of replications; empty ones are left out."""
    papers = [item for item in items if item.paper != REPLICATIONS]
    others = [item for item in items if item.paper == REPLICATIONS]
    parts = [
        Part(
            "Reported only",
            "Printed by papers, with nothing measured here at the same T, warm-up, L, net and method.",
            _groups(papers, "paper"),
        ),
        Part(
            "Measured again by others", "Replications; never taken for the paper's own number.", _groups(others, "by")
        ),
    ]
    return [part for part in parts if part.groups]


def _groups(items: Sequence[ReportedOnly], origin: str) -> list[Group]:
    return [_group(title, list(group), origin) for title, group in groupby(sorted(items, key=_order), key=_net)]


def _net(item: ReportedOnly) -> str:
    return item.row.arch or UNKNOWN


def _order(item: ReportedOnly) -> tuple[object, ...]:
    # The sort is stable, so rows that agree in all of this stay in the order of the file.
    row = item.row
    return (row.arch is None, _net(item), row.method.lower(), row.method, item.paper, KINDS.index(row.kind))


def _group(title: str, items: Sequence[ReportedOnly], origin: str) -> Group:
    other = any(_is_other(steps) for item in items for steps in item.top1)
    head = ["method", origin, "net here", "L", "warm-up", "kind", "ANN", *(f"T={T}" for T in COLUMNS), "64 and more"]
    head += ["other T"] * other + ["note"]
    notes: list[str] = []
    body: list[list[object]] = []
    for item in items:
        row = item.row
        text = _note(item)
        if text and text not in notes:
            notes.append(text)
        cells = [item.top1.get(str(T)) for T in COLUMNS]
        long = [steps for steps in item.top1 if int(steps.rstrip("+")) >= 64]
        rare = [steps for steps in item.top1 if _is_other(steps)]
        line: list[object] = [row.method, row.who or item.paper, row.same_as.arch, row.L, row.warmup or None]
        line += [row.kind.replace("_", " "), row.ann_top1, *cells, _listed(item, long)]
        line += [_listed(item, rare)] * other + [notes.index(text) + 1 if text else None]
        body.append(line)
    return Group(title, head, body, notes)


def _is_other(steps: str) -> bool:
    return int(steps.rstrip("+")) < 64 and steps not in {str(T) for T in COLUMNS}


def _listed(item: ReportedOnly, steps: Sequence[str]) -> str:
    return ", ".join(f"{T}: {item.top1[T]:f}" for T in steps)


def _note(item: ReportedOnly) -> str:
    row = item.row
    also = f"also {', '.join(row.also)}" if row.also else None
    parts = [part for part in (row.table, row.source, also, row.note) if part]
    return "; ".join(dict.fromkeys(parts))
