"""Which records are repetitions of one experiment: all but the seed, and what follows from the seed, is the same."""

from __future__ import annotations

import json
from typing import Any

from bench.records import Conversion, Protocol, Record, config_sha256

# Options that are younger than the first records, with what runs did before there was a choice. An option that is added
# to a method with records belongs here, or its new records make a second row.
YOUNGER: dict[str, dict[str, Any]] = {
    "data": {"val_augment": False},
    "model": {"max_pool": "average", "v_init": 0.0},
}


def experiment(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the options that it is too old to have, and without the source net's checksum.

    Each seed may convert its own source net, whose settings are part of the experiment and whose weights are not.
    """
    completed = {**config, **{part: {**older, **(config.get(part) or {})} for part, older in YOUNGER.items()}}
    if "source" in config:
        completed["source"] = {key: value for key, value in experiment(config["source"]).items() if key != "sha256"}
    return completed


def options(record: Record) -> str:
    """The method's options as canonical JSON."""
    return json.dumps(record.method.options, sort_keys=True)


def ledger(protocol: Protocol, conversion: Conversion) -> str:
    """Protocol and latency ledger as canonical JSON; seeds that differ there are not repetitions of one experiment."""
    return protocol.model_dump_json() + conversion.model_dump_json(exclude={"source_sha256"})


def identity(record: Record) -> tuple[object, ...]:
    """What all repetitions have in common."""
    return (
        record.data.name,
        *(record.arch.name, record.arch.parameters, record.arch.macs),
        record.method.name,
        json.dumps({**YOUNGER["model"], **record.method.options}, sort_keys=True),
        record.recipe.label,
        config_sha256(experiment(record.recipe.config)),
        ledger(record.protocol, record.conversion),
    )
