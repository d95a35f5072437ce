"""Which records are repetitions of one experiment: all but the seed, and what follows from the seed, is the same."""

from __future__ import annotations

import json

from bench.records.record import Conversion, Options, Protocol, Record, config_sha256, part
from bench.registry.methods import METHODS
from bench.registry.younger import completed


def experiment(config: Options) -> Options:
    """A configuration as it would be recorded today, without the source net's checksum.

    Each seed may convert its own source net, whose settings are part of the experiment and whose weights are not.
    """
    today = completed(config)
    if "source" in today:
        today["source"] = {key: value for key, value in part(today, "source").items() if key != "sha256"}
    return today


def label(record: Record) -> str:
    """Recipe and what was changed, without the precision, which earlier records have among the changes."""
    kept = [change for change in record.recipe.overrides if not change.startswith("trainer.precision=")]
    return record.recipe.model_copy(update={"overrides": kept}).label


def options(record: Record) -> str:
    """The method's options as canonical JSON."""
    return json.dumps(record.method.options, sort_keys=True)


def ledger(protocol: Protocol, conversion: Conversion) -> str:
    """Protocol and latency ledger as canonical JSON; seeds that differ there are not repetitions of one experiment."""
    return protocol.model_dump_json() + conversion.model_dump_json(exclude={"source_sha256"})


def identity(record: Record) -> tuple[object, ...]:
    """What all repetitions have in common."""
    younger = METHODS[record.method.name].younger if record.method.name in METHODS else {}
    return (
        record.data.name,
        *(record.arch.name, record.arch.parameters, record.arch.macs),
        record.method.name,
        json.dumps({**younger, **record.method.options}, sort_keys=True),
        label(record),
        config_sha256(experiment(record.recipe.config)),
        ledger(record.protocol, record.conversion),
    )
