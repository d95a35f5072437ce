"""The one flat row that everything is rendered from: tables, CSV, JSON, page and curves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from decimal import Decimal
from itertools import groupby
from typing import Literal, get_args

from bench.leaderboard.reported import ReportedRow
from bench.leaderboard.text import spread
from bench.records.record import Record
from bench.registry.methods import METHODS

Badge = Literal["matches", "differs", "ours only", "reported only"]
# How a net was trained, in the order of the tables; each has its own ranking.
Standing = Literal["full recipes", "weights of others", "short recipes of ours"]
STANDINGS = get_args(Standing)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The results of one experiment at one T over its seeds, or a number that is only printed.

    The fields down to ``remark`` are the columns of the CSV files and of ``--json``. For a number that is only printed,
    the fields of a run are ``None``. An experiment is everything but the seed and T. Accuracies are means over the
    seeds, in percent, with their sample standard deviation (``None`` for a single seed); costs are means.

    Attributes:
        T: counted steps; ``512+`` if the paper prints "at least 512".
        latency: steps until the answer, including warm-up and waiting.
        wait: the part of the latency in which layers wait for several steps of their input.
        n: seeds of the experiment.
        n_T: the seeds that have this T.
        reference_ann: accuracy of the classifier that the paper prints as its ANN, if that is not the ANN itself.
        options: the method's, as canonical JSON.
        experiment: what all rows of an experiment have in common.
        standing: how its net was trained.
        weights_of_others: SHA-256 of the file that the weights were imported from; ``None`` for nets trained here.
        ranked: its experiment is ranked by this row.
        records: the records of the seeds.
        printed: the paper's row that this one is compared with, or comes from.
        printed_by: key of the file with that row.
        replications: this row compared with each replication.
    """

    dataset: str
    arch: str
    parameters: int | None = None
    macs: int | None = None
    method: str
    paper: str
    L: int | None = None
    recipe: str | None = None
    recipe_sha256: str | None = None
    protocol: int | None = None
    checkpoint_selection: str | None = None
    precision: str | None = None
    reset: str | None = None
    bn_folded: bool | None = None
    calibration_images: int | None = None
    train_samples: int | None = None
    rank: int | None = None
    marks: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    n: int | None = None
    ann_top1: Decimal | None = None
    ann_std: Decimal | None = None
    reference_ann: Decimal | None = None
    T: int | str = 0
    warmup: int = 0
    wait: int = 0
    latency: int | None = None
    n_T: int | None = None
    top1: Decimal | None = None
    std: Decimal | None = None
    quantised_top1: Decimal | None = None
    firing_rate: Decimal | None = None
    synops: Decimal | None = None
    snn_macs: Decimal | None = None
    membrane_updates: Decimal | None = None
    energy_joule: Decimal | None = None
    alphabet: str | None = None
    levels_per_step: int | None = None
    coding: str | None = None
    causal: bool | None = None
    draws: int | None = None
    per_T: bool | None = None
    retrained: bool | None = None
    standing: Standing | None = None
    weights_of_others: str | None = None
    reported_top1: Decimal | None = None
    reported_ann: Decimal | None = None
    reported_L: int | None = None
    reported_kind: str | None = None
    reported_in: str | None = None
    reported_as: str | None = None
    difference: Decimal | None = None
    badge: Badge = "ours only"
    remark: str | None = None

    options: str = ""
    experiment: tuple[object, ...] = ()
    ranked: bool = False
    reference_std: Decimal | None = None
    records: tuple[Record, ...] = ()
    printed: ReportedRow | None = None
    printed_by: str = ""
    replications: tuple[Row, ...] = ()

    @property
    def steps(self) -> int:
        """T as a number."""
        return int(str(self.T).rstrip("+"))

    @property
    def net(self) -> tuple[object, ...]:
        """Data set and net; nets with the same name may differ in size."""
        return (self.dataset, self.arch, self.parameters, self.macs)

    @property
    def board(self) -> tuple[object, ...]:
        """Net, protocol and standing: rows with the same share a table and a ranking."""
        return (*self.net, self.protocol, self.standing)

    @property
    def shown(self) -> str:
        """Top-1 as tables show it, with the number of seeds if some lack this T."""
        return spread(self.top1, self.std) + ("" if self.n_T == self.n else f" (n={self.n_T})")

    @property
    def ann_shown(self) -> str:
        """Top-1 of the ANN, and of the reference ANN if the paper prints another."""
        ann = spread(self.ann_top1, self.ann_std)
        if self.reference_ann is None:
            return ann
        return f"{ann} ({reference_label(self.method)}: {spread(self.reference_ann, self.reference_std)})"

    @property
    def gaps(self) -> tuple[Decimal | None, Decimal | None]:
        """SNN minus ANN, ours and theirs.

        Theirs is unknown if the paper prints no accuracy of the ANN, ours if some seeds lack this T.
        """
        ann = self.ann_top1 if self.reference_ann is None else self.reference_ann
        ours = (self.top1, ann if self.n_T == self.n else None)
        known = (ours, (self.reported_top1, self.reported_ann))
        first, second = (None if snn is None or ann is None else snn - ann for snn, ann in known)
        return first, second


COLUMNS = tuple(field.name for field in fields(Row))
COLUMNS = COLUMNS[: COLUMNS.index("remark") + 1]


def measured(rows: Iterable[Row]) -> list[list[Row]]:
    """Groups our rows by experiment, in their order."""
    ours = (row for row in rows if row.records)
    return [list(group) for _, group in groupby(ours, key=lambda row: row.experiment)]


def printed(rows: Iterable[Row]) -> list[list[Row]]:
    """Groups numbers that are only printed by their printed row."""
    theirs = (row for row in rows if not row.records)
    return [list(group) for _, group in groupby(theirs, key=lambda row: id(row.printed))]


def reference_of(record: Record) -> float | None:
    """Returns top-1 of the classifier that the paper prints as its ANN, if that is not the ANN itself."""
    entry = METHODS.get(record.method.name)
    return None if entry is None or entry.reference_ann is None else record.extras.get(entry.reference_ann)


def reference_label(method: str) -> str:
    """Returns the short name of a method's reference ANN: "noisy" for ``ann_noisy``."""
    entry = METHODS.get(method)
    return "" if entry is None or entry.reference_ann is None else entry.reference_ann.removeprefix("ann_")
