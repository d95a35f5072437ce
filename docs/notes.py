"""Fills the tables of ``leaderboards/notes/*.md``: ``python docs/notes.py`` (``--check`` writes nothing).

A table's rows are chosen by hand, ``| `method/recipe` |``, its columns by their heads (``ANN``, ``T = 8``); what stands
between is the rows' own. Behind the name of a net in ``leaderboards/checkpoints`` comes its SHA-256, and a quoted line
that begins like one of the generated page becomes that one.
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


def filled(text: str, rows: Mapping[str, Sequence[Row]], page: list[str], nets: Path) -> Iterator[str]:
    """Yields the lines of a page of notes, with updated tables.

    Args:
        text: the page as it is.
        rows: by ``method/recipe``.
        page: lines of the generated page of the same data set.
        nets: folder of the committed nets.

    Raises:
        UserError: a table names a row or a net that does not exist.
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
                found = accuracies(rows[name])
                cells[1:] = [found.get(column, "") for column in heading[1:]]
            line = f"| {' | '.join(cells)} |"
        if line.startswith("> "):
            title = line.split(":")[0].removeprefix("> ")
            line = next((f"> {other}" for other in page if other.startswith(f"{title}:")), line)
        yield line


def made(path: Path, text: str) -> str:
    """Returns a page of notes with updated tables."""
    experiments = measured(aggregate(load(LEADERBOARDS / "results")[0], []))
    named = {f"{rows[0].method}/{rows[0].recipe}": rows for rows in experiments if rows[0].dataset == path.stem}
    page = (LEADERBOARDS / path.name).read_text(encoding="utf-8").splitlines()
    return "\n".join(filled(text, named, page, LEADERBOARDS / "checkpoints")) + "\n"


if __name__ == "__main__":
    notes = sorted((LEADERBOARDS / "notes").glob("*.md"))
    sys.exit(pages.main(__doc__, {path: functools.partial(made, path) for path in notes}))
