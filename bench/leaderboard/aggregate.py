"""Turns records into rows: averages the seeds of an experiment and sets them beside the papers' numbers."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Context, Decimal, localcontext

from bench.leaderboard.identity import identity, label, options
from bench.leaderboard.match import Cells, cells, compared, reported_only
from bench.leaderboard.reported import Paper
from bench.leaderboard.row import COLUMNS, STANDINGS, Row, Standing, reference_of
from bench.leaderboard.text import percent
from bench.records.record import PROTOCOL_VERSION, Record, part
from bench.registry.methods import METHODS

# Rows are ranked at exactly this latency, warm-up and waiting included: steps before the first counted one are not
# free, and leaving out a T gains nothing.
RANK_LATENCY = 8
ENOUGH_SEEDS = 3
# Recipes of full length: the papers' own, and ours for methods whose papers do not state all of theirs.
FULL_RECIPES = ("paper", "lr0.05", "ours")


def aggregate(records: Iterable[Record], papers: Sequence[Paper]) -> list[Row]:
    """Makes all rows: ours, sorted and ranked, then numbers that are only printed; in any order of ``records``."""
    groups: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in _conversions(list(records)):
        groups[identity(record)].append(record)
    printed = cells(papers)
    with localcontext(Context(prec=28)):
        experiments = [_experiment(sorted(group, key=lambda r: r.seed), printed) for group in groups.values()]
        rows = list(_ranked(sorted(experiments, key=place)))
    return [*rows, *reported_only(rows, papers)]


def place(experiment: Sequence[Row]) -> tuple[object, ...]:
    """Sort key of an experiment: newest protocol first, ranked first, best first; then its names."""
    row, best = experiment[0], _fair(experiment)
    score = None if best is None else best.top1
    names = (row.method, row.recipe, row.recipe_sha256, row.options, row.experiment[-1])
    standing = STANDINGS.index(row.standing)
    return (*row.net, -(row.protocol or 0), standing, _score(experiment) is None, -(score or 0), *names)


def _conversions(records: Sequence[Record]) -> list[Record]:
    """Leaves out source nets whose own conversion is filed under another method of the same paper."""
    converted = {(r.method.paper, r.conversion.source_sha256) for r in records}
    return [r for r in records if not (_is_source(r) and (r.method.paper, r.checkpoint.sha256) in converted)]


def _is_source(record: Record) -> bool:
    entry = METHODS.get(record.method.name)
    return entry is not None and entry.source_only


def _experiment(group: Sequence[Record], printed: Cells) -> list[Row]:
    first = group[0]
    source = part(first.recipe.config, "source")
    levels = first.method.options.get("L", part(source, "model").get("L"))
    ann, ann_std = _accuracy(record.ann.top1 for record in group)
    reference, reference_std = _accuracy(reference_of(record) for record in group)
    theirs = first.training.imported
    common = Row(
        dataset=first.data.name,
        arch=first.arch.name,
        parameters=first.arch.parameters,
        macs=first.arch.macs,
        method=first.method.name,
        paper=first.method.paper,
        L=levels if type(levels) is int else None,
        recipe=label(first),
        recipe_sha256=first.recipe.sha256,
        protocol=first.protocol.version,
        train_samples=first.protocol.num_train_samples,
        seeds=tuple(record.seed for record in group),
        n=len(group),
        ann_top1=ann,
        ann_std=ann_std,
        reference_ann=reference,
        reference_std=reference_std,
        # Fields with the same name there: precision, reset, causal and so on.
        **{name: value for name, value in (*first.protocol, *first.conversion) if name in COLUMNS},
        standing=standing(first),
        weights_of_others=None if theirs is None else theirs.sha256,
        options=options(first),
        experiment=identity(first),
        records=tuple(group),
    )
    steps = sorted({(point.T, point.warmup) for record in group for point in record.snn})
    rows = [_at(common, T, warmup) for T, warmup in steps]
    if theirs is None:  # a net that others trained repeats nobody's training
        rows = [compared(row, printed) for row in rows]
    ranked = _fair(rows)
    marks = tuple(_marks(first, rows, ranked is not None))
    out = any(mark.endswith("not ranked") for mark in marks)
    return [replace(row, marks=marks, ranked=row is ranked and not out) for row in rows]


def standing(record: Record) -> Standing:
    """How the net of a record was trained."""
    if record.training.imported is not None:
        return "weights of others"
    shortened = any(change.startswith("trainer.max_epochs=") for change in record.recipe.overrides)
    return "full recipes" if record.recipe.name in FULL_RECIPES and not shortened else "short recipes of ours"


def _at(common: Row, T: int, warmup: int) -> Row:
    points = [point for record in common.records for point in record.snn if (point.T, point.warmup) == (T, warmup)]
    top1, std = _accuracy(point.top1 for point in points)
    return replace(
        common,
        T=T,
        warmup=warmup,
        wait=max(point.wait for point in points),
        latency=max(point.latency for point in points),
        n_T=len(points),
        top1=top1,
        std=std,
        quantised_top1=_accuracy(point.quantised_top1 for point in points)[0],
        firing_rate=_mean(point.firing_rate for point in points),
        synops=_mean(point.synops for point in points),
        snn_macs=_mean(point.macs for point in points),
        membrane_updates=_mean(point.membrane_updates for point in points),
        energy_joule=_mean(point.energy_joule for point in points),
    )


def _marks(record: Record, experiment: Sequence[Row], fair: bool) -> Iterator[str]:
    """Yields what a reader must know about the row."""
    if not record.conversion.causal:
        yield "layers wait"
    if record.method.name in METHODS and METHODS[record.method.name].exact:
        yield "equals its quantised twin"
    if record.conversion.per_T:
        yield "converted for each T"
    if record.conversion.draws:
        yield "one draw" if record.conversion.draws == 1 else f"mean of {record.conversion.draws} draws"
    if record.protocol.readout == "delayed":
        yield "delayed read-out"
    if len(experiment[0].records) < ENOUGH_SEEDS:
        yield f"n < {ENOUGH_SEEDS}"
    if record.training.imported is not None:
        yield "weights of others, not ranked"
    if _is_source(record):
        yield "source net of other methods, not ranked"
    if record.protocol.checkpoint_selection == "best_test":
        yield "epoch chosen on the test set, not ranked"
    if record.protocol.version != PROTOCOL_VERSION:
        yield f"protocol {record.protocol.version}, not ranked"
    if not fair:
        some = any(row.latency == RANK_LATENCY for row in experiment)
        yield f"{'not all seeds have a' if some else 'no'} result at a latency of {RANK_LATENCY}, not ranked"


def _fair(experiment: Sequence[Row]) -> Row | None:
    """Returns the row that an experiment is compared by; ``None`` if not all seeds have one at that latency."""
    fair = [row for row in experiment if row.latency == RANK_LATENCY and row.n_T == row.n]
    return max(fair, key=lambda row: row.steps, default=None)


def _score(experiment: Sequence[Row]) -> Decimal | None:
    """Returns the score for the ranking; ``None`` if the experiment is not ranked."""
    return next((row.top1 for row in experiment if row.ranked), None)


def _ranked(experiments: Sequence[Sequence[Row]]) -> Iterator[Row]:
    """Ranks within a data set, a net and one way of training; equal scores share a rank."""
    scores: dict[tuple[object, ...], list[Decimal]] = defaultdict(list)
    for rows in experiments:
        if (score := _score(rows)) is not None:
            scores[rows[0].board].append(score)
    for rows in experiments:
        score = _score(rows)
        rank = None if score is None else 1 + sum(other > score for other in scores[rows[0].board])
        yield from (replace(row, rank=rank) for row in rows)


def _accuracy(fractions: Iterable[float | None]) -> tuple[Decimal | None, Decimal | None]:
    """Returns mean and sample standard deviation, in percent, over the seeds that have a value."""
    # The statistics module adds exactly, so the order of the seeds cannot change the last digit.
    there = [percent(fraction) for fraction in fractions if fraction is not None]
    return statistics.mean(there) if there else None, statistics.stdev(there) if len(there) > 1 else None


def _mean(values: Iterable[float | None]) -> Decimal | None:
    there = [Decimal(repr(value)) for value in values if value is not None]
    return statistics.mean(there) if there else None
