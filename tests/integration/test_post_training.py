"""Methods that convert a trained net: the same checkpoint, named by its hash, and refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from bench.records.record import read_record
from bench.run.resolve import parse_fit, with_source

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
    # Fewer steps than COS calibrates on: what a longer run has seen so far.
    again = bench("evaluate", "--ckpt", "run/model.safetensors", "--T", "1,2", "--out", "again", "--logger", "none")
    assert again.status == 0, again.err
    assert read_record(Path("again/record.json")).snn == record.snn[:2]


def test_what_the_source_net_was_trained_on_is_not_forgotten(bench, source):
    """Its 64 images make the conversion a trial, although that is evaluated on the whole test set."""
    whole = [item for item in CONVERT if item not in ("--subset", "64")]
    convert = ("fit", "--method", "cos", *whole, "--model.rho", "1", "--ckpt", str(source))
    assert bench(*convert, "--T", "1", "--out", "run").status == 0
    assert bench("evaluate", "--ckpt", "run/model.safetensors", "--T", "1", "--out", "again").status == 0
    for folder in ("run", "again"):
        record = read_record(Path(folder) / "record.json")
        assert (record.protocol.num_train_samples, record.protocol.num_eval_samples) == (64, 360)
        assert record.limited


@pytest.mark.parametrize(
    ("method", "file", "hint"),
    [
        ("ttfs", "model.safetensors", "give --model.source qcfs"),
        ("tandem", "model.safetensors", "needs method relu"),
        ("srp", "absent.safetensors", "no such file"),
        ("srp", ".", "is a folder"),
    ],
)
def test_a_sweep_that_cannot_use_its_net_begins_no_run(bench, source, method, file, hint):
    nets = {"cos": source, method: source.parent / file}
    methods = [{"name": name, "options": {"ckpt": str(net)}} for name, net in nets.items()]
    Path("sweep.yaml").write_text(json.dumps({"methods": methods, "archs": ["resnet20"], "data": ["digits"]}))
    result = bench("sweep", "sweep.yaml")
    assert result.status == 2 and len(result.err.splitlines()) == 1, result.err
    assert f"{method} cifar_resnet20 digits" in result.err and hint in result.err and not Path("runs").exists()


def test_images_that_a_net_was_trained_on_do_not_validate_it(bench, source):
    result = bench("fit", "--method", "cos", *CONVERT, "--ckpt", str(source), "--data.val_split", "200",
                   "--data.eval_split", "val", "--out", "run")  # fmt: skip
    assert result.status == 2 and "held out 0" in result.err and "--data.val_split 200" in result.err


def test_a_source_that_is_trained_first_is_trained_as_asked():
    """On the same images, by the same accelerator, with the same held-out part."""
    asked = ["--method", "cos", "--data", "digits", "--data.val_split", "200", "--data.eval_split", "val", "--compile",
             "--trainer.accelerator", "cpu", "--data.num_workers", "2"]  # fmt: skip
    net = with_source(parse_fit(asked)).net
    assert net.method == "qcfs" and net.data_options["val_split"] == 200 and net.local.data["num_workers"] == 2
    assert net.local.trainer["accelerator"] == "cpu" and net.local.compile


def test_settings_in_a_file_of_one_s_own_are_changes_of_a_conversion(bench, source):
    """They stand in the row's name, and those of a training are refused."""
    Path("mine.yaml").write_text("name: mine\nmodel: {rho: 3}\n")
    convert = ("fit", "--method", "cos", *CONVERT, "--ckpt", str(source), "--recipe", "mine.yaml", "--out", "run")
    assert bench(*convert).status == 0
    changes = ["data.subset=64", "model.rho=3", "trainer.max_epochs=2"]
    assert read_record(Path("run/record.json")).recipe.overrides == changes
    Path("mine.yaml").write_text("name: mine\ntrainer: {max_epochs: 5}\n")
    result = bench(*convert, "--overwrite")
    assert result.status == 2 and "--trainer.max_epochs: cos does not train" in result.err


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
    ("method", "change", "words"),
    [
        ("cos", ("--model.rho", "0"), "--model.rho 0"),
        ("opi", ("--model.percentile", "-7"), "-7"),
        ("opi", ("--model.calibration_images", "5000"), "--model.calibration_images 5000"),
        ("cos", ("--snn.permute", "true"), "--snn.permute true"),
        ("dcgs", ("--snn.permute", "true"), "--snn.permute true"),
        ("ttfs", ("--snn.delay", "3"), "--snn.delay 3"),
        ("bitplane", ("--T", "1,40"), "T = 40"),
        ("cos", ("--out", "full"), "already holds a record"),
    ],
)
def test_what_a_conversion_refuses_is_refused_before_its_source_is_trained(bench, method, change, words):
    Path("full").mkdir()
    Path("full/record.json").touch()
    result = bench("fit", "--method", method, "--data", "digits", "--logger", "none", *change)
    assert result.status == 2 and words in result.err and len(result.err.splitlines()) == 1, result.err
    assert not Path("runs").exists(), "nothing was trained"


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
    if words == "method cos":
        assert bench(*arguments, "--out", "cos").status == 0
    result = bench(*arguments, "--out", "run", *change)
    assert result.status == 2
    assert words in result.err
    assert len(result.err.strip().splitlines()) == 1
