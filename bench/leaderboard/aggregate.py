"""Records to rows: seeds of one experiment become mean and standard deviation, set beside the papers' numbers."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal, localcontext

from bench.leaderboard.identity import identity, label, ledger, options
from bench.leaderboard.match import Badge, Match, Wanted, badge, find, replications
from bench.leaderboard.reported import DATASETS, Paper, ReportedRow
from bench.leaderboard.text import percent
from bench.records.record import PROTOCOL_VERSION, Conversion, Protocol, Record, part

# Rows are ranked by the run of exactly this many steps, warm-up included: a method that looks at the image before it
# counts does not get those steps for nothing, and nobody gains by leaving a T out.
RANK_LATENCY = 8
ENOUGH_SEEDS = 3
SPELLING = {ours: theirs for theirs, ours in DATASETS.items()}


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation (``None`` for a single seed) over ``n`` seeds, in percent for accuracies."""

    n: int
    mean: Decimal
    std: Decimal | None


@dataclass(frozen=True)
class Cell:
    """One T of a row, over the seeds that have it."""

    T: int
    warmup: int
    top1: Statistic
    quantised: Statistic | None
    firing_rate: Statistic
    synops: Statistic | None
    macs: Statistic | None
    membrane_updates: Statistic | None
    energy_joule: Statistic | None
    match: Match | None
    replications: tuple[Match, ...]

    @property
    def latency(self) -> int:
        """Steps until the answer: T and the warm-up before it."""
        return self.T + self.warmup

    def against(self, other: Match) -> tuple[Decimal, Badge]:
        """Difference in points from a printed number, and what to call it."""
        return self.top1.mean - other.top1, badge(self.top1.mean, self.top1.std, other.top1)

    @property
    def difference(self) -> Decimal | None:
        """From the paper's number."""
        return None if self.match is None else self.against(self.match)[0]

    @property
    def badge(self) -> Badge:
        """Beside the paper's number."""
        return "ours only" if self.match is None else self.against(self.match)[1]


@dataclass(frozen=True)
class Row:
    """One experiment: everything but the seed is the same."""

    dataset: str
    arch: str
    parameters: int
    macs: int
    method: str
    paper: str
    options: str
    L: int | None
    recipe: str
    recipe_sha256: str
    protocol: Protocol
    conversion: Conversion
    seeds: tuple[int, ...]
    ann: Statistic
    ann_noisy: Statistic | None
    cells: tuple[Cell, ...]
    records: tuple[Record, ...]
    rank: int | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """What a reader must know before believing the row."""
        found = []
        if not self.conversion.causal:
            found.append("reads ahead")
        if self.conversion.per_T:
            found.append("converted for each T")
        if len(self.seeds) < ENOUGH_SEEDS:
            found.append(f"n < {ENOUGH_SEEDS}")
        if self.protocol.checkpoint_selection != "last":
            found.append("epoch chosen on the test set, not ranked")
        if self.protocol.version != PROTOCOL_VERSION:
            found.append(f"protocol {self.protocol.version}, not ranked")
        if self.ranked_cell is None:
            found.append(f"not all seeds at a latency of {RANK_LATENCY}, not ranked")
        return tuple(found)

    @property
    def score(self) -> Decimal | None:
        """What it is ranked by; ``None`` where it is never ranked."""
        if self.protocol.checkpoint_selection != "last" or self.protocol.version != PROTOCOL_VERSION:
            return None
        cell = self.ranked_cell
        return None if cell is None else cell.top1.mean

    @property
    def ranked_cell(self) -> Cell | None:
        """The run that rows are ranked by; ``None`` where not all seeds have it."""
        fair = [cell for cell in self.cells if cell.latency == RANK_LATENCY and cell.top1.n == len(self.seeds)]
        return max(fair, key=lambda cell: cell.T) if fair else None

    @property
    def place(self) -> tuple[object, ...]:
        """Sorts rows: newest protocol, ranked before unranked, best first; then by everything that names a row."""
        score = self.score
        names = (self.method, self.recipe, self.recipe_sha256, self.options, ledger(self.protocol, self.conversion))
        board = (self.dataset, self.arch, self.parameters, self.macs)
        return (*board, -self.protocol.version, score is None, -(score or 0), *names)


@dataclass(frozen=True)
class ReportedOnly:
    """Cells of a printed row that nothing of ours is compared with."""

    paper: str
    row: ReportedRow
    top1: dict[str, Decimal]


def aggregate(records: Iterable[Record], papers: Sequence[Paper]) -> list[Row]:
    """Makes sorted, ranked rows; the order of ``records`` does not matter."""
    groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[identity(record)].append(record)
    with localcontext(Context(prec=28)):
        return _ranked([_row(sorted(group, key=lambda r: r.seed), papers) for group in groups.values()])


def reported_only(rows: Sequence[Row], papers: Sequence[Paper]) -> list[ReportedOnly]:
    """Lists what the papers print and no row of ours is compared with, in the order of the files."""
    used = {(id(cell.match.row), str(cell.T)) for row in rows for cell in row.cells if cell.match is not None}
    found = []
    for paper in papers:
        for row in paper.rows:
            rest = {steps: top1 for steps, top1 in row.top1.items() if (id(row), steps) not in used}
            if rest:
                found.append(ReportedOnly(paper.key, row, rest))
    return found


def _row(group: Sequence[Record], papers: Sequence[Paper]) -> Row:
    first = group[0]
    source = part(first.recipe.config, "source")
    levels = first.method.options.get("L", part(source, "model").get("L"))
    noisy = [record.extras["ann_noisy"] for record in group if "ann_noisy" in record.extras]
    row = Row(
        dataset=first.data.name,
        arch=first.arch.name,
        parameters=first.arch.parameters,
        macs=first.arch.macs,
        method=first.method.name,
        paper=first.method.paper,
        options=options(first),
        L=levels if type(levels) is int else None,
        recipe=label(first),
        recipe_sha256=first.recipe.sha256,
        protocol=first.protocol,
        conversion=first.conversion,
        seeds=tuple(record.seed for record in group),
        ann=_accuracy(record.ann.top1 for record in group),
        ann_noisy=_accuracy(noisy) if noisy else None,
        cells=(),
        records=tuple(group),
    )
    steps = sorted({(point.T, point.warmup) for record in group for point in record.snn})
    return replace(row, cells=tuple(_cell(row, T, warmup, group, papers) for T, warmup in steps))


def _cell(row: Row, T: int, warmup: int, group: Sequence[Record], papers: Sequence[Paper]) -> Cell:
    points = [point for record in group for point in record.snn if (point.T, point.warmup) == (T, warmup)]
    # All seeds of a row have the same overrides.
    changes = [change.removeprefix("model.") for change in group[0].recipe.overrides if change.startswith("model.")]
    altered = tuple(change for change in changes if not change.startswith("L="))
    where = (SPELLING.get(row.dataset, ""), row.arch, row.method)
    wanted = Wanted(*where, row.L, T, warmup, chosen=len(altered) < len(changes), altered=altered)
    twins = [point.quantised_top1 for point in points if point.quantised_top1 is not None]
    return Cell(
        T=T,
        warmup=warmup,
        top1=_accuracy(point.top1 for point in points),
        quantised=_accuracy(twins) if twins else None,
        firing_rate=_statistic(Decimal(repr(point.firing_rate)) for point in points),
        synops=_measured(point.synops for point in points),
        macs=_measured(point.macs for point in points),
        membrane_updates=_measured(point.membrane_updates for point in points),
        energy_joule=_measured(point.energy_joule for point in points),
        match=find(papers, wanted),
        replications=replications(papers, wanted),
    )


def _accuracy(fractions: Iterable[float]) -> Statistic:
    return _statistic(percent(fraction) for fraction in fractions)


def _measured(values: Iterable[float | None]) -> Statistic | None:
    """Of the seeds whose records have it."""
    there = [Decimal(repr(value)) for value in values if value is not None]
    return _statistic(there) if there else None


def _statistic(values: Iterable[Decimal]) -> Statistic:
    # The statistics module adds exactly, so the order of the seeds cannot change the last digit.
    numbers = list(values)
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Statistic(len(numbers), statistics.mean(numbers), std)


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Sorts, and ranks within data set and net; equal scores share a rank."""
    scores: dict[tuple[object, ...], list[Decimal]] = defaultdict(list)
    for row in rows:
        if row.score is not None:
            scores[row.place[:4]].append(row.score)
    return [
        row if row.score is None else replace(row, rank=1 + sum(s > row.score for s in scores[row.place[:4]]))
        for row in sorted(rows, key=lambda r: r.place)
    ]
