"""``python -m bench diagnose`` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY

from bench.records.record import read_record
from bench.snn.diagnosis import KINDS, VIEWS


@pytest.fixture
def run(trained):
    return Path(shutil.copytree(trained, "run"))


def test_files_tables_and_the_accuracies_of_the_record(bench, run):
    result = bench("diagnose", "--ckpt", "run/model.safetensors", "--T", "1,4", "--images", "64")
    assert result.status == 0, result.err
    found = json.loads(Path("run/diagnose/diagnosis.json").read_text())
    record = read_record(run / "record.json")
    assert found["checkpoint"] == record.checkpoint.sha256
    points = {point.T: point for point in record.snn}
    for diagnosis in found["diagnoses"]:
        point = points[diagnosis["T"]]
        assert diagnosis["top1"] == pytest.approx(
            {"ann": record.ann.top1, "quantised": point.quantised_top1, "snn": point.top1}
        )
        assert {layer["name"]: pytest.approx(layer["firing_rate"]) for layer in diagnosis["layers"]} == (
            point.layer_firing_rates
        )
        for layer in diagnosis["layers"]:
            assert set(layer) > set(VIEWS)
            assert set(layer["same_input"]) == set(KINDS)
    assert "T = 1, 64 images: ANN" in result.out
    assert "layer4" in result.out or "blocks" in result.out or "stage" in result.out
    for name in ("errors", "offsets", "membranes"):
        assert Path(f"run/diagnose/{name}.svg").read_bytes().startswith(b"<?xml")
    again = bench("diagnose", "--ckpt", "run/model.safetensors")
    assert again.status == 2
    assert "--overwrite" in again.err


def test_json_alone_on_the_terminal_and_fewer_images(bench, run):
    result = bench("diagnose", "--ckpt", "run/checkpoints/last.ckpt", "--T", "2", "--images", "7", "--json",
                   "--out", "why")  # fmt: skip
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert found == json.loads(Path("why/diagnosis.json").read_text())
    assert found["diagnoses"][0]["images"] == 7


@pytest.mark.slow
def test_a_method_that_converts_for_one_T_and_one_with_calibration(bench, run):
    assert bench("fit", "--method", "relu", *TINY[2:], "--out", "relu").status == 0
    for method in ("snnc_lp", "snm"):
        done = bench("fit", "--method", method, *TINY[2:8], "--T", "2,4", "--logger", "none", "--ckpt",
                     "relu/model.safetensors", "--out", method)  # fmt: skip
        assert done.status == 0, done.err
        result = bench("diagnose", "--ckpt", f"{method}/model.safetensors", "--T", "2,4", "--images", "64", "--json")
        assert result.status == 0, result.err
        record = read_record(Path(method) / "record.json")
        snn = [diagnosis["top1"]["snn"] for diagnosis in json.loads(result.out)["diagnoses"]]
        assert snn == pytest.approx([point.top1 for point in record.snn])


def test_wandb_gets_table_and_pictures(bench, run):
    result = bench("diagnose", "--ckpt", "run/model.safetensors", "--T", "2", "--images", "10", "--wandb")
    assert result.status == 0, result.err
    files = [path.name for path in Path("run/diagnose/wandb").rglob("*") if path.is_file()]
    assert sum(name.endswith(".table.json") for name in files) == 1
    assert sum(name.endswith(".png") for name in files) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ckpt", "absent.ckpt"), "no such file"),
        (("--ckpt", "run/model.safetensors", "--T", "0"), "--T 0"),
        (("--ckpt", "run/model.safetensors", "--images", "0"), "--images: 0: must be"),
        (("--ckpt", "run/model.safetensors", "--out", "/dev/null/why"), "cannot be written"),
        (("--ckpt", "run/model.safetensors", "--image", "1"), "did you mean --images"),
        (("--ckpt", "run/model.safetensors", "--data.check", "slow"), "--data.check: invalid choice: 'slow'"),
        (("--ckpt", "run/model.safetensors", "--data.check", "none"), "argument 'check'"),  # digits are no files
    ],
)
def test_bad_input_is_one_line(bench, run, arguments, words):
    result = bench("diagnose", *arguments)
    assert result.status == 2
    assert words in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not list(Path(".").rglob("diagnosis.json"))
