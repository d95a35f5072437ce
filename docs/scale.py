"""Fills the table of docs/scale.md from measured rates: ``python docs/scale.py`` (``--check`` writes nothing).

A measurement is the output of ``python -m bench speed --json``, kept as ``docs/speed/*.json`` (see there).
If a net was not measured, the table says so; nothing is extrapolated from one net or machine to another.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pages

from bench.registry.methods import METHODS

SEEDS = 3
STEPS = 32  # T = 1..32
# Trainings for one net. One pass gives the results at all T, except for methods that are converted for each of T = 1,
# 2, 4, 8, 16, 32, which take 63 steps in all.
TRAINED = sum(entry.source is None for entry in METHODS.values())
PER_T = sum(entry.per_T for entry in METHODS.values())
ONE_PASS, PER_T_STEPS = len(METHODS) - PER_T, 63
DEVICES = (1, 8, 100)


class Part(NamedTuple):
    """One net on some data sets.

    Attributes:
        arch: the suite's name.
        data: for the reader.
        sets: number of data sets.
        train: training images of each.
        test: evaluated images of each.
        epochs: of a training.
    """

    arch: str
    data: str
    sets: int
    train: int
    test: int
    epochs: int


PARTS = (
    Part("cifar_resnet18", "CIFAR-10, CIFAR-100", 2, 50_000, 10_000, 300),
    Part("cifar_resnet20", "CIFAR-10, CIFAR-100", 2, 50_000, 10_000, 300),
    Part("cifar_vgg16", "CIFAR-10, CIFAR-100", 2, 50_000, 10_000, 300),
    Part("cifar_resnet34", "ImageNet", 1, 1_281_167, 50_000, 300),
)


def rates(measurement: dict[str, Any]) -> dict[str, float]:
    """Returns images per second in augmented training and image-steps per second in exact simulation, if measured."""
    found: dict[str, float] = {}
    for figure in measurement["figures"]:
        if figure["name"].startswith("training, QCFS, compiled, augmented"):
            kind = "training"
        elif figure["name"] == f"SNN, T = 1..{STEPS}":
            kind = "simulation"
        else:
            continue
        found[kind] = max(found.get(kind, 0.0), statistics.median(figure["ours"]))
    return found


def seconds(part: Part, rate: dict[str, float]) -> tuple[float, float]:
    """Returns the seconds of all runs of a part on one device, and of its longest single run."""
    training = part.epochs * part.train / rate["training"]
    one_pass, per_T = (part.test * steps / rate["simulation"] for steps in (STEPS, PER_T_STEPS))
    runs = part.sets * SEEDS
    return runs * (TRAINED * training + ONE_PASS * one_pass + PER_T * per_T), training + one_pass


def table(folder: Path) -> Iterator[str]:
    """Markdown lines."""
    headings = " | ".join(f"{number} device{'s' * (number > 1)}" for number in DEVICES)
    yield f"| net | data | device | {headings} |"
    yield "|---|---|---|" + "---|" * len(DEVICES)
    measured = pages.measurements(folder)
    for part in PARTS:
        mine = [m for m in measured if m["arch"] == part.arch and {"training", "simulation"} <= set(rates(m))]
        if part.data == "ImageNet":
            mine = []  # what `bench speed` measures are images of 32x32
        for measurement in mine:
            machine = measurement["environment"]
            whole, longest = seconds(part, rates(measurement))
            times = [f"{max(whole / number, longest) / 3600:,.1f} h" for number in DEVICES]
            device = f"{machine['device']}, {machine['threads']} threads"
            yield f"| {part.arch} | {part.data} | {device} | " + " | ".join(times) + " |"
        if not mine:
            yield f"| {part.arch} | {part.data} | not measured | " + " | ".join("-" for _ in DEVICES) + " |"


if __name__ == "__main__":
    made = functools.partial(pages.filled, script="scale.py", lines=list(table(pages.MEASUREMENTS)))
    sys.exit(pages.main(__doc__, {pages.HERE / "scale.md": made}))
