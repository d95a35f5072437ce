"""The table of docs/scale.md follows from the measurements beside it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("scale", ROOT / "docs/scale.py")
assert spec and spec.loader
scale = importlib.util.module_from_spec(spec)
sys.modules["scale"] = scale
spec.loader.exec_module(scale)


def measurement(arch: str = "cifar_resnet20") -> dict[str, object]:
    figures = [
        {
            "name": "training, QCFS, eager",
            "unit": "images/s",
            "ours": [900.0, 1000.0, 1100.0],
            "theirs": [],
            "limit": "",
        },
        {"name": "training, QCFS, compiled", "unit": "images/s", "ours": [2000.0], "theirs": [], "limit": ""},
        {"name": "SNN, T = 1..32, step loop", "unit": "image-steps/s", "ours": [100.0], "theirs": [], "limit": ""},
        {"name": "SNN, T = 1..32", "unit": "image-steps/s", "ours": [8000.0], "theirs": [], "limit": ""},
    ]
    return {"arch": arch, "environment": {"device": "a GPU"}, "figures": figures}


def test_the_page_is_fresh():
    page = (ROOT / "docs/scale.md").read_text()
    assert page == scale.filled(page, ROOT / "docs/speed")


def test_the_formula(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(measurement()))
    part = scale.Part("cifar_resnet20", "", 2, 50_000, 10_000, 300)
    whole, longest = scale.seconds(part, scale.rates(measurement()))
    training, one_pass, per_T = 300 * 50_000 / 2000, 10_000 * 32 / 8000, 10_000 * 63 / 8000
    assert whole == pytest.approx(6 * (7 * training + 13 * one_pass + 3 * per_T))
    assert longest == pytest.approx(training + one_pass)
    lines = list(scale.table(tmp_path))
    [row] = [line for line in lines if "a GPU" in line]
    assert row.endswith(f"| {whole / 3600:,.1f} h | {whole / 8 / 3600:,.1f} h | {longest / 3600:,.1f} h |")
    assert sum("not measured" in line for line in lines) == 3


def test_it_counts_the_methods_there_are():
    trained = [name for name, entry in METHODS.items() if entry.source is None]
    per_T = [name for name, entry in METHODS.items() if entry.per_T]
    assert (len(trained), len(per_T), len(METHODS) - len(per_T)) == (scale.TRAINED, scale.PER_T, scale.ONE_PASS)


def test_without_measurements_nothing_is_invented(tmp_path):
    assert all("not measured" in line for line in list(scale.table(tmp_path))[2:])
