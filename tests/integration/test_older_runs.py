"""What an older commit wrote is filed, evaluated and resumed: one epoch of QCFS on digits, and the first of two."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.records.record import read_record

OLDER = Path(__file__).resolve().parents[1] / "data" / "older"
TRAINING = ("fit", "--method", "qcfs", "--data", "digits", "--max_epochs", "2", "--T", "1,2,4", "--logger", "none")


def test_a_record_is_filed(bench):
    reported = str(OLDER.parents[2] / "leaderboards/reported")
    Path("results").mkdir()
    folders = ("--results", "results", "--out", "board", "--reported", reported)
    result = bench("leaderboard", *folders, "--add", str(OLDER / "record.json"))
    assert result.status == 0, result.err
    (filed,) = Path("results").rglob("*.json")
    assert read_record(filed) == read_record(OLDER / "record.json")


def test_weights_are_evaluated_to_the_same_numbers(bench):
    result = bench("evaluate", "--ckpt", str(OLDER / "model.safetensors"), "--T", "1,2,4", "--out", "run")
    assert result.status == 0, result.err
    before, after = (read_record(path) for path in (OLDER / "record.json", Path("run/record.json")))
    assert (after.ann, after.snn, after.checkpoint) == (before.ann, before.snn, before.checkpoint)
    assert (after.recipe, after.protocol, after.arch, after.data) == (
        before.recipe, before.protocol, before.arch, before.data,
    )  # fmt: skip


def test_a_training_is_resumed(bench):
    Path("run/checkpoints").mkdir(parents=True)
    shutil.copy(OLDER / "last.ckpt", "run/checkpoints")
    result = bench(*TRAINING, "--out", "run", "--ckpt", "last")
    assert result.status == 0, result.err
    assert "epoch 2/2" in result.out and "epoch 1/2" not in result.out
    record = read_record(Path("run/record.json"))
    assert record.training.epochs == 2
    assert record.ann.top1 > read_record(OLDER / "record.json").ann.top1
