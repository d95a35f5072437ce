"""What README and site are made of: which result stands for a method, tables of options, links between pages."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from record_factory import make_record, point

from bench.cli.main import COMMANDS
from bench.leaderboard.aggregate import aggregate
from bench.leaderboard.reported import load_reported
from bench.leaderboard.row import Row
from bench.records.record import Record
from bench.registry.entries import MethodEntry
from bench.registry.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAPERS = load_reported(ROOT / "leaderboards" / "reported")


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generate")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("build_site")


def record(seed: int, top1: float, recipe: str, **changes: Any) -> Record:
    snn = [point(T, top1 + T / 1000) for T in (2, 4, 8, 32)]
    return make_record(seed, snn, recipe__name=recipe, config={"model": {"L": 4}, "of": recipe}, **changes)


def rows(records: Sequence[Record]) -> list[Row]:
    return aggregate(records, PAPERS)


def test_the_papers_recipe_stands_for_a_method_and_else_its_best_result(generate: Any) -> None:
    others = [record(0, 0.90, "quick"), record(0, 0.95, "long")]
    assert generate.best(rows(others), "cifar10")["qcfs"][0].recipe == "long"
    all_of_them = rows([*others, record(0, 0.80, "paper")])
    assert generate.best(all_of_them, "cifar10")["qcfs"][0].recipe == "paper"
    assert generate.best(all_of_them, "cifar100") == {}
    lines = list(generate.which(METHODS, generate.best(all_of_them, "cifar10")))
    [line] = [line for line in lines if "`qcfs`" in line and line.startswith("|")]
    assert line.endswith("| 80.40 | 83.20 | `paper`, L = 4 |")
    assert "`cos`" in lines[-1] and "`qcfs`" not in lines[-1], "those without a result are named"


def test_a_papers_row_is_shown_with_the_command_of_the_result_beside_it(generate: Any) -> None:
    quick = record(0, 0.80, "quick", recipe__overrides=["trainer.max_epochs=16"])
    text = "\n".join(generate.reproduced(rows([quick])))
    command = "python -m bench fit --method qcfs --arch resnet20 --data cifar10"
    assert f"\n{command} --recipe quick --trainer.max_epochs 16\n" in text
    assert "| CIFAR-10, printed in the paper | 91.77 | 73.20 | 83.75 | 89.55 | 91.62 | 92.24 |" in text
    text = "\n".join(generate.reproduced(rows([quick, record(0, 0.70, "paper")])))
    assert f"\n{command}\n" in text and "recipe `paper`" in text and "quick" not in text


def test_the_line_on_where_it_stands_counts_what_matches_a_paper(generate: Any) -> None:
    before = " ".join(generate.status(rows([record(0, 0.8, "quick")])))
    assert "no printed accuracy has been reproduced" in before and "Not run yet: CIFAR-100, ImageNet" in before
    exact = [point(2, 0.732), point(4, 0.8375), point(8, 0.5)]
    after = " ".join(generate.status(rows([make_record(0, exact)])))
    assert "Of 3 accuracies" in after and "2 are within 0.5 points" in after


def test_steps_are_the_fewest_within_a_point_of_the_ann_warm_up_included(generate: Any) -> None:
    snn = [point(T, top1, warmup=4) for T, top1 in ((1, 0.5), (2, 0.908), (4, 0.9))]
    cells = rows([make_record(0, snn, ann__top1=0.9177)])
    assert generate.reached([row for row in cells if row.records]) == "6"
    assert generate.reached([row for row in rows([make_record(0, snn, ann__top1=0.95)]) if row.records]) == "> 8"


def test_the_picture_has_ours_and_the_papers_points_in_one_ink(generate: Any) -> None:
    picture = generate.picture(rows([record(0, 0.8, "quick"), record(0, 0.8, "quick", method__name="srp")]))
    ten, _ = picture.panels
    ours, theirs, srp = ten.series
    assert (ours.label, srp.label) == (METHODS["qcfs"].display, METHODS["srp"].display)
    assert theirs.ink == ours.ink != srp.ink and not theirs.label
    assert dict(theirs.points)[2] == Decimal("73.20") and not theirs.spread


def test_every_option_of_every_command_is_on_the_page(site: Any) -> None:
    page = site.command_line()
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(parts) == list(COMMANDS)
    for command in set(COMMANDS) - {"fit"}:
        options = {name for action in site.parser_of(command)._actions for name in action.option_strings}
        assert [name for name in options - {"-h", "--help"} if f"`{name}`" not in parts[command]] == []
    assert "`--trainer.precision`" in parts["fit"] and "--print_config" in parts["fit"]


def test_a_table_of_options_has_defaults_choices_and_types(site: Any) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--a", type=int, default=3, help="50%% | more.")
    parser.add_argument("--b", choices=["x", "y"], required=True)
    parser.add_argument("file", metavar="FILE", help="read")
    *_, a, b, file = site.options(parser)
    assert a == "| `--a` | `3` | 50% \\| more (integer) |"
    assert b == "| `--b` | required | `x` or `y` |"
    assert file == "| `FILE` |  | read |"
    assert list(site.options(parser, "--model.")) == ["None."]
    union = argparse.Action([], "c", type=Literal["p", "q"] | float | None)  # type: ignore[arg-type]
    assert site.kind_of(union) == "`p` or `q` or number"


def test_links_lead_to_pages_and_never_to_what_the_site_has_not(site: Any, tmp_path: Path) -> None:
    for name in ("recipes.md", "contributing.md", "leaderboards/cifar10.md", "leaderboards/reported/a.yaml", "p.svg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    text = (
        "[a](recipes.md#part) [b](../CONTRIBUTING.md) [c](../bench/files.py) [d](https://x.org/y) [e](#here) "
        "![f](p.svg) [g](../leaderboards/reported/a.yaml)"
    )
    assert site.relinked(text, "here.md", "docs/here.md", tmp_path) == (
        "[a](recipes.md#part) [b](contributing.md) c [d](https://x.org/y) [e](#here) ![f](p.svg) "
        '<a href="leaderboards/reported/a.yaml">g</a>'
    )
    below = site.relinked("[a](../../docs/recipes.md)", "leaderboards/notes/x.md", "leaderboards/notes/x.md", tmp_path)
    assert below == "[a](../../recipes.md)"


def test_a_method_that_is_registered_has_a_page(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = MethodEntry("methods.opi:OPI", "changes it", title="New", paper="bu2022opi", source="relu", per_T=True)
    monkeypatch.setitem(METHODS, "new", entry)
    page = site.method_page("new")
    assert page.startswith("# New\n")
    assert "[New (AAAI 2022)](https://arxiv.org/abs/2202.01440)" in page and "`--model.draw_seed`" in page
    assert "Not run yet." in page and "class OPI(ThresholdRule)" in page
    assert "| [`new`](new.md) | changes it |" in site.method_list()


def test_every_page_leads_to_pages_that_are_there(site: Any, tmp_path: Path) -> None:
    site.write_pages(tmp_path)
    listed = [entry.rpartition("<")[2].rstrip(">") for names in site.CONTENTS.values() for entry in names]
    pages = {path.relative_to(tmp_path).with_suffix("").as_posix() for path in tmp_path.rglob("*.md")}
    assert pages == {"index", *listed, *(f"methods/{name}" for name in METHODS)}
    links = 0
    for path in tmp_path.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)|<a href=\"([^\"#]+)", path.read_text(encoding="utf-8")):
            place = "".join(target)
            if "://" not in place:
                assert (path.parent / place).exists(), f"{path}: {place}"
                links += 1
    assert links > 2 * len(METHODS)
    listed_methods = (tmp_path / "methods/index.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"]({name}.md)" not in listed_methods] == []
