"""What a sweep will cost, from the seconds in records of the same method, net and data set."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from bench.errors import UserError
from bench.records.record import Record, part, read_record
from bench.sweep.plan import Job

Key = tuple[str, str, str, JsonValue]


class Cost(NamedTuple):
    """Seconds measured: of one training epoch (0 where nothing trains) and of conversion and evaluation."""

    epoch: float
    evaluation: float


class Estimator:
    """Looks records up.

    Args:
        folders: where records are, at any depth; those that cannot be read are passed over.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.measured: dict[Key, list[Cost]] = defaultdict(list)
        self.devices: set[str] = set()
        for path in sorted({path for folder in folders for path in folder.rglob("*.json")}):
            try:
                record = read_record(path)
            except UserError:
                continue
            if cost := _cost(record):
                subset = part(record.recipe.config, "data").get("subset")
                self.measured[(record.method.name, record.arch.name, record.data.name, subset)].append(cost)
                self.devices.add(record.environment.device)

    def seconds(self, job: Job) -> float | None:
        """Of one run, as the median of the records; ``None`` where there are none. The T are not accounted for."""
        s = job.spec
        costs = self.measured.get((s.method, s.arch, s.data, s.data_options.get("subset")))
        if not costs:
            return None
        epochs = int(str((s.trainer or {}).get("max_epochs") or 0))
        return statistics.median(cost.epoch * epochs + cost.evaluation for cost in costs)


def _cost(record: Record) -> Cost | None:
    if not record.conversion.retrained:
        return Cost(0.0, record.run.seconds)
    training = record.training
    if not training.seconds or not training.epochs:
        return None
    return Cost(training.seconds / training.epochs, record.run.seconds)
