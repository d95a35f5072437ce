"""Recipes: whose name says what their settings are, and whose header tells what they cost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.leaderboard.reported import load_reported
from bench.recipes import all_recipes, find_recipe
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS

ROOT = Path(__file__).parents[2]
RECIPES = list(all_recipes())
# As a recipe is looked for, and as the net is called in rows.
NETS = {
    **{name: f"cifar_{name}" for name in ("resnet18", "resnet20", "resnet34", "vgg16")},
    **{f"timm/{name}": name for name in ("resnet18", "resnet34", "vgg16_bn")},
}


def printed() -> set[tuple[str, str, str]]:
    """Method, data set and net of every row that the method's own paper prints."""
    return {
        (row.same_as.method, row.dataset, row.same_as.arch)
        for paper in load_reported(ROOT / "leaderboards/reported")
        for row in paper.rows
        if row.same_as.method and row.same_as.arch and paper.key == METHODS[row.same_as.method].paper
    }


def test_a_recipe_is_the_paper_s_for_the_nets_that_the_paper_has() -> None:
    """Of the methods that train; the others are recorded under the name of their source's recipe."""
    rows = printed()
    papers = {
        (method, data, name)
        for method, entry in METHODS.items()
        for data in DATA
        for net, name in NETS.items()
        if entry.source is None and find_recipe("", method, data, net).name == "paper"
    }
    assert papers == {row for row in rows if row[0] in ("qcfs", "nq")}  # other papers' settings are not known in full


@pytest.mark.parametrize("path", [path for _, _, path in RECIPES], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_header_tells_command_cost_and_number(path: Path) -> None:
    match = re.match(r"(?:#.*\n)+", path.read_text())
    assert match
    header = match.group()
    found = dict(re.findall(r"^# (command|cost|expect): +((?:.*\n)(?:#  .*\n)*)", header, re.MULTILINE))
    assert list(found) == ["command", "cost", "expect"]
    assert re.search(r"\d (?:h|hours|minutes|seconds)\b|not (?:measured|recorded)", found["cost"]), found["cost"]
