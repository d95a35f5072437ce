"""The ImageNet path from the command line to the record, on generated folders; timm's weights as a source net."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests/unit"))
import imagenet_folders as make

from bench.records.record import read_record

SMALL = ("--data", "imagenet", "--data.root", "set", "--data.num_workers", "0", "--T", "1,2", "--logger", "none",
         "--data.partial", "true")  # fmt: skip


@pytest.mark.parametrize("layout", ["folders", "flat"])
def test_both_layouts_give_a_record(bench, layout):
    root = make.train_folders(Path("set"))
    if layout == "folders":
        make.val_folders(root)
    else:
        make.val_flat(root)
        make.kit(root / "ILSVRC2012_devkit_t12/data")
    result = bench("fit", "--method", "qcfs", "--arch", "timm/test_resnet", *SMALL, "--max_epochs", "1",
                   "--data.batch_size", "6", "--model.lambda_init", "1", "--out", "run")  # fmt: skip
    assert result.status == 0, result.err
    record = read_record(Path("run/record.json"))
    assert (record.data.name, record.data.num_classes, record.limited) == ("imagenet", 1000, True)
    assert (record.protocol.num_train_samples, record.protocol.num_eval_samples) == (12, 6)
    # An evaluation reads no training images, nor looks at any.
    next(Path("set/train").rglob("*.JPEG")).write_bytes(b"")
    again = ("evaluate", "--ckpt", "run/model.safetensors", "--T", "1,2", "--logger", "none", "--data.root", "set",
             "--data.num_workers", "0")  # fmt: skip
    result = bench(*again, "--data.check", "full", "--out", "again")
    assert result.status == 0, result.err
    assert "6 test images decoded" in result.out and "train images" not in result.out
    assert read_record(Path("again/record.json")).snn == record.snn


@pytest.fixture
def published(monkeypatch):
    """Weights as timm would fetch them."""
    torch.manual_seed(5)
    state = {
        name: tensor + 0.01 if tensor.is_floating_point() else tensor
        for name, tensor in timm.create_model("regnetx_002").state_dict().items()
    }
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state))
    return state


def test_weights_of_timm_are_a_source_net(bench, published):
    make.val_folders(make.train_folders(Path("set")))
    result = bench(
        "fit",
        "--method",
        "max_norm",
        "--arch",
        "timm/regnetx_002",
        "--ckpt",
        "timm",
        *SMALL,
        "--out",
        "run",
        "--model.calibration_images",
        "12",
    )
    assert result.status == 0, result.err
    record = read_record(Path("run/record.json"))
    assert record.recipe.name == "timm.pycls_in1k" and record.training.epochs == 0
    assert not record.conversion.retrained and record.conversion.source_sha256
    # Images are prepared as these weights were published: 224 / 0.875, bicubic.
    data = record.recipe.config["data"]
    assert (data["eval_resize"], data["eval_interpolation"]) == (256, "bicubic")
    again = bench("evaluate", "--ckpt", "run/model.safetensors", "--T", "1,2", "--logger", "none", "--data.root", "set",
                  "--data.num_workers", "0", "--out", "again")  # fmt: skip
    assert again.status == 0, again.err
    assert read_record(Path("again/record.json")).ann == record.ann


def test_no_image_validates_weights_of_timm_that_may_have_seen_it(bench, published):
    make.val_folders(make.train_folders(Path("set")))
    command = ("fit", "--method", "max_norm", "--arch", "timm/regnetx_002", "--ckpt", "timm", *SMALL)
    result = bench(*command, "--data.val_split", "4", "--data.eval_split", "val", "--out", "run")
    assert result.status == 2 and "held out 0" in result.err and len(result.err.strip().splitlines()) == 1, result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "cos", "--arch", "timm/regnetx_002", "--ckpt", "timm"), ["qcfs", "relu nets only"]),
        (("--method", "qcfs", "--arch", "timm/regnetx_002", "--ckpt", "timm"), ["trains its own net"]),
        (("--method", "snm", "--arch", "cifar_resnet34", "--ckpt", "timm"), ["not a net of timm"]),
        (("--method", "snm", "--arch", "timm/regnetx_002", "--ckpt", "timm/resnet34.a1_in1k"), ["regnetx_002"]),
        (("--method", "snm", "--arch", "timm/regnetx_002", "--ckpt", "timm/regnetx_002.nope"), ["nope"]),
        (("--method", "snm", "--arch", "timm/resnet34", "--ckpt", "timm/resnet34.nope"), ["nope"]),
        (("--method", "snm", "--arch", "timm/test_resnet", "--ckpt", "timm"), ["another mean"]),
        (("--method", "qcfs", "--arch", "resnet34"), ["cifar_resnet34", "timm/resnet34"]),
        (("--method", "qcfs"), ["cifar_resnet20"]),
    ],
    ids=lambda value: " ".join(value[1::2]) if isinstance(value, tuple) else "",
)
def test_weights_that_do_not_fit_are_refused(bench, arguments, words):
    result = bench("fit", *SMALL, *arguments)
    assert result.status == 2
    assert len(result.err.strip().splitlines()) == 1 and not [w for w in words if w not in result.err], result.err


def test_weights_without_a_network_are_one_line(bench, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    result = bench("fit", "--method", "snm", "--arch", "timm/regnetx_002", "--ckpt", "timm", *SMALL)
    assert result.status == 2 and "HF_HOME" in result.err and len(result.err.strip().splitlines()) == 1, result.err
