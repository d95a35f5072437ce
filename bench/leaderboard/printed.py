"""The part of a page that shows printed numbers nothing of ours is compared with: grouped by net, T as columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from bench.leaderboard.reported import KINDS, REPLICATIONS, ReportedRow
from bench.leaderboard.row import Row, printed
from bench.leaderboard.tables import Table

COLUMNS = (1, 2, 4, 8, 16, 32)
UNKNOWN = "net not stated"


@dataclass(frozen=True)
class Group:
    """One net's table and its numbered notes."""

    title: str
    table: Table
    notes: list[str]


@dataclass(frozen=True)
class Part:
    """A section with one group for each net."""

    title: str
    intro: str
    groups: list[Group]


def printed_parts(rows: Sequence[Row]) -> list[Part]:
    """Splits printed rows into the papers' own section and that of replications; empty ones are left out."""
    again = [row.printed_by == REPLICATIONS for row in rows]
    papers, others = ([row for row, other in zip(rows, again, strict=True) if other is kind] for kind in (False, True))
    own = "Printed by papers, with nothing measured here at the same T, warm-up, L, net and method."
    parts = [
        Part("Reported only", own, _groups(papers, "paper")),
        Part(
            "Measured again by others", "Replications; never taken for the paper's own number.", _groups(others, "by")
        ),
    ]
    return [part for part in parts if part.groups]


def _groups(rows: Sequence[Row], origin: str) -> list[Group]:
    lines = sorted(printed(rows), key=_order)
    return [_group(title, list(group), origin) for title, group in groupby(lines, key=lambda line: _net(_of(line)))]


def _of(line: Sequence[Row]) -> ReportedRow:
    assert line[0].printed is not None
    return line[0].printed


def _net(row: ReportedRow) -> str:
    return row.arch or UNKNOWN


def _order(line: Sequence[Row]) -> tuple[object, ...]:
    # The sort is stable, so rows that agree in all of this stay in the order of the file.
    row = _of(line)
    names = (row.method.lower(), row.method, line[0].printed_by)
    return (row.arch is None, _net(row), *names, KINDS.index(row.kind))


def _group(title: str, lines: Sequence[Sequence[Row]], origin: str) -> Group:
    other = any(_is_other(cell) for line in lines for cell in line)
    head = ["method", origin, "net here", "L", "warm-up", "kind", "ANN", *(f"T={T}" for T in COLUMNS), "64 and more"]
    head += ["other T"] * other + ["note"]
    notes: list[str] = []
    body: list[list[object]] = []
    for cells in lines:
        row, text = _of(cells), _note(_of(cells))
        if text and text not in notes:
            notes.append(text)
        at = {cell.T: cell.reported_top1 for cell in cells}
        line: list[object] = [row.method, row.who or cells[0].printed_by, row.same_as.arch, row.L, row.warmup or None]
        line += [row.kind.replace("_", " "), row.ann_top1, *(at.get(T) for T in COLUMNS)]
        line += [_listed(cell for cell in cells if cell.steps >= 64)]
        line += [_listed(cell for cell in cells if _is_other(cell))] * other
        body.append([*line, notes.index(text) + 1 if text else None])
    return Group(title, Table(head, body), notes)


def _is_other(cell: Row) -> bool:
    return cell.steps < 64 and cell.T not in COLUMNS


def _listed(cells: Iterable[Row]) -> str:
    return ", ".join(f"{cell.T}: {cell.reported_top1:f}" for cell in cells)


def _note(row: ReportedRow) -> str:
    also = f"also {', '.join(row.also)}" if row.also else None
    parts = [part for part in (row.table, row.source, also, row.note) if part]
    return "; ".join(dict.fromkeys(parts))
