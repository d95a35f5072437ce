"""Estimates the cost of a sweep from the seconds in records of the same method and data set.

For a net without records, the cost per multiply-accumulate of another net is used.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from bench.errors import UserError
from bench.nets import architectures
from bench.records.record import Record, part, read_record
from bench.registry.datasets import DATA
from bench.sweep.plan import Job

Key = tuple[str, str, JsonValue]


class Cost(NamedTuple):
    """Seconds measured: of one training epoch (0 if nothing trains) and of conversion and evaluation."""

    epoch: float
    evaluation: float


class Estimate(NamedTuple):
    """Seconds of one run, and whether they were measured with another net."""

    seconds: float
    scaled: bool = False


class Estimator:
    """Looks records up.

    Args:
        folders: where records are, at any depth; those that cannot be read are passed over.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.measured: dict[Key, dict[str, list[Cost]]] = defaultdict(lambda: defaultdict(list))
        self.macs: dict[tuple[str, str], int] = {}
        self.devices: set[str] = set()
        for path in sorted({path for folder in folders for path in folder.rglob("*.json")}):
            try:
                record = read_record(path)
            except UserError:
                continue
            subset = part(record.recipe.config, "data").get("subset")
            # Epochs that a limit made short say nothing about whole ones.
            cut = any(override.startswith("trainer.limit_") for override in record.recipe.overrides)
            if (cost := _cost(record)) and not cut:
                key = (record.method.name, record.data.name, subset)
                self.measured[key][record.arch.name].append(cost)
                self.macs[record.arch.name, record.data.name] = record.arch.macs
                self.devices.add(record.environment.device)

    def seconds(self, job: Job) -> Estimate | None:
        """Estimates one run as the median of the records; ``None`` without records. T is not taken into account."""
        s = job.spec
        nets = self.measured.get((s.method, s.data, s.data_options.get("subset")))
        if not nets:
            return None
        epochs = int(str((s.trainer or {}).get("max_epochs") or 0))
        if s.arch in nets:
            return Estimate(statistics.median(cost.epoch * epochs + cost.evaluation for cost in nets[s.arch]))
        wanted = self._macs(s.arch, s.data)
        costs = [
            (cost.epoch * epochs + cost.evaluation) * wanted / self.macs[arch, s.data]
            for arch, measured in nets.items()
            for cost in measured
        ]
        return Estimate(statistics.median(costs), scaled=True)

    def _macs(self, arch: str, data: str) -> int:
        if (arch, data) not in self.macs:
            net = architectures.create(arch, DATA[data].num_classes)
            self.macs[arch, data] = architectures.count_macs(net, DATA[data].load().input_shape)
        return self.macs[arch, data]


def _cost(record: Record) -> Cost | None:
    if not record.conversion.retrained:
        return Cost(0.0, record.run.seconds)
    training = record.training
    if not training.seconds or not training.epochs:
        return None
    return Cost(training.seconds / training.epochs, record.run.seconds)
