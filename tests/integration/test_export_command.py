"""``python -m bench export``: files that answer as the net they came from, on 1,000 images, and refusals."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, sha256

from bench.cli.main import main
from bench.nets import architectures
from bench.records.record import read_record
from bench.registry.methods import METHODS
from bench.run import checkpoints
from bench.snn.simulate import SpikingNetwork, simulate
from datamodules.digits import DigitsDataModule

for package in ("onnx", "onnxscript", "onnxruntime", "nir", "huggingface_hub"):
    pytest.importorskip(package)

T = 2


@pytest.fixture
def run(trained):
    return Path(shutil.copytree(trained, "run"))


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for kind in ("safetensors", "onnx", "nir"):
        words = ["export", "--ckpt", str(trained / "model.safetensors"), "--format", kind, "--T", str(T)]
        assert main([*words, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def thousand() -> torch.Tensor:
    """Training digits: more than the test set has."""
    return torch.cat([images for images, _ in DigitsDataModule().calibration_dataloader(1000)])


def answers(snn: SpikingNetwork, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([logits_TBK.sum(0).argmax(1) for logits_TBK, _ in simulate(snn, images, T)])


def committed(weights: checkpoints.Weights) -> SpikingNetwork:
    """The committed CIFAR-10 net, without its data."""
    header = weights.header
    net = architectures.create(header.arch, 10)
    model = METHODS[header.method].load()(net, **header.recipe.part("model"))
    model.load_state_dict(weights.state)
    with torch.no_grad():
        return model.eval().convert(T, [])


@pytest.mark.slow
def test_each_format_answers_1000_images_as_the_trained_net_does(thousand, tmp_path):
    """The nets of these tests' runs have learnt too little to give more than one answer."""
    from bench.export.nir_format import to_nir
    from bench.export.nir_reader import from_nir
    from bench.export.onnx_format import predict, to_onnx

    weights = checkpoints.read(ROOT / "leaderboards/checkpoints/cifar10-resnet20-qcfs-paper-seed0.safetensors")
    snn = committed(weights)
    # Of one colour each: the net gives nearly all digits in black and white the same answer.
    colours = 1.5 * torch.randn(len(thousand), 3, 1, 1, generator=torch.Generator().manual_seed(0))
    thousand = thousand * colours
    expected = answers(snn, thousand)
    assert len(expected) == 1000
    assert expected.bincount().topk(3).values.min() > 20
    (tmp_path / "again.safetensors").write_bytes(weights.to_safetensors())
    again = {
        "safetensors": answers(committed(checkpoints.read(tmp_path / "again.safetensors")), thousand),
        "onnx": predict(to_onnx(snn, thousand[:1], T), list(thousand.split(250))).argmax(1),
        "nir": answers(from_nir(to_nir(snn, thousand[:1], {})), thousand),
    }
    same = {name: int((found == expected).sum()) for name, found in again.items()}
    # Weights as they were: the very same. Folded thresholds and other sums: but for a near tie or two.
    assert same["safetensors"] == 1000
    assert min(same.values()) >= 998, same


def test_the_exported_weights_are_the_records(trained, exported):
    record = read_record(trained / "record.json")
    assert sha256(exported / "model.safetensors") == record.checkpoint.sha256
    assert read_record(exported / "record.json") == record
    card = (exported / "README.md").read_text()
    assert card.startswith("---\n")
    assert f"{100 * record.snn[0].top1:.2f}" in card
    assert "a trial, not a result" in card


def test_the_card_s_command_repeats_the_record(bench, exported):
    shutil.copytree(exported, "hub")
    [words] = [line.split()[3:] for line in Path("hub/README.md").read_text().splitlines() if "bench evaluate" in line]
    words[words.index("model.safetensors")] = "hub/model.safetensors"
    assert bench(*words).status == 0
    assert read_record(Path("again/record.json")).snn == read_record(Path("hub/record.json")).snn


def test_what_is_printed_and_the_last_checkpoint(bench, run):
    result = bench("export", "--ckpt", "run/checkpoints/last.ckpt", "--format", "safetensors", "--record",
                   "run/record.json", "--out", "hub", "--images", "10")  # fmt: skip
    assert result.status == 0, result.err
    assert "answers 10 of 10 images the same at T = 8" in result.out
    assert sha256("hub/model.safetensors") == sha256("run/model.safetensors")


def refused(result, *words: str) -> None:
    assert result.status == 2
    assert len(result.err.strip().splitlines()) == 1
    assert not [word for word in words if word not in result.err], result.err


CKPT = ("--ckpt", "run/model.safetensors", "--images", "5")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ckpt", "absent", "--format", "nir"), ["absent", "no such file"]),
        ((*CKPT, "--format", "tflite"), ["tflite", "onnx"]),
        ((*CKPT, "--format", "onnx", "--T", "0"), ["--T: 0: must be"]),
        ((*CKPT, "--format", "onnx", "--images", "0"), ["--images: 0: must be"]),
        ((*CKPT, "--format", "onnx", "--push", "me/net"), ["--push", "safetensors"]),
        ((*CKPT, "--format", "safetensors", "--out", "run"), ["run", "--out"]),
        ((*CKPT, "--format", "safetensors", "--record", "absent.json"), ["absent.json"]),
        ((*CKPT, "--format", "nir", "--out", "/dev/null/x"), ["cannot be written"]),
        ((*CKPT, "--format", "nir", "--data.check", "slow"), ["--data.check", "slow"]),
        ((*CKPT, "--format", "nir", "--data.check", "none"), ["argument 'check'"]),  # digits are no files
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(bench, run, arguments, words):
    before = sorted(path for path in Path(".").rglob("*") if path.is_file())
    refused(bench("export", *arguments), *words)
    assert sorted(path for path in Path(".").rglob("*") if path.is_file()) == before


@pytest.mark.parametrize(
    ("kind", "package"), [("onnx", "onnxruntime"), ("nir", "nir"), ("safetensors", "huggingface_hub")]
)
def test_a_missing_package_is_named_with_what_installs_it(bench, run, monkeypatch, kind, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    refused(bench("export", *CKPT, "--format", kind), package, "pip install -e '.[export]'")


def test_a_record_of_other_weights_is_refused(bench, run):
    record = json.loads(Path("run/record.json").read_text())
    record["checkpoint"]["sha256"] = "0" * 64
    Path("run/record.json").write_text(json.dumps(record))
    refused(bench("export", *CKPT, "--format", "safetensors"), "other weights")
    assert not Path("run/export/model.safetensors").exists()


def test_a_method_that_nir_cannot_express_is_refused_by_name(bench, run):
    done = bench("fit", "--method", "srp", "--arch", "resnet20", "--data", "digits", "--subset", "64", "--T", "2",
                 "--logger", "none", "--ckpt", "run/model.safetensors", "--out", "srp")  # fmt: skip
    assert done.status == 0, done.err
    result = bench("export", "--ckpt", "srp/model.safetensors", "--format", "nir", "--images", "5")
    refused(result, "SRPNode", "NIR")
    assert not Path("srp/export/snn.nir").exists()


def test_a_network_that_answers_differently_is_not_written(bench, run, monkeypatch):
    from bench.export import nir_reader

    read = nir_reader.from_nir

    def damaged(content: bytes) -> SpikingNetwork:
        snn = read(content)
        *_, last = (module for module in snn.modules() if isinstance(module, torch.nn.Linear))
        last.weight.data.neg_()
        last.bias.data.neg_()
        return snn

    monkeypatch.setattr(nir_reader, "from_nir", damaged)
    result = bench("export", "--ckpt", "run/model.safetensors", "--format", "nir", "--images", "30", "--T", "2")
    refused(result, "answers", "of 30 images differently")
    assert not Path("run/export/snn.nir").exists()


def test_push_uploads_the_three_files_and_a_second_export_is_refused(bench, run, monkeypatch):
    import huggingface_hub

    calls = []

    class Hub:
        def __init__(self, **options):
            pass

        def create_repo(self, repo, **options):
            calls.append((repo, options))
            return type("Repo", (), {"repo_id": f"me/{repo}"})

        def upload_folder(self, **options):
            calls.append(options)
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    words = ("export", *CKPT, "--format", "safetensors", "--T", "1")
    result = bench(*words, "--push", "net")
    assert result.status == 0, result.err
    assert "pushed: https://hub/commit" in result.out
    assert calls[0] == ("net", {"repo_type": "model", "exist_ok": True})
    assert calls[1]["repo_id"] == "me/net"
    assert sorted(calls[1]["allow_patterns"]) == ["README.md", "model.safetensors", "record.json"]
    refused(bench(*words), "already exists", "--overwrite")
    assert bench(*words, "--overwrite").status == 0


def test_push_without_a_network_is_one_line(bench, run, monkeypatch):
    import huggingface_hub

    class Hub:
        def __init__(self, **options):
            pass

        def create_repo(self, repo, **options):
            raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required\nand more lines")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    result = bench("export", *CKPT, "--format", "safetensors", "--T", "1", "--push", "net")
    refused(result, "--push net", "Token is required", "run/export")
