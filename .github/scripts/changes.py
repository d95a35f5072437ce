"""Rows of the leaderboard before and after a pull request as a Markdown table: old, new and printed numbers.

Usage: changes.py old.json new.json, both printed by ``python -m bench leaderboard --json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = (
    "dataset",
    "arch",
    "parameters",
    "macs",
    "method",
    "recipe",
    "recipe_sha256",
    "protocol",
    "seeds",
    "T",
    "warmup",
)
SHOWN = ("dataset", "arch", "method", "recipe", "n", "T", "warmup")
# A comment of GitHub's holds 65,536 characters.
MOST = 150
MAX_CELL = 80

Row = dict[str, Any]


def changes(old: list[Row], new: list[Row]) -> str:
    """Returns the text of the comment; says so if nothing changed."""
    # Seeds are part of a row's name only if several rows share it: a new seed changes the row that it joins.
    before, after = _by_name(old), _by_name(new)
    lines = []
    for name in sorted(before.keys() | after.keys()):
        a, b = before.get(name), after.get(name)
        values = [(row or {}).get(key) for row in (a, b) for key in ("top1", "reported_top1")]
        if values[:2] == values[2:]:
            continue
        row = b or a
        assert row is not None
        change = _points(b["top1"] - a["top1"]) if a and b and None not in (a["top1"], b["top1"]) else ""
        printed = row["reported_top1"]
        paper = _points(b["top1"] - printed) if b and None not in (b["top1"], printed) else ""
        numbers = [
            _two(a and a["top1"]),
            _two(b and b["top1"]),
            change,
            _two(printed),
            paper,
            row["badge"] if b else "removed",
        ]
        lines.append("| " + " | ".join(_cell(cell) for cell in [*(row[key] for key in SHOWN), *numbers]) + " |")
    if not lines:
        return "The numbers of the leaderboard stay as they are.\n"
    head = [
        "data set",
        "net",
        "method",
        "recipe",
        "n",
        "T",
        "warm-up",
        "old",
        "new",
        "change",
        "paper",
        "new - paper",
        "badge",
    ]
    text = [f"{len(lines)} numbers of the leaderboard change (top-1 in percent).", ""]
    text += ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |", *lines[:MOST]]
    if len(lines) > MOST:
        text += ["", f"and {len(lines) - MOST} more."]
    return "\n".join(text) + "\n"


def _by_name(rows: list[Row]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        name = "\t".join(str(row.get(key)) for key in NAMES if key != "seeds") + f"\t{row.get('reported_in')}"
        if row["badge"] != "reported only":
            name = name.rpartition("\t")[0]
        while name in found:
            name += "'"
        found[name] = row
    return found


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _points(value: float) -> str:
    return f"{value:+.2f}"


def _cell(value: object) -> str:
    text = "" if value is None else " ".join(str(value).split()).replace("|", "/")
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."


if __name__ == "__main__":
    sys.stdout.write(changes(*(json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])))
