"""Settings of earlier runs as they would be recorded today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.registry.datasets import DATA
from bench.registry.methods import METHODS


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as it would be recorded today.

    It gets the options that it is too old to have, and loses the precision of its training, which is arithmetic.
    """
    today = dict(config)
    method, data = METHODS.get(config.get("method", "")), DATA.get((config.get("data") or {}).get("name", ""))
    for part, entry in (("model", method), ("data", data)):
        today[part] = {**(entry.younger if entry else {}), **(config.get(part) or {})}
    if isinstance(config.get("trainer"), dict):
        today["trainer"] = {key: value for key, value in config["trainer"].items() if key != "precision"}
    if "source" in config:
        today["source"] = completed(config["source"])
    return today
