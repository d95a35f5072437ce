"""The data of the interactive page: rows, printed numbers and provenance as plain JSON.

Numbers are rounded as everywhere on the leaderboard, so that the page shows the same digits as the tables.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from decimal import Decimal

from bench.leaderboard.match import TOLERANCE
from bench.leaderboard.reported import Paper
from bench.leaderboard.row import STANDINGS, Row, measured, reference_label, reference_of
from bench.leaderboard.text import fixed, one_line, percent
from bench.records.record import Imported, Record
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS

# Longer texts are cut; the linked record has them in full.
LONG, SHORT = 4000, 300

Data = dict[str, object]


class Texts:
    """Texts that many rows share: each is stored once and referred to by its number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """Returns the number of a text, new or known."""
        return self.numbers.setdefault(text, len(self.numbers))


def payload(names: Sequence[str], rows: Sequence[Row], papers: Sequence[Paper]) -> Data:
    """Returns everything that the page shows; the same rows give the same data in the same order."""
    keys: dict[str, int] = {}
    texts = Texts()
    return {
        "datasets": [{"name": name, "title": DATA[name].title} for name in names],
        "rows": [_experiment(cells, keys, texts) for cells in measured(rows)],
        "printed": [line for paper in papers for line in _printed(paper)],
        "papers": {paper.key: _paper(paper) for paper in papers},
        "methods": {name: entry.display for name, entry in METHODS.items()},
        "texts": list(texts.numbers),
        "tolerance": str(TOLERANCE),
        "standings": STANDINGS,
    }


def _key(row: Row, seen: dict[str, int]) -> str:
    """Returns a name for links: that of the row's records without the seed."""
    key = f"{row.dataset}/{row.arch}/{row.method}/{row.recipe}-{str(row.recipe_sha256)[:8]}"
    seen[key] = seen.get(key, 0) + 1
    return key if seen[key] == 1 else f"{key}~{seen[key]}"


def _named(source: object, names: str) -> Data:
    return {name: getattr(source, name) for name in names.split()}


def _experiment(cells: Sequence[Row], keys: dict[str, int], texts: Texts) -> Data:
    row, protocol = cells[0], cells[0].records[0].protocol
    yes = {True: "yes", False: "no", None: ""}
    facts = {
        "net": f"{row.parameters:,} parameters, {row.macs:,} multiply-accumulates",
        "options": one_line(row.options, SHORT),
        "alphabet": f"{row.alphabet}, {row.levels_per_step} level(s) per step",
        "layers wait": yes[None if row.causal is None else not row.causal],
        "draws": str(row.draws or "none"),
        "converted for each T": yes[row.per_T],
        "retrained": yes[row.retrained],
        "calibration images": f"{row.calibration_images:,}",
        "BN folded": yes[row.bn_folded],
        "reset": protocol.reset,
        "input, read-out": f"{protocol.input_coding}, {protocol.readout}",
        "precision": protocol.precision,
        "epoch": protocol.checkpoint_selection,
        "training images": "unknown" if protocol.num_train_samples is None else f"{protocol.num_train_samples:,}",
        "test images": f"{protocol.num_eval_samples:,}",
        "protocol": str(protocol.version),
        "recipe's SHA-256": str(row.recipe_sha256),
    }
    if (theirs := row.records[0].training.imported) is not None:
        facts |= {"weights of others": one_line(_imported(theirs), SHORT)}
    data = {
        **_named(row, "dataset arch method paper recipe L rank marks"),
        "standing": STANDINGS.index(row.standing),
        "key": _key(row, keys),
        "ann": [_two(row.ann_top1), _two(row.ann_std), row.n],
        "facts": [[texts(name), texts(fact)] for name, fact in facts.items()],
        "cells": [_cell(cell, texts) for cell in cells],
        "runs": [_run(record, texts) for record in row.records],
    }
    if row.reference_ann is not None:
        data |= {"reference": [_two(row.reference_ann), _two(row.reference_std)]}
        data |= {"called": reference_label(row.method)}
    return data


def _imported(theirs: Imported) -> str:
    stated = None if theirs.stated_top1 is None else f"ANN stated as {_two(percent(theirs.stated_top1))}"
    said = (theirs.repository, theirs.commit, theirs.licence, stated)
    return ", ".join([f"{theirs.file} (SHA-256 {theirs.sha256})", *(one for one in said if one)])


def _two(value: Decimal | None, places: int = 2) -> float | None:
    return None if value is None else float(fixed(value, places))


def _cell(row: Row, texts: Texts) -> Data:
    data: Data = {
        **_named(row, "T warmup"),
        "top1": [_two(row.top1), _two(row.std), row.n_T],
        "twin": _two(row.quantised_top1),
        "rate": _two(row.firing_rate, 4),
        "synops": _two(row.synops, 0),
        "mJ": _two(row.energy_joule and row.energy_joule * 1000, 4),
        "badge": texts(row.badge),
    }
    if row.wait:  # left out if it is 0, as it mostly is, to keep the page small
        data["wait"] = row.wait
    if row.printed is not None:
        data |= {"paper": f"{row.reported_top1:f}", "difference": _two(row.difference)}
        said = {"where": row.reported_in, "kind": row.printed.kind.replace("_", " "), "remark": row.remark}
        data |= {name: texts(one_line(text or "", SHORT)) for name, text in said.items()}
    return data


def _run(record: Record, texts: Texts) -> Data:
    env, reference = record.environment, reference_of(record)
    versions = f"Python {env.python}, torch {env.torch}, torchvision {env.torchvision}, Lightning {env.lightning}"
    device = f"{env.device}; {env.threads} thread(s), {env.world_size} process(es), {env.workers} worker(s)"
    said = {
        "commit": record.code.commit,
        "trained": record.training.code.commit,
        "versions": one_line(f"{versions}, timm {env.timm}", SHORT),
        "device": one_line(device + ", deterministic" * env.deterministic, SHORT),
        "command": one_line(shlex.join(record.run.argv), LONG),
    }
    return {
        "seed": record.seed,
        # In the folder of its row.
        "file": record.path().name,
        "ann": _two(percent(record.ann.top1)),
        **({} if reference is None else {"reference": _two(percent(reference))}),
        "points": [[point.T, point.warmup, _two(percent(point.top1)), point.synops] for point in record.snn],
        "epochs": record.training.epochs,
        "hours": None if record.training.seconds is None else round(record.training.seconds / 3600, 2),
        "seconds": round(record.run.seconds, 1),
        "started": one_line(record.run.started, 40),
        "weights": record.checkpoint.sha256,
        "source": record.conversion.source_sha256,
        **{name: texts(text) for name, text in said.items()},
    }


def _printed(paper: Paper) -> Iterable[Data]:
    # Whole rows, including those with cells beside ours: a printed row is read as one line.
    for index, row in enumerate(paper.rows):
        also = [f"also {', '.join(row.also)}"] if row.also else []
        yield {
            **_named(row, "dataset who L warmup"),
            "key": f"{paper.key}*{index + 1}",
            "paper": paper.key,
            "arch": row.same_as.arch or one_line(row.arch or "net not stated", SHORT),
            "same": row.same_as.arch is not None,
            "method": row.same_as.method or one_line(row.method, SHORT),
            "as": one_line(row.method, SHORT),
            "kind": row.kind.replace("_", " "),
            "where": one_line("; ".join(part for part in (row.table, row.source, *also) if part), SHORT),
            "note": one_line(row.note or "", SHORT),
            "ann": None if row.ann_top1 is None else f"{row.ann_top1:f}",
            "top1": [[steps, f"{top1:f}"] for steps, top1 in row.top1.items()],
        }


def _paper(paper: Paper) -> Data:
    return {
        "title": paper.title and one_line(paper.title, SHORT),
        "venue": one_line(" ".join(str(part) for part in (paper.venue, paper.year) if part), SHORT),
        "url": f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else None,
    }
