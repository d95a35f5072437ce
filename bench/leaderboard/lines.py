"""Rows as flat lines, one for each T: what the CSV files and ``--json`` hold."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from decimal import Decimal

from bench.leaderboard.aggregate import Cell, ReportedOnly, Row
from bench.leaderboard.reported import DATASETS
from bench.leaderboard.text import csv_text, fixed

Value = str | int | bool | Decimal | None
Line = dict[str, Value]

# Decimals of what is not a percentage; counts of operations are shown whole, joules in full.
PLACES = {"firing_rate": 4, "synops": 0, "snn_macs": 0, "membrane_updates": 0, "energy_joule": 9}
AS_PRINTED = ("reported_top1", "reported_ann")
COLUMNS = (
    *("dataset", "arch", "parameters", "macs", "method", "paper", "L", "recipe", "recipe_sha256"),
    *("protocol", "checkpoint_selection", "precision", "reset", "bn_folded", "calibration_images", "train_samples"),
    *("rank", "marks", "seeds", "n", "ann_top1", "ann_std", "ann_noisy_top1"),
    *("T", "warmup", "latency", "n_T", "top1", "std", "quantised_top1", "firing_rate"),
    *("synops", "snn_macs", "membrane_updates", "energy_joule"),
    *("alphabet", "levels_per_step", "causal", "per_T", "retrained"),
    *("reported_top1", "reported_ann", "reported_L", "reported_kind", "reported_in", "reported_as"),
    *("difference", "badge", "remark"),
)


def flat(rows: Sequence[Row], reported: Sequence[ReportedOnly]) -> list[Line]:
    """Lists every cell of ours, then every printed cell that nothing of ours is compared with."""
    ours = [{**_row(row), **_cell(cell)} for row in rows for cell in row.cells]
    theirs = [line for item in reported for line in _reported(item)]
    return [{column: line.get(column) for column in COLUMNS} for line in (*ours, *theirs)]


def to_csv(lines: Iterable[Line]) -> str:
    """CSV with a header, fixed decimals, ``true``/``false``, and nothing where a value is unknown."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        writer.writerow([_text(column, value) for column, value in line.items()])
    return out.getvalue()


def to_json(lines: Iterable[Line]) -> str:
    """A JSON list of the same lines, unrounded."""
    rows = [{key: float(v) if isinstance(v, Decimal) else v for key, v in line.items()} for line in lines]
    return json.dumps(rows, indent=1, allow_nan=False)


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


def _row(row: Row) -> Line:
    return {
        "dataset": row.dataset,
        "arch": row.arch,
        "parameters": row.parameters,
        "macs": row.macs,
        "method": row.method,
        "paper": row.paper,
        "L": row.L,
        "recipe": row.recipe,
        "recipe_sha256": row.recipe_sha256,
        "protocol": row.protocol.version,
        "checkpoint_selection": row.protocol.checkpoint_selection,
        "precision": row.protocol.precision,
        "reset": row.protocol.reset,
        "bn_folded": row.protocol.bn_folded,
        "calibration_images": row.protocol.calibration_images,
        "train_samples": row.protocol.num_train_samples,
        "rank": row.rank,
        "marks": "; ".join(row.marks),
        "seeds": " ".join(str(seed) for seed in row.seeds),
        "n": len(row.seeds),
        "ann_top1": row.ann.mean,
        "ann_std": row.ann.std,
        "ann_noisy_top1": row.ann_noisy.mean if row.ann_noisy else None,
        "alphabet": row.conversion.alphabet,
        "levels_per_step": row.conversion.levels_per_step,
        "causal": row.conversion.causal,
        "per_T": row.conversion.per_T,
        "retrained": row.conversion.retrained,
    }


def _cell(cell: Cell) -> Line:
    line: Line = {
        "T": cell.T,
        "warmup": cell.warmup,
        "latency": cell.latency,
        "n_T": cell.top1.n,
        "top1": cell.top1.mean,
        "std": cell.top1.std,
        "quantised_top1": cell.quantised.mean if cell.quantised else None,
        "firing_rate": cell.firing_rate.mean,
        "synops": cell.synops.mean if cell.synops else None,
        "snn_macs": cell.macs.mean if cell.macs else None,
        "membrane_updates": cell.membrane_updates.mean if cell.membrane_updates else None,
        "energy_joule": cell.energy_joule.mean if cell.energy_joule else None,
        "difference": cell.difference,
        "badge": cell.badge,
    }
    if cell.match is not None:
        row = cell.match.row
        line |= {
            "reported_top1": cell.match.top1,
            "reported_ann": row.ann_top1,
            "reported_L": row.L,
            "reported_kind": row.kind,
            "reported_in": row.table or row.source or cell.match.paper,
            "reported_as": row.method,
            "remark": cell.match.remark,
        }
    return line


def _reported(item: ReportedOnly) -> Iterable[Line]:
    row = item.row
    for steps, top1 in item.top1.items():
        yield {
            "dataset": DATASETS[row.dataset],
            # A net or method that is not exactly ours keeps the paper's name, in the paper's own space.
            "arch": row.same_as.arch or f"{item.paper}/{row.arch or 'not stated'}",
            "method": row.same_as.method or f"{item.paper}/{row.method}",
            "paper": item.paper,
            "T": int(steps) if steps.isdigit() else steps,
            "warmup": row.warmup,
            "reported_top1": top1,
            "reported_ann": row.ann_top1,
            "reported_L": row.L,
            "reported_kind": row.kind,
            "reported_in": row.who or row.table or row.source,
            "reported_as": row.method,
            "badge": "reported only",
            "remark": row.note,
        }
