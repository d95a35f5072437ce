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
# How a net was trained, in the order of the tables; what stands differently is never in one rank.
Standing = Literal["full recipes", "weights of others", "short recipes of ours"]
STANDINGS = get_args(Standing)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the seeds of one experiment have at one T, or a printed number with nothing of ours beside it.

    The fields down to ``remark`` are the columns of the CSV files and of ``--json``; of a number that is only printed,
    those of a run are ``None``. An experiment is all but the seed and T. Accuracies are means over the seeds, in
    percent, with their sample standard deviation, which a single seed does not have; costs are means.

    Attributes:
        T: counted steps; ``512+`` where at least 512 are printed.
        latency: steps until the answer, those of warm-up and waiting included.
        wait: of the latency, steps in which layers wait for their whole input.
        n: seeds of the experiment.
        n_T: those that have this T.
        reference_ann: accuracy of the classifier that the paper prints as its ANN, where that is not the ANN itself.
        options: the method's, as canonical JSON.
        experiment: what all rows of an experiment have in common.
        standing: how its net was trained.
        weights_of_others: SHA-256 of the file that the weights were imported from; ``None`` for nets trained here.
        ranked: its experiment is ranked by this row.
        records: those of the seeds.
        printed: the row of a paper that a number of stands beside ours.
        printed_by: key of the file that it stands in.
        replications: this row beside what others got, one for each.
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
        """Data set and net; nets of one name differ in size."""
        return (self.dataset, self.arch, self.parameters, self.macs)

    @property
    def board(self) -> tuple[object, ...]:
        """The net's rows that were measured by one protocol and stand alike: they share a table and a ranking."""
        return (*self.net, self.protocol, self.standing)

    @property
    def shown(self) -> str:
        """Top-1 as tables show it; says over how many seeds where that is not all of them."""
        return spread(self.top1, self.std) + ("" if self.n_T == self.n else f" (n={self.n_T})")

    @property
    def ann_shown(self) -> str:
        """Top-1 of the ANN, and of the one that its paper prints."""
        ann = spread(self.ann_top1, self.ann_std)
        if self.reference_ann is None:
            return ann
        return f"{ann} ({reference_label(self.method)}: {spread(self.reference_ann, self.reference_std)})"

    @property
    def gaps(self) -> tuple[Decimal | None, Decimal | None]:
        """What the SNN lacks of its ANN, ours and theirs.

        Theirs is unknown where no accuracy of the ANN is printed, ours where some seeds lack this T.
        """
        ann = self.ann_top1 if self.reference_ann is None else self.reference_ann
        ours = (self.top1, ann if self.n_T == self.n else None)
        known = (ours, (self.reported_top1, self.reported_ann))
        first, second = (None if snn is None or ann is None else snn - ann for snn, ann in known)
        return first, second


COLUMNS = tuple(field.name for field in fields(Row))
COLUMNS = COLUMNS[: COLUMNS.index("remark") + 1]


def measured(rows: Iterable[Row]) -> list[list[Row]]:
    """Our rows by experiment, in their order."""
    ours = (row for row in rows if row.records)
    return [list(group) for _, group in groupby(ours, key=lambda row: row.experiment)]


def printed(rows: Iterable[Row]) -> list[list[Row]]:
    """Numbers that are only printed, by the printed row that they are of."""
    theirs = (row for row in rows if not row.records)
    return [list(group) for _, group in groupby(theirs, key=lambda row: id(row.printed))]


def reference_of(record: Record) -> float | None:
    """Top-1 of the classifier that the method's paper prints as its ANN, where that is not the ANN itself."""
    entry = METHODS.get(record.method.name)
    return None if entry is None or entry.reference_ann is None else record.extras.get(entry.reference_ann)


def reference_label(method: str) -> str:
    """What a reference ANN is called beside the ANN: ``ann_noisy`` is the noisy one."""
    entry = METHODS.get(method)
    return "" if entry is None or entry.reference_ann is None else entry.reference_ann.removeprefix("ann_")
