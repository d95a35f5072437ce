"""``bench compare``: every difference is named, nothing else is, and bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from record_factory import file_record, make_record, point

from bench.cli import main as cli
from bench.compare import curves, differences, other_measurements


def test_only_what_differs_is_named() -> None:
    a = make_record(0, config={"model": {"L": 4, "lr": 0.1}, "data": {"batch_size": 128}})
    b = make_record(
        1,
        config={"model": {"L": 8}, "data": {"batch_size": 128}},
        code__commit="c" * 40,
        environment__torch="3",
        run__started="2026-01-01T00:00:00+00:00",
    )
    found = differences(a, b)
    assert found["config"] == {"model.L": (4, 8), "model.lr": (0.1, "(absent)")}
    assert found["what"] == {"method.options.L": (4, 8), "method.options.lr": (0.1, "(absent)"), "seed": (0, 1)}
    assert found["code"] == {"commit": ("b" * 40, "c" * 40)}
    assert found["environment"] == {"torch": ("2", "3")}
    assert set(found) == {"what", "config", "code", "environment", "checkpoint"}
    assert differences(a, a) == {}
    # Values that Python calls equal are still told apart.
    a, b = (make_record(config={"x": value}) for value in (1, True))
    assert differences(a, b)["config"] == {"x": (1, True)}


def test_the_curve_has_every_T_of_either() -> None:
    a = make_record(0, [point(2, 0.70), point(4, 0.8123)])
    b = make_record(0, [point(4, 0.8121, warmup=4), point(8, 0.90, warmup=4)], ann__top1=0.92)
    lines = [[None if v is None else float(v) for v in line.values()] for line in curves(a, b)]
    assert lines == [
        [None, None, None, 91.77, 92.0, 0.23],
        [2, 0, None, 70.0, None, None],
        [4, 0, 4, 81.23, 81.21, -0.02],
        [8, None, 4, None, 90.0, None],
    ]


def test_a_cost_that_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though nothing else does, and not at a T that only one has."""
    a, b = make_record(0, [point(2, 0.7), point(4, 0.8)]), make_record(0, [point(4, 0.8, synops=5.0)])
    assert other_measurements(a, b) == ["synops"]
    assert other_measurements(a, a) == []
    for name, record, words in (("a", a, "only the time"), ("b", b, "that differ: synops")):
        record.write(tmp_path / name / "record.json")
        a.write(tmp_path / "first/record.json")
        assert cli.main(["compare", str(tmp_path / "first"), str(tmp_path / name)]) == 0
        assert words in capsys.readouterr().out


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for seed in range(2):
        file_record(folder, make_record(seed))
    make_record(5, config={"model": {"note": "[red]x[/red]\x1b[2J\n<b>"}}).write(tmp_path / "run" / "record.json")
    return folder


def compare(*arguments: str) -> int:
    return cli.main(["compare", *arguments])


def test_by_key_folder_and_path(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "run" / "record.json")
    assert compare("qcfs/paper-seed0", str(tmp_path / "run"), "--results", str(results), "--json") == 0
    by_folder = json.loads(capsys.readouterr().out)
    assert compare("paper-seed0", path, "--results", str(results), "--json") == 0
    assert json.loads(capsys.readouterr().out) == by_folder
    assert by_folder["different"]["what"]["seed"] == [0, 5]
    assert by_folder["curve"][0] == {
        "T": None,
        "warmup_a": None,
        "warmup_b": None,
        "a": 91.77,
        "b": 91.77,
        "difference": 0,
    }


def test_the_table_is_plain_text(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("paper-seed1", str(tmp_path / "run"), "--results", str(results)) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]x[/red]" in out
    for word in ("config", "model.L", "seed", "ANN", "91.77", "0.00"):
        assert word in out


def test_bad_input_is_one_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {"nothing-like-it": "no record of that name", "x" * 5000: "no record of that name"}
    reasons |= {"paper-seed": "several records", "": "several records", "a\x00b": "no record of that name"}
    reasons |= {"none.json": "not a readable record", "a\x00b.json": "not a readable record"}
    for name, reason in reasons.items():
        assert compare("paper-seed0", name, "--results", str(results)) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and reason in err, name


def test_an_absent_folder_is_refused_though_nothing_is_looked_up_in_it(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert compare(run, run, "--results", str(tmp_path / "resluts")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--results" in line and "folder not found" in line
    assert compare(run, run, "--results", str(results)) == 0


def test_a_hostile_record_is_one_line(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.json"
    for text in ("[" * 100_000, "{}", '{"a": NaN}', '{"a": 1, "a": 2}', " " * 10_000_000):
        bad.write_text(text)
        assert compare(str(bad), "paper-seed0", "--results", str(results)) == 2
        assert capsys.readouterr().err.count("\n") == 1
