"""Methods that convert a trained net: the same checkpoint, named by its hash, and refusals."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from bench.records import read_record

CONVERT = ("--arch", "resnet20", "--data", "digits", "--subset", "64", "--T", "1,2,4", "--logger", "none")


@pytest.fixture
def source(trained) -> Path:
    return Path(shutil.copytree(trained, "source")) / "model.safetensors"


@pytest.mark.parametrize(("method", "option", "warmup"), [("cos", "rho", 3), ("srp", "tau", 2)])
def test_converts_a_checkpoint_without_training_it(bench, source, method, option, warmup):
    result = bench("fit", "--method", method, *CONVERT, f"--model.{option}", str(warmup), "--ckpt", str(source),
                   "--out", "run")  # fmt: skip
    assert result.status == 0, result.err
    record, origin = read_record(Path("run/record.json")), read_record(Path("source/record.json"))
    assert record.conversion.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert record.conversion.source_sha256 == origin.checkpoint.sha256
    assert not record.conversion.retrained
    assert record.ann == origin.ann
    assert {point.warmup for point in record.snn} == {warmup}
    assert record.snn != origin.snn
    assert record.training == origin.training.model_copy(update={"seconds": None})
    assert f"model.{option}={warmup}" in record.recipe.overrides
    again = bench("evaluate", "--ckpt", "run/model.safetensors", "--T", "1,2,4", "--out", "again", "--logger", "none")
    assert again.status == 0, again.err
    assert read_record(Path("again/record.json")).snn == record.snn


def test_without_a_checkpoint_the_source_is_trained_once(bench):
    arguments = [*CONVERT, "--method", "cos"]
    result = bench("fit", *arguments, "--out", "first")
    assert result.status == 0, result.err
    assert "training one first" in result.out
    result = bench("fit", *arguments, "--method", "srp", "--out", "second")
    assert result.status == 0, result.err
    assert "training one first" not in result.out
    one, two = (read_record(Path(folder) / "record.json") for folder in ("first", "second"))
    assert one.conversion.source_sha256 == two.conversion.source_sha256


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--arch", "resnet18"), "arch cifar_resnet20"),
        (("--seed", "5"), "seed 0"),
        (("--ckpt", "last"), "does not train"),
        (("--ckpt", "cos/model.safetensors"), "method cos"),
        (("--model.rho", "0"), "--model.rho 0"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(bench, source, change, words):
    arguments = ["fit", "--method", "cos", *CONVERT, "--ckpt", str(source)]
    assert bench(*arguments, "--out", "cos").status == 0
    result = bench(*arguments, "--out", "run", *change)
    assert result.status == 2
    assert words in result.err
    assert len(result.err.strip().splitlines()) == 1
