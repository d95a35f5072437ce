"""Settings of earlier runs as they would be recorded today."""

from __future__ import annotations

from collections.abc import Mapping

from bench.registry.datasets import DATA
from bench.registry.methods import METHODS


def completed(config: Mapping[str, object]) -> dict[str, object]:
    """A configuration as it would be recorded today.

    It gets the options that it is too old to have, and loses the precision of its training, which is arithmetic.
    """
    today = dict(config)
    model, data, trainer, source = (config.get(part) for part in ("model", "data", "trainer", "source"))
    name = data.get("name") if isinstance(data, dict) else None
    for part, given, entry in (
        ("model", model, METHODS.get(str(config.get("method")))),
        ("data", data, DATA.get(str(name))),
    ):
        today[part] = {**(entry.younger if entry else {}), **(given if isinstance(given, dict) else {})}
    if isinstance(trainer, dict):
        today["trainer"] = {key: value for key, value in trainer.items() if key != "precision"}
    if isinstance(source, dict):
        today["source"] = completed(source)
    return today
