"""Fills the tables of ``leaderboards/notes/*.md``: ``python docs/notes.py`` (``--check`` writes nothing).

A table's rows are chosen by hand, ``| `method/recipe` |``, its columns by their heads (``ANN``, ``T = 8``); what stands
between is the rows' own. Behind the name of a net in ``leaderboards/checkpoints`` comes its SHA-256, and a quoted line
that begins like one of the generated page becomes that one.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

LEADERBOARDS = Path(__file__).resolve().parents[1] / "leaderboards"
sys.path.insert(0, str(LEADERBOARDS.parent))

from bench.leaderboard.aggregate import Row, aggregate  # noqa: E402
from bench.leaderboard.load import load  # noqa: E402
from bench.leaderboard.tables import show  # noqa: E402


def measured(row: Row) -> dict[str, str]:
    """By column: the accuracies of a row."""
    return {"ANN": show(row.ann)} | {f"T = {cell.T}": show(cell.top1, len(row.seeds)) for cell in row.cells}


def filled(text: str, rows: Mapping[str, Row], page: list[str], nets: Path) -> Iterator[str]:
    """The lines of a page of notes, made anew.

    Args:
        text: the page as it is.
        rows: by ``method/recipe``.
        page: lines of the generated page of the same data set.
        nets: folder of the committed nets.

    Raises:
        KeyError: a table names a row that there is not.
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
                cells[1] = hashlib.sha256((nets / name).read_bytes()).hexdigest()
            else:
                found = measured(rows[name])
                cells[1:] = [found.get(column, "") for column in heading[1:]]
            line = f"| {' | '.join(cells)} |"
        if line.startswith("> "):
            title = line.split(":")[0].removeprefix("> ")
            line = next((f"> {other}" for other in page if other.startswith(f"{title}:")), line)
        yield line


def main() -> int:
    """Writes the pages, or with ``--check`` answers 1 where one is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    checking = parser.parse_args().check
    rows = aggregate(load(LEADERBOARDS / "results")[0], [])
    stale = 0
    for path in sorted((LEADERBOARDS / "notes").glob("*.md")):
        named = {f"{row.method}/{row.recipe}": row for row in rows if row.dataset == path.stem}
        page = (LEADERBOARDS / path.name).read_text(encoding="utf-8").splitlines()
        old = path.read_text(encoding="utf-8")
        new = "\n".join(filled(old, named, page, LEADERBOARDS / "checkpoints")) + "\n"
        stale |= new != old
        if not checking:
            path.write_text(new, encoding="utf-8")
    return int(stale and checking)


if __name__ == "__main__":
    sys.exit(main())
