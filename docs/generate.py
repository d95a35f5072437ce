"""Fills README's tables from the registry and the board: ``python docs/generate.py`` (``--check`` writes nothing)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

import pages

from bench.leaderboard.aggregate import aggregate
from bench.leaderboard.load import load
from bench.leaderboard.row import Row, measured
from bench.leaderboard.text import spread
from bench.registry.entries import MethodEntry
from bench.registry.methods import METHODS

ROOT = pages.HERE.parent
# Whose accuracies the README shows, and at which T.
NET, RECIPE, SEEDS = ("cifar10", "cifar_resnet20"), "quick", (0,)
STEPS = (1, 2, 4, 8, 32)
# One net of QCFS and what two methods make of it.
FIRST, FIRST_STEPS = ("qcfs", "srp", "cos"), (1, 2, 4, 8, 16, 32)

Board = Mapping[str, Sequence[Row]]


def quick(rows: Sequence[Row]) -> Board:
    """By method: the experiment whose accuracies are shown."""
    return {
        cells[0].method: cells
        for cells in measured(rows)
        if (cells[0].net[:2], cells[0].recipe, cells[0].seeds) == (NET, RECIPE, SEEDS)
    }


def methods(registry: Mapping[str, MethodEntry], board: Board) -> Iterator[str]:
    """A line for each method: what it is, where it comes from, what it has."""
    head = ["method", "what it changes", "paper", "source net", "T-specific", "warm-up", *(f"T = {T}" for T in STEPS)]
    yield from table(head)
    yes = {True: "yes", False: "no"}
    for name, entry in registry.items():
        paper = f"[{entry.display}]({entry.published.link})" if entry.published.link else entry.display
        source = ", ".join(f"`{source}`" for source in entry.sources) or "trains"
        traits = [f"`{name}`", entry.summary, paper, source, yes[entry.per_T], yes[entry.warmup]]
        yield line([*traits, *accuracies(board.get(name, ()), STEPS)])


def first(board: Board) -> Iterator[str]:
    """A line for each of the first results."""
    yield from table(["method", "ANN", *(f"T = {T}" for T in FIRST_STEPS)])
    for name in FIRST:
        cells = board[name]
        label = f"`{name}`" + (f" (after {cells[0].warmup} steps)" if cells[0].warmup else "")
        yield line([label, spread(cells[0].ann_top1, None), *accuracies(cells, FIRST_STEPS)])


def accuracies(cells: Sequence[Row], steps: Sequence[int]) -> list[str]:
    """Of one experiment, at these T; nothing where it has none."""
    shown = {row.T: row.shown for row in cells}
    return [shown.get(T, "") for T in steps]


def line(cells: Sequence[str]) -> str:
    """One of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str]) -> Iterator[str]:
    """The head of a Markdown table."""
    yield line(head)
    yield "|" + "---|" * len(head)


def readme(text: str) -> str:
    """The README with its tables made anew."""
    board = quick(aggregate(load(ROOT / "leaderboards" / "results")[0], []))
    text = pages.filled(text, "generate.py: first results", first(board))
    return pages.filled(text, "generate.py: methods", methods(METHODS, board))


if __name__ == "__main__":
    sys.exit(pages.main(__doc__, {ROOT / "README.md": readme}))
