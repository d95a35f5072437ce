"""Decides which records repeat one experiment: they differ only in the seed and in what follows from it."""

from __future__ import annotations

import json

from bench.records.record import Conversion, Options, Protocol, Record, config_sha256, part
from bench.registry.methods import METHODS
from bench.registry.younger import completed


def experiment(config: Options) -> Options:
    """Returns a configuration as it would be recorded today, without the checksum of the source net.

    Each seed may convert its own source net. The settings of that net are part of the experiment, its weights are not.
    """
    today = completed(config)
    if "source" in today:
        today["source"] = {key: value for key, value in part(today, "source").items() if key != "sha256"}
    return today


def label(record: Record) -> str:
    """Returns the recipe and its changes, without the precision, which older records list as a change."""
    kept = [change for change in record.recipe.overrides if not change.startswith("trainer.precision=")]
    return record.recipe.model_copy(update={"overrides": kept}).label


def options(record: Record) -> str:
    """Returns the method's options as canonical JSON."""
    return json.dumps(record.method.options, sort_keys=True)


def ledger(protocol: Protocol, conversion: Conversion) -> str:
    """Returns protocol and conversion as canonical JSON; seeds that differ here do not repeat one experiment."""
    return protocol.model_dump_json() + conversion.model_dump_json(exclude={"source_sha256"})


def identity(record: Record) -> tuple[object, ...]:
    """Returns what all repetitions of an experiment have in common."""
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
