"""The tables of docs/scale.md, docs/performance.md and of the notes follow from what was measured."""

from __future__ import annotations

import hashlib
import importlib
import json
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.leaderboard.aggregate import Statistic
from bench.registry.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")


@pytest.fixture
def scale():
    return importlib.import_module("scale")


@pytest.fixture
def performance():
    return importlib.import_module("performance")


def figure(name: str, limit: str, *ours: float) -> dict[str, object]:
    return {"name": name, "limit": limit, "unit": "", "ours": ours, "theirs": [1.0] * len(ours), "ratio": ours[0]}


def measurement(arch: str = "cifar_resnet20") -> dict[str, object]:
    figures = [
        figure("training, QCFS, compiled", "ReLU, compiled", 9000.0),
        figure("training, QCFS, compiled, augmented, 0 workers", "ready batches", 900.0, 1000.0, 1100.0),
        figure("training, QCFS, compiled, augmented, 2 workers", "ready batches", 2000.0),
        figure("SNN, T = 1..32, step loop", "eager ANN", 100.0),
        figure("SNN, T = 1..32", "eager ANN", 8000.0),
        figure("SNN, T = 1..32, bf16 (4 % changed)", "eager ANN", 16000.0),
        figure("layers alone", "eager ANN", 90000.0),
    ]
    return {"arch": arch, "environment": {"device": "a GPU", "threads": 2, "torch": "2.11"}, "figures": figures}


@pytest.mark.parametrize("name", ["scale", "performance"])
def test_the_page_is_fresh(name):
    script, pages = importlib.import_module(name), importlib.import_module("pages")
    page = (ROOT / f"docs/{name}.md").read_text()
    assert page == pages.filled(page, f"{name}.py", script.table(ROOT / "docs/speed"))


@pytest.mark.parametrize(
    ("name", "limit", "ratio", "arch", "expected"),
    [
        ("SNN, T = 1..32", "eager ANN, best batch", 1.0, "cifar_resnet20", "at least 1.15: **missed**"),
        ("SNN, T = 1..32", "step loop", 1.81, "cifar_resnet20", "at least 1.8: reached"),
        ("SNN, T = 1..32, bf16 (4 %)", "eager ANN", 1.7, "cifar_resnet20", "at least 1.6: reached"),
        ("SNN, T = 1..32, step loop", "eager ANN", 0.6, "cifar_resnet20", ""),
        ("memory, SNN, batch 100, T = 8", "ANN, batch 100", 4.1, "cifar_resnet20", "at most 4: **missed**"),
        ("training, QCFS, compiled, augmented", "ReLU, eager", 1.2, "cifar_resnet20", "at least 1.5: **missed**"),
        ("training, QCFS, compiled, augmented", "ReLU, eager", 1.2, "cifar_resnet18", "at least 1.15: reached"),
        ("training, NQ, compiled", "ReLU, compiled", 0.98, "cifar_resnet18", "at least 0.98: reached"),
    ],
)  # fmt: skip
def test_targets(performance, name, limit, ratio, arch, expected):
    assert performance.verdict(arch, figure(name, limit, ratio)) == expected


def test_the_formula(scale, tmp_path):
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


def test_files_of_one_net_on_one_machine_make_one_row(scale, performance, tmp_path):
    whole = measurement()
    for number, part in enumerate((whole["figures"][:3], whole["figures"][3:])):
        (tmp_path / f"{number}.json").write_text(json.dumps({**whole, "figures": part}))
    elsewhere = {**whole, "environment": {**whole["environment"], "threads": 3}}
    (tmp_path / "9.json").write_text(json.dumps(elsewhere))
    assert sum("| a GPU, 2 threads |" in line for line in scale.table(tmp_path)) == 1
    headings = [line for line in performance.table(tmp_path) if line.startswith("###")]
    assert [line.split(", ")[2] for line in headings] == ["2 threads", "3 threads"]


def test_growth_and_parts_have_tables_of_their_own(performance, tmp_path):
    names = ["SNN, T = 1..32", "T = 128", "25 images", "14 layers", "width 64", "time, eager ANN: the rest"]
    content = {**measurement(), "figures": [figure(name, "limit", 0.5) for name in names]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    _, first, parts, growth = "\n".join(performance.table(tmp_path)).split("\n\n|")
    assert "| SNN, T = 1..32 | limit | 0.50 | 0.50 to 0.50 | |" in first.replace("  |", " |")
    assert "| eager ANN: the rest | limit | 0.50 |" in parts and parts.count("\n") == 2
    assert [line.split(" | ")[0] for line in growth.splitlines()[2:]] == [f"| {name}" for name in names[1:5]]


def test_it_counts_the_methods_there_are(scale):
    trained = [name for name, entry in METHODS.items() if entry.source is None]
    per_T = [name for name, entry in METHODS.items() if entry.per_T]
    assert (len(trained), len(per_T), len(METHODS) - len(per_T)) == (scale.TRAINED, scale.PER_T, scale.ONE_PASS)


def test_without_measurements_nothing_is_invented(scale, tmp_path):
    assert all("not measured" in line for line in list(scale.table(tmp_path))[2:])


def test_notes_get_their_numbers_from_the_rows_and_lose_no_word(tmp_path):
    """Cells, checksums and quoted counts are filled in, whatever stood there; everything else stays."""
    notes = importlib.import_module("notes")
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    cells = [SimpleNamespace(T=1, top1=Statistic(1, Decimal("50.18"), None))]
    row = SimpleNamespace(ann=Statistic(1, Decimal("83.59"), None), cells=cells, seeds=(0,))
    page = ["Against the papers: 1 of 2.", "Against others: 3 of 4."]
    table = "| row | T = 1 | T = 2 | ANN |\n|---|---|---|---|\n| `qcfs/quick` | {} | | |\n"
    files = "| file | SHA-256 |\n|---|---|\n| `a.safetensors` | {} |\n"
    text = "# A title | with a bar\n> Against the papers: 0 of 0.\n\n> A quotation: not the page's.\n\n{}\nwords\n{}"
    old = text.format(table.format("9.99"), files.format(""))
    new = "\n".join(notes.filled(old, {"qcfs/quick": row}, page, tmp_path)) + "\n"
    right = table.replace("{} | | |", "50.18 |  | 83.59 |"), files.format(hashlib.sha256(b"weights").hexdigest())
    assert new == text.format(*right).replace("0 of 0", "1 of 2")
    with pytest.raises(KeyError, match="nq/quick"):
        list(notes.filled(old.replace("qcfs/", "nq/"), {"qcfs/quick": row}, page, tmp_path))
