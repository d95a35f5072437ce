"""Fills the tables of ``leaderboards/notes/*.md``: ``python docs/notes.py`` (``--check`` writes nothing).

A table's rows are chosen by hand, ``| `method/recipe` |`` (``net/method/recipe`` if several nets have it), its columns
by their heads (``ANN``, ``T = 8``); what stands between is the rows' own. Behind the name of a net in
``leaderboards/checkpoints`` comes its SHA-256. Behind ``> TABLE: Against ...:``, with the heading of a table of the
generated page, comes what that page counts.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pages

from bench.errors import UserError
from bench.leaderboard.aggregate import aggregate
from bench.leaderboard.load import load
from bench.leaderboard.row import Row, measured
from bench.leaderboard.text import spread

LEADERBOARDS = pages.HERE.parent / "leaderboards"


def accuracies(experiment: Sequence[Row]) -> dict[str, str]:
    """Returns the accuracies of an experiment by column."""
    first = experiment[0]
    return {"ANN": spread(first.ann_top1, first.ann_std)} | {f"T = {row.T}": row.shown for row in experiment}


def filled(text: str, rows: Mapping[str, Sequence[Row] | None], counts: Mapping[str, str], nets: Path) -> Iterator[str]:
    """Yields the lines of a page of notes, with updated tables.

    Args:
        text: the page as it is.
        rows: by ``method/recipe`` and by ``net/method/recipe``; ``None`` if a name is that of several.
        counts: those of the generated page of the same data set, by table and beginning.
        nets: folder of the committed nets.

    Raises:
        UserError: a table names a row or a net that does not exist, or a count is of no table.
    """
    heading: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heading = []
        elif not heading:
            heading = cells
        elif cells[0].startswith("`"):
            name = cells[0].strip("`")
            if heading[0] == "file":
                if not (nets / name).is_file():
                    raise UserError(f"net {name} not found in {nets}; remove its line")
                cells[1] = hashlib.sha256((nets / name).read_bytes()).hexdigest()
            else:
                if name not in rows:
                    raise UserError(f"row {name} not found in leaderboards/results; remove its line")
                if (experiment := rows[name]) is None:
                    raise UserError(f"row {name}: several have this name; write net/method/recipe, or leave it out")
                found = accuracies(experiment)
                cells[1:] = [found.get(column, "") for column in heading[1:]]
            line = f"| {' | '.join(cells)} |"
        if line.startswith("> ") and ": Against " in line:
            title = ": ".join(line.removeprefix("> ").split(": ")[:2])
            if title not in counts:
                raise UserError(f"{title}: no such count on the generated page; give one of {', '.join(counts)}")
            line = f"> {title}: {counts[title]}"
        yield line


def made(path: Path, text: str) -> str:
    """Returns a page of notes with updated tables."""
    experiments = measured(aggregate(load(LEADERBOARDS / "results")[0], []))
    named: dict[str, Sequence[Row] | None] = {}
    for rows in experiments:
        if rows[0].dataset == path.stem:
            short = f"{rows[0].method}/{rows[0].recipe}"
            for name in (short, f"{rows[0].arch}/{short}"):
                named[name] = None if name in named else rows
    page = (LEADERBOARDS / path.name).read_text(encoding="utf-8")
    return "\n".join(filled(text, named, counted(page), LEADERBOARDS / "checkpoints")) + "\n"


def counted(page: str) -> dict[str, str]:
    """Returns what a generated page counts: ``TABLE: Against ...`` to the rest of the line."""
    found, table = {}, ""
    for line in page.splitlines():
        if line.startswith("### "):
            table = line.removeprefix("### ").partition(", protocol")[0]
        elif line.startswith("Against "):
            head, _, count = line.partition(": ")
            found[f"{table}: {head}"] = count
    return found


if __name__ == "__main__":
    notes = sorted((LEADERBOARDS / "notes").glob("*.md"))
    sys.exit(pages.main(__doc__, {path: functools.partial(made, path) for path in notes}))
