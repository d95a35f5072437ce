"""Rows as lines with named columns, for the CSV files and ``--json``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from decimal import Decimal

from bench.leaderboard.row import COLUMNS, Row
from bench.leaderboard.text import csv_text, fixed
from bench.registry.methods import METHODS

Value = str | int | bool | Decimal | None

# Each kind of reference ANN has its own column, named as in the records.
_REFERENCES = sorted({f"{entry.reference_ann}_top1" for entry in METHODS.values() if entry.reference_ann})
HEAD = tuple(name for column in COLUMNS for name in (_REFERENCES if column == "reference_ann" else [column]))
# Decimal places of values that are not percentages.
PLACES = {"firing_rate": 4, "synops": 0, "snn_macs": 0, "membrane_updates": 0, "energy_joule": 9}
AS_PRINTED = ("reported_top1", "reported_ann")


def line(row: Row) -> dict[str, Value]:
    """Returns the row's values by column."""
    values: dict[str, Value] = {column: getattr(row, column, None) for column in HEAD}
    if row.reference_ann is not None:
        values[f"{METHODS[row.method].reference_ann}_top1"] = row.reference_ann
    if row.records:
        values |= {"marks": "; ".join(row.marks or ()), "seeds": " ".join(map(str, row.seeds or ()))}
    return values


def to_csv(rows: Iterable[Row]) -> str:
    """Writes CSV with a header, fixed decimals and ``true``/``false``; unknown values are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEAD)
    writer.writerows([_text(column, value) for column, value in line(row).items()] for row in rows)
    return out.getvalue()


def to_json(rows: Iterable[Row]) -> str:
    """Writes the same lines as a JSON list, unrounded."""
    lines = [{key: float(v) if isinstance(v, Decimal) else v for key, v in line(row).items()} for row in rows]
    return json.dumps(lines, indent=1, allow_nan=False)


def _text(column: str, value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal):
        if column in AS_PRINTED:
            return f"{value:f}"
        return fixed(value, PLACES.get(column, 2), sign=column == "difference")
    return csv_text(value) if isinstance(value, str) else str(value)
