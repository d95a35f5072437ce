"""Fills the tables of docs/performance.md from ``docs/speed/*.json``: ``python docs/performance.py`` (``--check``)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pages

# Prefix of the figures that show where time is spent.
PART = "time, "


class Target(NamedTuple):
    """The target of a ratio.

    Attributes:
        name: beginning of the figure's name.
        limit: beginning of what it is compared with.
        ratio: wanted.
        at_most: whether less is better.
    """

    name: str
    limit: str
    ratio: float
    at_most: bool = False


TARGETS = (
    Target("SNN, T = 1..32, bf16", "eager ANN", 1.6),
    Target("SNN, T = 1..32, step loop", "", 0.0),
    Target("SNN, T = 1..32, uncompiled", "", 0.0),
    Target("SNN, T = 1..32", "eager ANN", 1.15),
    Target("SNN, T = 1..32", "step loop", 1.8),
    Target("SNN, T = 1..32", "SpikingJelly", 1.8),
    Target("memory", "ANN", 4.0, at_most=True),
    Target("python -m bench", "", 1.0, at_most=True),
    Target("training, QCFS, eager", "", 0.0),
    Target("training, ReLU, compiled", "", 0.0),
    Target("training, QCFS, activations compiled", "ReLU, eager", 0.85),
    Target("training, QCFS, compiled, augmented", "ready batches", 0.95),
    Target("training, QCFS, compiled, augmented", "ReLU, eager", 1.5),
    Target("training, QCFS, compiled", "ReLU, eager", 0.0),
    Target("training", "ReLU, compiled", 0.98),
    Target("simulation, costs counted", "not counted", 0.9),
    Target("evaluation, metrics and costs", "bare simulation", 0.95),
)
# The deeper net gains less from compilation: convolutions are a larger part of its time.
TARGETS_BY_NET = {
    "cifar_resnet18": (Target("training, QCFS, compiled, augmented", "ReLU, eager", 1.15), *TARGETS),
}


def verdict(arch: str, figure: dict[str, Any]) -> str:
    """The target of a figure and whether it was reached."""
    for target in TARGETS_BY_NET.get(arch, TARGETS):
        if figure["name"].startswith(target.name) and figure["limit"].startswith(target.limit):
            break
    else:
        return ""
    if not target.ratio:
        return ""
    reached = figure["ratio"] <= target.ratio if target.at_most else figure["ratio"] >= target.ratio
    # 0.977 would be shown as 0.98.
    close = not reached and f"{figure['ratio']:.2f}" == f"{target.ratio:.2f}"
    outcome = "reached" if reached else f"**missed** ({figure['ratio']:.3f})" if close else "**missed**"
    return f"{'at most' if target.at_most else 'at least'} {target.ratio:g}: {outcome}"


def is_growth(figure: dict[str, Any]) -> bool:
    """Whether a figure shows how cost grows."""
    name = figure["name"]
    return name.startswith(("T = ", "width ")) or name.endswith((" images", " layers"))


def is_part(figure: dict[str, Any]) -> bool:
    """Whether a figure shows where time is spent."""
    return bool(figure["name"].startswith(PART))


def spread(figure: dict[str, Any]) -> str:
    """The smallest and largest ratio of a pair."""
    ratios = [ours / theirs for ours, theirs in zip(figure["ours"], figure["theirs"], strict=True)]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def section(
    heading: str, figures: Sequence[dict[str, Any]], belongs: Callable[[dict[str, Any]], bool]
) -> Iterator[str]:
    """Makes a table of the figures that belong to it; no lines if none does."""
    chosen = [figure for figure in figures if belongs(figure)]
    if chosen:
        yield ""
        yield heading
        yield "|---|---|---|---|"
    for figure in chosen:
        name = figure["name"].removeprefix(PART)
        yield f"| {name} | {figure['limit']} | {figure['ratio']:.2f} | {spread(figure)} |"


def table(folder: Path) -> Iterator[str]:
    """Markdown lines: for each measurement, its ratios, then its growth."""
    for number, measured in enumerate(pages.measurements(folder)):
        machine = measured["environment"]
        if number:
            yield ""
        yield f"## {measured['arch']}, {machine['device']}, {machine['threads']} threads, torch {machine['torch']}"
        yield ""
        yield "| what | against | ratio | of single pairs | target |"
        yield "|---|---|---|---|---|"
        for figure in measured["figures"]:
            if not is_growth(figure) and not is_part(figure):
                cells = (figure["name"], figure["limit"], f"{figure['ratio']:.2f}", spread(figure))
                yield f"| {' | '.join(cells)} | {verdict(measured['arch'], figure)} |"
        yield from section("| time in | share of | share | of single measurements |", measured["figures"], is_part)
        yield from section(
            "| size | rate against | ratio, 1 being linear | of single pairs |", measured["figures"], is_growth
        )


if __name__ == "__main__":
    made = functools.partial(pages.filled, script="performance.py", lines=list(table(pages.MEASUREMENTS)))
    sys.exit(pages.main(__doc__, {pages.HERE / "performance.md": made}))
