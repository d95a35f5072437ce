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

    What is not given follows from what is: the configuration from the names, and what the registry says of them.
    """
    config = changes.pop("config", {})
    data: dict[str, Any] = json.loads(RECORD)
    data |= {"seed": seed} | ({} if snn is None else {"snn": list(snn)})
    data["checkpoint"]["sha256"] = sha(f"net {seed}")
    _put(data, {"method__options": config.get("model", data["method"]["options"])} | changes)
    names = {key: data[key]["name"] for key in ("method", "arch", "data")}
    config = {
        **{"method": names["method"], "arch": names["arch"], "trainer": {"max_epochs": 300}},
        **{"model": data["method"]["options"], **config},
        "data": _over({"name": names["data"]}, config.get("data", {"batch_size": 128})),
    }
    implied: dict[str, Any] = {}
    if method := METHODS.get(names["method"]):
        implied |= {"method__paper": method.paper, "conversion__retrained": method.source is None}
        if method.source is not None:
            checksum = data["conversion"]["source_sha256"] or sha("source")
            source = {"trainer": {"max_epochs": 300}, "sha256": checksum}
            config["source"] = _over(source, config.get("source", {}))
            del config["trainer"]  # a conversion trains nothing itself
            implied["conversion__source_sha256"] = config["source"]["sha256"]
    if known := DATA.get(names["data"]):
        implied |= {"protocol__num_eval_samples": known.num_test, "data__num_classes": known.num_classes}
    _put(data, implied | changes)
    data["recipe"] |= {"sha256": config_sha256(config), "config": config}
    return data


def _put(data: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        *parents, last = name.split("__")
        target = data
        for parent in parents:
            target = target[parent]
        if last not in target:
            raise KeyError(name)
        target[last] = value


def _over(base: dict[str, Any], given: Any) -> Any:
    """``given`` with what it lacks of ``base``; as it is if it is no mapping."""
    return {**base, **given} if isinstance(given, dict) else given


def make_record(seed: int = 0, snn: Sequence[dict[str, Any]] | None = None, **changes: Any) -> Record:
    """A valid record."""
    return Record.model_validate(record_dict(seed, snn, **changes), strict=True)


def file_record(results: Path, record: Record) -> Path:
    """Writes a record where it belongs and returns that path."""
    path = results / record.path()
    record.write(path)
    return path
