"""Valid synthetic records for tests, any field of which can be replaced by its dotted path."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.records.record import PROTOCOL_VERSION, SCHEMA_VERSION, Record, config_sha256
from bench.registry.datasets import DATA


def sha(text: str) -> str:
    """Any 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def point(T: int, top1: float, warmup: int = 0, **changes: Any) -> dict[str, Any]:
    """One entry of ``snn``."""
    base = {"T": T, "warmup": warmup, "top1": top1, "top5": 1.0, "quantised_top1": 0.9, "firing_rate": 0.125}
    return {**base, "synops": 1e6, "energy_joule": 1e-6, **changes}


def num_test(data: str) -> int:
    """Images of a registered test set; of another, those of CIFAR."""
    return DATA[data].num_test if data in DATA else 10_000


def record_dict(seed: int = 0, snn: Sequence[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """A record as JSON data; ``changes`` name fields with ``__`` for a dot: ``protocol__version=2``."""
    config = changes.pop("config", {"model": {"L": 4}, "data": {"batch_size": 128}})
    config = {"trainer": {"max_epochs": 300}, **config}
    data: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "method": {"name": "qcfs", "paper": "bu2022qcfs", "options": {"L": 4}},
        "arch": {"name": "cifar_resnet20", "parameters": 272_000, "macs": 41_000_000},
        "data": {"name": "cifar10", "fingerprint": sha("test set"), "num_classes": 10},
        "recipe": {"name": "paper", "overrides": [], "sha256": config_sha256(config), "config": config},
        "seed": seed,
        "protocol": {
            "version": PROTOCOL_VERSION,
            "input_coding": "direct",
            "readout": "rate",
            "reset": "soft",
            "checkpoint_selection": "last",
            "eval_split": "test",
            "num_train_samples": 50_000,
            "num_eval_samples": 10_000,
            "calibration_images": 0,
            "precision": "fp32",
            "bn_folded": True,
        },
        "conversion": {
            "alphabet": "binary",
            "levels_per_step": 1,
            "causal": True,
            "per_T": False,
            "retrained": True,
            "source_sha256": None,
        },
        "ann": {"top1": 0.9177, "top5": 0.99},
        "extras": {},
        "snn": list(snn) if snn is not None else [point(2, 0.732), point(4, 0.8375), point(8, 0.8955)],
        "training": {"code": {"commit": "a" * 40, "dirty": False}, "epochs": 300, "seconds": 3600.0},
        "code": {"commit": "b" * 40, "dirty": False},
        "environment": {
            "python": "3.11",
            "torch": "2",
            "torchvision": "0",
            "lightning": "2",
            "timm": "1",
            "device": "cpu",
            "threads": 1,
            "world_size": 1,
            "workers": 0,
            "deterministic": True,
        },
        "run": {"argv": ["python", "-m", "bench", "fit"], "started": "2025-01-01T00:00:00+00:00", "seconds": 1.5},
        "checkpoint": {"sha256": sha(f"net {seed}"), "format": "safetensors"},
        "limited": False,
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        target = data
        for parent in parents:
            target = target[parent]
        if last not in target:
            raise KeyError(name)
        target[last] = value
    if "data__name" in changes and "protocol__num_eval_samples" not in changes:
        data["protocol"]["num_eval_samples"] = num_test(changes["data__name"])
    return data


def make_record(seed: int = 0, snn: Sequence[dict[str, Any]] | None = None, **changes: Any) -> Record:
    """A valid record."""
    return Record.model_validate(record_dict(seed, snn, **changes), strict=True)


def file_record(results: Path, record: Record) -> Path:
    """Writes a record where it belongs and returns that path."""
    path = results / record.path()
    record.write(path)
    return path
