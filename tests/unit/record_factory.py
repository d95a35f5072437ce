"""Valid synthetic records for tests, any field of which can be replaced by its dotted path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.records.record import Record, config_sha256
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS

RECORD = Path(__file__).with_name("record.json").read_text()


def sha(text: str) -> str:
    """Any 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def point(T: int, top1: float, warmup: int = 0, **changes: Any) -> dict[str, Any]:
    """One entry of ``snn``."""
    base = {"T": T, "warmup": warmup, "top1": top1, "top5": 1.0, "quantised_top1": 0.9, "firing_rate": 0.125}
    return {**base, "synops": 1e6, "energy_joule": 1e-6, **changes}


def record_dict(seed: int = 0, snn: Sequence[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """A record as JSON data; ``changes`` name fields with ``__`` for a dot: ``protocol__version=2``.

    What follows from the changes is changed with them: the configuration, and what the registry says of the method.
    """
    config = changes.pop("config", {"model": {"L": 4}, "data": {"batch_size": 128}})
    data: dict[str, Any] = json.loads(RECORD)
    data |= {"seed": seed} | ({} if snn is None else {"snn": list(snn)})
    data["checkpoint"]["sha256"] = sha(f"net {seed}")
    for name, value in changes.items():
        *parents, last = name.split("__")
        target = data
        for parent in parents:
            target = target[parent]
        if last not in target:
            raise KeyError(name)
        target[last] = value
    method, entry = data["method"]["name"], METHODS.get(data["method"]["name"])
    if isinstance(config.get("data"), dict):
        names = {"method": method, "arch": data["arch"]["name"]}
        config = {**names, "trainer": {"max_epochs": 300}, **config}
        config["data"] = {"name": data["data"]["name"], **config["data"]}
        if "method__options" in changes:
            config["model"] = data["method"]["options"]
        data["method"]["options"] = config.get("model", {})
    if entry is not None:
        derived = {"method__paper": ("method", "paper", entry.paper)}
        derived["conversion__retrained"] = ("conversion", "retrained", entry.source is None)
        for change, (part, name, value) in derived.items():
            if change not in changes:
                data[part][name] = value
        if entry.source is not None and isinstance(config.get("source", {}), dict):
            checksum = data["conversion"]["source_sha256"] or sha("source")
            data["conversion"]["source_sha256"] = checksum
            config["source"] = {"trainer": {"max_epochs": 300}, **config.get("source", {}), "sha256": checksum}
    data["recipe"] |= {"sha256": config_sha256(config), "config": config}
    if data["data"]["name"] in DATA:
        known = DATA[data["data"]["name"]]
        if "protocol__num_eval_samples" not in changes:
            data["protocol"]["num_eval_samples"] = known.num_test
        data["data"]["num_classes"] = known.num_classes
    return data


def make_record(seed: int = 0, snn: Sequence[dict[str, Any]] | None = None, **changes: Any) -> Record:
    """A valid record."""
    return Record.model_validate(record_dict(seed, snn, **changes), strict=True)


def file_record(results: Path, record: Record) -> Path:
    """Writes a record where it belongs and returns that path."""
    path = results / record.path()
    record.write(path)
    return path
