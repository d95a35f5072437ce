"""``python -m bench speed``: it measures what it says, and refuses what it cannot."""

from __future__ import annotations

import itertools
import json

import pytest

from bench.cli.commands import SPEED_KINDS
from bench.speed.figures import Figure


def test_a_ratio_is_taken_pair_by_pair():
    """A machine that becomes three times slower in the middle does not change the ratio."""
    slowness = itertools.chain([1, 1, 1, 1, 1, 1], itertools.repeat(3))
    figure = Figure("", "", "").measure(lambda: 80 / next(slowness), lambda: 100 / next(slowness), 5)
    assert figure.ratios == pytest.approx([0.8] * 5)
    assert max(figure.ours) == pytest.approx(3 * min(figure.ours))


@pytest.mark.parametrize("arguments", [("--T", "0"), ("--pairs", "0"), ("--images", "-1"), ("--arch", "resnet21")])
def test_bad_input_is_refused_in_one_line(bench, arguments):
    result = bench("speed", *arguments)
    assert result.status == 2
    assert arguments[1] in result.err and result.err.count("\n") == 1


def test_figures_are_printed_as_a_table_and_as_json(bench, monkeypatch):
    figure = Figure("SNN", "eager ANN", "images a second", [50.0, 60.0], [100.0, 100.0])
    monkeypatch.setattr("bench.speed.command.can_compile", lambda: True)
    monkeypatch.setattr("bench.speed.command.figures_of", lambda *_: [figure])
    table = bench("speed", "--what", "memory")
    assert table.status == 0 and "0.50 to 0.60" in table.out and "0.55" in table.out, table.err
    [row] = json.loads(bench("speed", "--what", "memory", "--json").out)["figures"]
    assert row["name"] == "SNN" and row["ratio"] == pytest.approx(0.55)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", SPEED_KINDS)
def test_every_kind_prints_rates_and_ratios(bench, kind):
    result = bench("speed", "--images", "20", "--pairs", "2", "--T", "8", "--what", kind, "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["arch"] == "cifar_resnet20" and report["figures"]
    for figure in report["figures"]:
        assert len(figure["ours"]) == len(figure["theirs"]) == 2
        assert figure["ratio"] > 0
    if kind == "evaluation":
        ratios = {(figure["name"], figure["limit"][:9]): figure["ratio"] for figure in report["figures"]}
        compiled = ratios["SNN, T = 1..8", "eager ANN"]
        # Far below what is seen on a quiet machine, so that only a real loss fails.
        loop, uncompiled = (ratios[f"SNN, T = 1..8, {kind}", "eager ANN"] for kind in ("step loop", "uncompiled"))
        assert compiled > 1.2 * max(loop, uncompiled)
        assert ratios["SNN, T = 1..8", "step loop"] > 1.2
