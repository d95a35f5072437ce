"""Trainings that begin from a trained net, through the real command line: what is recorded, resumed and refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from conftest import timeless

from bench.leaderboard.consistency import contradictions
from bench.leaderboard.load import reasons
from bench.records.record import Code, part, read_record
from bench.run import training
from bench.run.checkpoints import read
from bench.run.resolve import parse_fit

RUN = ("--arch", "resnet20", "--data", "digits", "--subset", "64", "--T", "1,2", "--logger", "none", "--model.T", "1")
ONE = ("--max_epochs", "1")


@pytest.fixture
def source(trained) -> Path:
    return Path(shutil.copytree(trained, "source")) / "model.safetensors"


def test_tunes_the_conversion_of_a_net(bench, source):
    run = ("fit", "--method", "dsr", *RUN, "--max_epochs", "2", "--ckpt", str(source), "--model.lr", "0")
    assert bench(*run, "--data.batch_size", "64", "--out", "run").status == 0
    record, origin = read_record(Path("run/record.json")), read_record(Path("source/record.json"))
    assert record.conversion.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert record.conversion.retrained and record.conversion.causal
    assert part(record.recipe.config, "source")["method"] == "qcfs"
    assert record.training.epochs == 2
    assert not list(contradictions(record))
    assert not [reason for reason in reasons(record) if "epochs" in reason], "its own number is the planned one"
    assert record.arch == origin.arch
    ours, theirs = (read(path).state["net.conv1.weight"] for path in (Path("run/model.safetensors"), source))
    assert torch.equal(ours, theirs), "with a learning rate of 0 it stays what it began from"
    again = bench("evaluate", "--ckpt", "run/model.safetensors", "--T", "1,2", "--out", "again", "--logger", "none")
    assert again.status == 0, again.err
    assert read_record(Path("again/record.json")).snn == record.snn
    assert read_record(Path("again/record.json")).conversion == record.conversion
    assert bench("diagnose", "--ckpt", "run/model.safetensors", "--T", "2", "--images", "20").status == 0


def test_an_interrupted_tuning_goes_on(bench, source):
    """The checkpoint knows the net that it began from; a folder that holds the run is not begun anew in silence."""
    run = ("fit", "--method", "surrogate", *RUN, "--model.lr", "0.01")
    assert bench(*run, "--max_epochs", "2", "--ckpt", str(source), "--out", "whole").status == 0
    shutil.copytree("whole", "stopped")
    for name in ("record.json", "model.safetensors"):
        (Path("stopped") / name).unlink()
    shutil.copy("whole/checkpoints/previous.ckpt", "stopped/checkpoints/last.ckpt")
    refused = bench(*run, "--max_epochs", "2", "--ckpt", str(source), "--out", "stopped")
    assert refused.status == 2 and "already holds a run" in refused.err
    result = bench(*run, "--max_epochs", "2", "--ckpt", "last", "--out", "stopped")
    assert result.status == 0, result.err
    assert timeless(Path("stopped/record.json")) == timeless(Path("whole/record.json"))


def test_a_tuning_without_out_says_where_to_go_on(bench, source):
    run = ("fit", "--method", "surrogate", *RUN, *ONE)
    assert bench(*run, "--ckpt", str(source)).status == 0
    (folder,) = {path.parent for path in Path("runs").rglob("record.json")}
    again = bench(*run, "--ckpt", str(source))
    assert again.status == 2 and f"continue with --ckpt last --out {folder}," in again.err
    lost = bench(*run, "--ckpt", "last")
    assert lost.status == 2 and "to continue a tuning, give its folder with --out" in lost.err
    assert bench(*run, "--ckpt", "last", "--out", str(folder)).status == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ()),
        ({"epochs": 1}, ("limited",)),
        ({"limited": True}, ("limited",)),
        ({"code": Code(commit="0" * 40, dirty=True)}, ("training.code.dirty",)),
    ],
)
def test_what_bars_a_net_from_the_board_bars_its_tuning(bench, source, monkeypatch, change, words):
    monkeypatch.setattr(training, "code_state", lambda: Code(commit="1" * 40, dirty=False))
    weights = read(source)
    recipe = weights.header.recipe
    whole = recipe.model_copy(update={"config": {**recipe.config, "data": {**recipe.part("data"), "subset": None}}})
    clean = {"limited": False, "recipe": whole, "code": Code(commit="1" * 40, dirty=False)}
    weights = weights._replace(header=weights.header.model_copy(update={**clean, **change}))
    spec = parse_fit(["--method", "dsr", "--arch", "resnet20", "--data", "digits", "--ckpt", str(source)])
    header = training.header_of(spec, weights)
    assert header.trained_on_part == ("limited" in words)
    assert header.code.dirty == ("training.code.dirty" in words)
    assert training.header_of(spec).trained_on_part is False


def test_a_tuning_of_an_imported_net_stays_one_of_weights_of_others(bench, source):
    """Also after a stop; and a record that the suite writes does not contradict itself."""
    state = {name: value for name, value in read(source).state.items() if name.startswith("net.")}
    torch.save({name.removeprefix("net."): value for name, value in state.items()}, "theirs.pth")
    own = ("--method", "qcfs", "--model.L", "4", "--arch", "resnet20", "--data", "digits")
    assert bench("import", "theirs.pth", *own, "--images", "20", "--out", "net").status == 0
    sha256 = hashlib.sha256(Path("theirs.pth").read_bytes()).hexdigest()
    run = ("fit", "--method", "dsr", *RUN, "--model.lr", "0.01")
    assert bench(*run, "--max_epochs", "2", "--ckpt", "net/model.safetensors", "--out", "run").status == 0
    for name in ("record.json", "model.safetensors"):
        (Path("run") / name).unlink()
    shutil.move("run/checkpoints/previous.ckpt", "run/checkpoints/last.ckpt")
    assert bench(*run, "--max_epochs", "2", "--ckpt", "last", "--out", "run").status == 0
    record = read_record(Path("run/record.json"))
    assert record.training.imported is not None and record.training.imported.sha256 == sha256
    assert record.protocol.checkpoint_selection == "unknown"
    assert not list(contradictions(record))


def test_a_tuning_does_not_replace_the_run_that_it_begins_from(bench, trained):
    shutil.copytree(trained, "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*.*") if path.is_file()}
    own = ("--ckpt", "run/checkpoints/last.ckpt", "--out", "run", "--overwrite")
    result = bench("fit", "--method", "dsr", *RUN, *ONE, *own)
    assert result.status == 2 and "holds the net that the training begins from" in result.err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tandem", "--ckpt", "SOURCE"), ("has method qcfs", "tandem needs method relu")),
        (("dsr", "--ckpt", "SOURCE", "--seed", "1"), ("has seed 0", "dsr needs seed 1")),
        (("dsr", "--ckpt", "SOURCE", "--arch", "resnet18"), ("has arch cifar_resnet20",)),
        (("dsr", "--ckpt", "SOURCE", "--data.std", "[1, 1, 1]"), ("--data.std '[0.376, 0.376, 0.376]'",)),
        (("dsr", "--ckpt", "absent.safetensors"), ("no such file",)),
        (("lasnn", "--ckpt", "SOURCE", "--model.ann_epochs", "1"), ("--model.ann_epochs 1", "give 0")),
        (("lasnn", "--model.ann_epochs", "0"), ("--ckpt", "--model.ann_epochs N")),
        (("tandem", "--model.ann_epochs", "1", *ONE), ("--model.ann_epochs 1", "leaves none")),
        (("tandem", "--model.ann_epochs", "1", "--model.patience", "3"), ("--model.patience 3: has no effect",)),
        (("surrogate", "--model.T", "0"), ("--model.T 0: must be at least 1",)),
        (("snn2ann", "--model.T", "-1"), ("--model.T -1: must be at least 1",)),
        (("surrogate", "--model.alpha", "-1"), ("--model.alpha -1",)),
        (("ttfs", "--model.v_init", "-1", "--model.source", "qcfs", "--ckpt", "SOURCE"), ("--model.v_init -1",)),
        (("bitplane", "--ckpt", "SOURCE", "--T", "1,9"), ("T = 9", "give T from 1 to 8")),
        (("ttfs", "--ckpt", "SOURCE"), ("has method qcfs", "ttfs needs method relu")),
    ],
)
def test_bad_input_is_one_line(bench, source, arguments, words):
    method, *rest = (str(source) if word == "SOURCE" else word for word in arguments)
    common = RUN[:-2] if method in ("ttfs", "bitplane") else RUN
    result = bench("fit", "--method", method, *common, *rest, "--out", "run")
    assert result.status == 2
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert all(word in result.err for word in words), result.err
    if "leaves none" in words:  # of its epochs, which the Trainer knows
        assert not list(Path("run").glob("[!.]*")), "but its lock"
    else:
        assert not Path("run").exists()
