"""The committed data: every record and every file of printed numbers is sound, and the generated pages are fresh."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import pytest

from bench.leaderboard import run
from bench.leaderboard.load import load
from bench.leaderboard.reported import Paper, load_reported, read_paper
from bench.records.record import read_record
from bench.registry.methods import METHODS
from bench.registry.nets import ARCHITECTURES
from bench.sweep.plan import Planner
from bench.sweep.sweep_file import read_sweep

ROOT = Path(__file__).parents[2]
LEADERBOARDS = ROOT / "leaderboards"
REPORTED = LEADERBOARDS / "reported"


@pytest.fixture(scope="module")
def papers() -> tuple[Paper, ...]:
    return load_reported(REPORTED)


def test_every_record_is_sound_and_in_its_place() -> None:
    filed, added = load(LEADERBOARDS / "results")
    assert not added
    assert len(filed) == len(list((LEADERBOARDS / "results").rglob("*.json")))


def test_generated_pages_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    status = run(LEADERBOARDS / "results", REPORTED, LEADERBOARDS, True, False, [])
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(REPORTED.glob("*.yaml")), ids=lambda path: path.name)
def test_every_reported_file_is_sound(path: Path) -> None:
    paper = read_paper(path)
    rows = [row.model_dump_json(exclude={"note", "also"}) for row in paper.rows]
    assert len(rows) == len(set(rows)), "a row stands twice"
    names = {(row.method, row.same_as.method) for row in paper.rows}
    assert len(names) == len({method for method, _ in names}), "one method, two names"
    for row in paper.rows:
        steps = [int(T.rstrip("+")) for T in row.top1]
        assert steps == sorted(steps), f"{row.method} {row.arch}: T in order"
        assert row.same_as.method in {None, *METHODS}
        if row.same_as.arch in ARCHITECTURES:
            assert row.arch == ARCHITECTURES[row.same_as.arch].title
    text = path.read_text()
    assert text == "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def test_every_reported_file_is_as_it_was_reviewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import reviewed

    monkeypatch.setattr(sys, "argv", ["reviewed.py", "--check"])
    assert reviewed.main(REPORTED) == 0, capsys.readouterr().out
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("x")
    (tmp_path / "CHECKSUMS").write_text(reviewed.reviewed(tmp_path, "2026-01-01")[0])
    (tmp_path / "a.yaml").write_text("y")
    (tmp_path / "b.yaml").rename(tmp_path / "c.yaml")
    assert reviewed.main(tmp_path) == 1
    text, changed = reviewed.reviewed(tmp_path, "2026-02-02")
    assert changed == ["a.yaml", "b.yaml", "c.yaml"]
    assert [line.split()[1:] for line in text.splitlines()] == [["2026-02-02", "a.yaml"], ["2026-02-02", "c.yaml"]]


def test_every_committed_checkpoint_is_named_by_a_record() -> None:
    """By the SHA-256 of its bytes, so that a row says which weights it is of."""
    named = {read_record(path).checkpoint.sha256 for path in (LEADERBOARDS / "results").rglob("*.json")}
    for file in (LEADERBOARDS / "checkpoints").iterdir():
        assert file.suffix == ".safetensors"
        assert hashlib.sha256(file.read_bytes()).hexdigest() in named, file.name


@pytest.mark.parametrize("file", sorted((LEADERBOARDS / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_sweeps_train_every_net_once_and_for_as_many_epochs_as_they_say(file: Path) -> None:
    sweep = read_sweep(file)
    few = sweep.model_copy(update={"archs": sweep.archs[:1], "seeds": sweep.seeds[:1]})  # planning takes time
    jobs = Planner(few, Path("runs")).plan()
    trained = [job.spec for job in jobs if job.trains]
    assert jobs
    if file.name.startswith("weights_of_others_"):
        assert not trained
    if stated := re.search(r"_(\d+)_epochs", file.name):
        assert {spec.trainer["max_epochs"] for spec in trained} == {int(stated[1])}
    assert len({(spec.seed, spec.sha256) for spec in trained}) == len(trained)
    for spec in (job.spec for job in jobs if not job.trains and job.spec.local.ckpt):
        # Nets of others are not committed, but their paths say what nets they are.
        kind = "qcfs" if "qcfs" in str(spec.local.ckpt) else "relu"
        assert METHODS[spec.method].source_for(spec.model) == kind, spec.method
