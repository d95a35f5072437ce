"""What the interactive page holds: rows, printed numbers and provenance as plain JSON data.

Numbers are rounded here as everywhere on the leaderboard, so that the page shows the digits of the tables.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from bench.leaderboard.aggregate import SPELLING, Cell, Row, Statistic
from bench.leaderboard.match import TOLERANCE
from bench.leaderboard.reported import DATASETS, Paper
from bench.leaderboard.text import fixed, one_line, percent
from bench.records.record import Record

# Longer texts are cut: the record, which is linked, has them whole.
LONG, SHORT = 4000, 300

# What a row's facts are, in their order.
FACTS = (
    *("net", "options", "alphabet", "causal", "converted for each T", "retrained", "calibration images", "BN folded"),
    *("reset", "input, read-out", "precision", "epoch", "images", "protocol", "recipe's SHA-256"),
)

Data = dict[str, Any]


class Texts:
    """Texts that many rows share, each held once and named by its number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """The number of a text, new or known."""
        return self.numbers.setdefault(text, len(self.numbers))


def payload(names: Sequence[str], rows: Sequence[Row], papers: Sequence[Paper]) -> Data:
    """Everything the page shows; the same rows give the same data in the same order."""
    keys: dict[str, int] = {}
    texts = Texts()
    return {
        "datasets": [{"name": name, "title": SPELLING.get(name, name)} for name in names],
        "rows": [_row(row, _unique(row_key(row), keys), texts) for row in rows],
        "printed": [line for paper in papers for line in _printed(paper)],
        "papers": {paper.key: _paper(paper) for paper in papers},
        "facts": FACTS,
        "texts": list(texts.numbers),
        "tolerance": str(TOLERANCE),
    }


def row_key(row: Row) -> str:
    """A name for links: that of the row's records without the seed."""
    return f"{row.dataset}/{row.arch}/{row.method}/{row.recipe}-{row.recipe_sha256[:8]}"


def _unique(key: str, seen: dict[str, int]) -> str:
    seen[key] = seen.get(key, 0) + 1
    return key if seen[key] == 1 else f"{key}~{seen[key]}"


def _row(row: Row, key: str, texts: Texts) -> Data:
    protocol, ledger = row.protocol, row.conversion
    yes = {True: "yes", False: "no"}
    facts = (
        f"{row.parameters:,} parameters, {row.macs:,} multiply-accumulates",
        one_line(row.options, SHORT),
        f"{ledger.alphabet}, {ledger.levels_per_step} level(s) per step",
        yes[ledger.causal],
        yes[ledger.per_T],
        yes[ledger.retrained],
        f"{protocol.calibration_images:,}",
        yes[protocol.bn_folded],
        protocol.reset,
        f"{protocol.input_coding}, {protocol.readout}",
        protocol.precision,
        protocol.checkpoint_selection,
        f"{protocol.num_train_samples:,} for training, {protocol.num_eval_samples:,} for the test",
        str(protocol.version),
        row.recipe_sha256,
    )
    return {
        "key": key,
        "dataset": row.dataset,
        "arch": row.arch,
        "method": row.method,
        "paper": row.paper,
        "recipe": row.recipe,
        "L": row.L,
        "rank": row.rank,
        "marks": list(row.marks),
        "ann": _statistic(row.ann),
        **({} if row.ann_noisy is None else {"noisy": _statistic(row.ann_noisy)}),
        "facts": [texts(fact) for fact in facts],
        "cells": [_cell(cell, texts) for cell in row.cells],
        "runs": [_run(record, texts) for record in row.records],
    }


def _statistic(value: Statistic | None) -> list[float | int | None] | None:
    if value is None:
        return None
    return [_two(value.mean), None if value.std is None else _two(value.std), value.n]


def _two(value: Decimal) -> float:
    return float(fixed(value))


def _cell(cell: Cell, texts: Texts) -> Data:
    data: Data = {
        "T": cell.T,
        "warmup": cell.warmup,
        "top1": _statistic(cell.top1),
        "twin": _statistic(cell.quantised),
        "rate": float(fixed(cell.firing_rate.mean, 4)),
        "synops": float(fixed(cell.synops.mean, 0)) if cell.synops else None,
        "mJ": float(fixed(cell.energy_joule.mean * 1000, 4)) if cell.energy_joule else None,
        "badge": texts(cell.badge),
    }
    if cell.match is not None and cell.difference is not None:
        row = cell.match.row
        data |= {
            "paper": f"{cell.match.top1:f}",
            "difference": _two(cell.difference),
            "where": texts(one_line(row.table or row.source or cell.match.paper, SHORT)),
            "kind": texts(row.kind.replace("_", " ")),
            "remark": texts(one_line(cell.match.remark, SHORT)),
        }
    return data


def _run(record: Record, texts: Texts) -> Data:
    env = record.environment
    versions = f"Python {env.python}, torch {env.torch}, torchvision {env.torchvision}, Lightning {env.lightning}"
    device = f"{env.device}; {env.threads} thread(s), {env.world_size} process(es), {env.workers} worker(s)"
    device += ", deterministic" if env.deterministic else ""
    return {
        "seed": record.seed,
        # In the folder of its row.
        "file": record.path().name,
        "ann": _two(percent(record.ann.top1)),
        **({"noisy": _two(percent(record.extras["ann_noisy"]))} if "ann_noisy" in record.extras else {}),
        "points": [[point.T, point.warmup, _two(percent(point.top1)), point.synops] for point in record.snn],
        "commit": texts(record.code.commit),
        "trained": texts(record.training.code.commit),
        "epochs": record.training.epochs,
        "hours": None if record.training.seconds is None else round(record.training.seconds / 3600, 2),
        "seconds": round(record.run.seconds, 1),
        "started": one_line(record.run.started, 40),
        "command": texts(one_line(shlex.join(record.run.argv), LONG)),
        "weights": record.checkpoint.sha256,
        "source": record.conversion.source_sha256,
        "versions": texts(one_line(f"{versions}, timm {env.timm}", SHORT)),
        "device": texts(one_line(device, SHORT)),
    }


def _printed(paper: Paper) -> Iterable[Data]:
    # Whole rows, also those whose cells stand beside ours: a printed row is read as one line.
    for index, row in enumerate(paper.rows):
        yield {
            "key": f"{paper.key}*{index + 1}",
            "dataset": DATASETS[row.dataset],
            "arch": row.same_as.arch or one_line(row.arch or "net not stated", SHORT),
            "same": row.same_as.arch is not None,
            "method": row.same_as.method or one_line(row.method, SHORT),
            "as": one_line(row.method, SHORT),
            "paper": paper.key,
            "kind": row.kind.replace("_", " "),
            "who": row.who,
            "L": row.L,
            "warmup": row.warmup,
            "where": one_line("; ".join(part for part in (row.table, row.source) if part), SHORT),
            "note": one_line(row.note or "", SHORT),
            "ann": None if row.ann_top1 is None else f"{row.ann_top1:f}",
            "top1": [[steps, f"{top1:f}"] for steps, top1 in row.top1.items()],
        }


def _paper(paper: Paper) -> Data:
    return {
        "key": paper.key,
        "title": one_line(paper.title or "(title not seen)", SHORT),
        "venue": one_line(" ".join(str(part) for part in (paper.venue, paper.year) if part), SHORT),
        "url": f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else None,
    }
