"""Converts settings of earlier runs to the form in which they would be recorded today."""

from __future__ import annotations

from bench.records.record import Options, part
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS


def completed(config: Options) -> Options:
    """Returns a configuration as it would be recorded today.

    Adds the options that did not exist then, and removes the precision of the training, which is not a setting of the
    experiment.
    """
    today: Options = {**config}
    method, data = METHODS.get(str(config.get("method"))), DATA.get(str(part(config, "data").get("name")))
    for name, entry in (("model", method), ("data", data)):
        today[name] = {**(entry.younger if entry else {}), **part(config, name)}
    if "trainer" in config:
        today["trainer"] = {key: value for key, value in part(config, "trainer").items() if key != "precision"}
    if "source" in config:
        today["source"] = completed(part(config, "source"))
    return today
