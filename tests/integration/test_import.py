"""``bench import``: others' weights become a checkpoint that every command takes, or one line says why not."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT
from torch import nn

from bench.imports import accuracy
from bench.imports.accuracy import USUAL, Normalisation, best_normalisation
from bench.nets import architectures
from bench.records.header import Header
from bench.records.record import read_record
from bench.run import checkpoints
from bench.run.build import Trained, load
from bench.run.checkpoints import Weights
from datamodules.digits import DigitsDataModule
from methods.base import ConversionModule

MEAN, STD = [0.2, 0.3, 0.4], [0.5, 0.4, 0.3]
NORMALISED = ("--mean", *map(str, MEAN), "--std", *map(str, STD))
QCFS = ("--method", "qcfs", "--arch", "resnet20", "--data", "digits", "--model.L", "8", "--images", "20")


@pytest.fixture(autouse=True)
def _few_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets with random weights are looked at more closely, which takes seconds for 1,000 images."""
    monkeypatch.setattr(accuracy, "TRAINING_IMAGES", 10)


def activations(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, nn.ReLU)]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return architectures.create("cifar_resnet20", 10)


@pytest.fixture
def theirs(net: nn.Module) -> Path:
    """A QCFS net under torchvision's names, as a training loop saves it."""
    state = {
        name.replace("stages.2", "layer3").replace("stages.1", "layer2").replace("stages.0", "layer1"): value
        for name, value in net.state_dict().items()
    }
    for index, name in enumerate(activations(net)):
        for stage in (2, 1, 0):
            name = name.replace(f"stages.{stage}", f"layer{stage + 1}")
        state[f"{name}.thresh"] = torch.tensor([1 + index / 10])
    torch.save({"net": state, "acc": 0.5}, "theirs.pth")
    return Path("theirs.pth")


def refused(result, *words: str) -> None:
    lines = result.err.strip().splitlines()
    assert result.status == 2 and len(lines) == 1, result.err
    assert not [word for word in words if word not in lines[0]], lines[0]
    assert not list(Path().glob("**/model.safetensors"))


def test_an_imported_net_is_converted_and_recorded(bench, net, theirs):
    result = bench(
        *("import", str(theirs), *QCFS, *NORMALISED, "--expect", "10", "--repository", "somebody/nets"),
        *("--commit", "abc123", "--licence", "MIT", "--out", "net"),
    )
    assert result.status == 0, result.err
    assert "of 20 test images (stated: 10.00 %)" in result.out
    header = checkpoints.read(Path("net/model.safetensors")).header
    assert header.epochs == 0 and header.imported is not None
    assert header.imported.model_dump() == {
        **{"file": "theirs.pth", "sha256": hashlib.sha256(theirs.read_bytes()).hexdigest(), "commit": "abc123"},
        **{"repository": "somebody/nets", "licence": "MIT", "stated_top1": 0.1},
    }
    ckpt, some = ("--ckpt", "net/model.safetensors"), ("--logger", "none", "--T", "1,2")
    for command in (
        ("fit", "--method", "cos", "--arch", "resnet20", "--data", "digits", *ckpt, "--seed", "3", "--subset", "20",
         "--model.rho", "1", "--out", "cos", *some),
        ("evaluate", "--ckpt", "cos/model.safetensors", "--out", "again", *some),
    ):  # fmt: skip
        result = bench(*command)
        assert result.status == 0, result.err
    record, again = (read_record(Path(folder) / "record.json") for folder in ("cos", "again"))
    assert record.training.imported == again.training.imported == header.imported
    assert (record.protocol.checkpoint_selection, record.protocol.num_train_samples) == ("unknown", None)
    source = record.recipe.config["source"]
    assert isinstance(source, dict) and source["imported"] == header.imported.sha256
    assert (record.seed, again.seed, record.snn) == (3, 3, again.snn)
    # Whoever converts it normalises as it was trained, not as the data set's own nets are.
    data = source["data"]
    assert isinstance(data, dict) and (data["mean"], data["std"]) == (MEAN, STD)
    plain = DigitsDataModule(subset=20)
    images = plain.split("test").images / 255
    normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    converted = load(Path("cos/model.safetensors"), {})
    shown = torch.cat([x for x, _ in converted.datamodule.first_evaluated(20)])
    assert torch.allclose(shown, normalised, atol=1e-5)
    with torch.no_grad():
        expected = qcfs_forward(net, normalised, [1 + index / 10 for index in range(19)], 8)
        assert torch.allclose(converted.model.eval()(shown), expected, atol=1e-3)


@pytest.mark.slow
def test_an_imported_net_is_diagnosed_and_exported(bench, theirs):
    assert bench("import", str(theirs), *QCFS, "--licence", "MIT", "--out", "net").status == 0
    ckpt = ("--ckpt", "net/model.safetensors")
    for command in (
        ("diagnose", *ckpt, "--T", "2", "--images", "10"),
        ("export", *ckpt, "--format", "onnx", "--T", "2", "--images", "10"),
        ("evaluate", *ckpt, "--logger", "none", "--T", "1", "--out", "record"),
        ("export", *ckpt, "--format", "safetensors", "--record", "record/record.json", "--out", "hub", "--T", "1",
         "--images", "10"),
    ):  # fmt: skip
        result = bench(*command)
        assert result.status == 0, result.err
    card = Path("hub/README.md").read_text()
    assert "others have trained" in card and "theirs.pth" in card and "licence MIT" in card


def qcfs_forward(net: nn.Module, images: torch.Tensor, thresholds: list[float], L: int) -> torch.Tensor:
    """The net with QCFS's formula in the place of each ReLU."""
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _, x, __, theta=theta: theta * (torch.floor(x[0] * L / theta + 0.5) / L).clamp(0, 1)
        )
        for name, theta in zip(activations(net), thresholds, strict=True)
    ]
    logits: torch.Tensor = net.eval()(images)
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("softplus", [False, True])
def test_thresholds_of_channels(bench, net, softplus):
    """Clipped at ceilings of their own, and fired at thresholds of their own."""
    state = dict(net.state_dict())
    for name in activations(net):
        channels = state[name.replace("act", "bn") + ".weight"].numel()
        state[f"{name}.up"] = torch.linspace(-1 if softplus else 0.5, 2, channels)
    torch.save(state, "theirs.pth")
    given = ("import", "theirs.pth", "--method", "tcl", "--arch", "resnet20", "--data", "digits", "--images", "10")
    if softplus:
        refused(bench(*given, "--out", "net"), "act1", "positive", "--thresholds softplus")
    result = bench(*given, "--out", "net", *(["--thresholds", "softplus"] * softplus))
    assert result.status == 0, result.err
    trained = load(Path("net/model.safetensors"), {})
    snn = trained.model.eval().convert(1, [], (3, 32, 32))
    expected = torch.linspace(-1, 2, 16).exp().log1p() if softplus else torch.linspace(0.5, 2, 16)
    assert torch.allclose(snn.net.get_submodule("act1").threshold, expected.view(16, 1, 1))
    ceiling = trained.model.net.act1(torch.full((1, 16, 2, 2), 9.0))
    assert torch.allclose(ceiling, expected.view(16, 1, 1).expand(1, 16, 2, 2))


def test_a_dry_run_prints_the_mapping_and_writes_nothing(bench, theirs):
    result = bench("import", str(theirs), *QCFS, "--dry-run")
    assert result.status == 0, result.err
    assert any(line.split() == ["layer2.0.act1.thresh", "[1]", "stages.1.0.act1.threshold"] for line in
               result.out.splitlines())  # fmt: skip
    assert [path.name for path in Path().iterdir()] == ["theirs.pth"]


def test_options_of_the_method_may_come_before_the_file(bench, theirs):
    result = bench("import", "--model.region", "floor_first", *QCFS, str(theirs), "--dry-run")
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ("", ("--model.L", "8", "--arch", "resnet32"), ["the file lacks stages.0.3", "fits --arch cifar_resnet20"]),
        ("half", (), ["the file lacks", "and", "more"]),
        ("mixed", (), ["begin with module."]),
        ("no thresholds", (), ["has no threshold for act1", "--method relu"]),
        ("negative", (), ["threshold of act1 is -1", "positive"]),
        ("classes", (), ["has 100 classes"]),
        ("NaN", (), ["fc.bias", "NaN"]),
        ("sparse", (), ["fc.weight is quantised, complex, sparse"]),
        ("complex", (), ["fc.weight is quantised, complex, sparse"]),
        ("whole numbers", (), ["the file lacks", "fc.weight"]),
        ("", ("--method", "rnl"), ["--method rnl", "choose from qcfs"]),
        ("", ("--method", "qfcs"), ["did you mean qcfs"]),
        ("", ("--model.LL", "4"), ["--model.LL"]),
        ("", ("--nonsense",), ["--nonsense"]),
        ("", ("--image", "5"), ["arguments: --image 5 (did you mean --images?)"]),
        ("", ("--mean", "0.5", "0.5", "0.5"), ["--mean and --std"]),
        ("", ("--mean", "0.5", "--std", "0.5"), ["--mean 0.5", "3 finite numbers"]),
        ("", ("--mean", "0", "0", "0", "--std", "1", "1", "0"), ["--std 1.0 1.0 0.0", "above 0"]),
        ("", ("--expect", "101"), ["--expect 101"]),
        ("", ("--licence", "x" * 2001), ["not valid in a record", "licence"]),
    ],
)  # fmt: skip
def test_wrong_calls(bench, theirs, change, options, words):
    content = torch.load(theirs, weights_only=True)["net"]
    names = list(content)
    if change == "half":
        content = {name: content[name] for name in names[::2]}
    elif change == "mixed":
        content = {f"module.{name}" if name < "fc" else name: value for name, value in content.items()}
    elif change == "no thresholds":
        content = {name: value for name, value in content.items() if "thresh" not in name}
    elif change == "negative":
        content["act1.thresh"] *= -1
    elif change == "classes":
        content |= {"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}
    elif change == "NaN":
        content["fc.bias"][3] = float("nan")
    elif change == "sparse":
        content["fc.weight"] = content["fc.weight"].to_sparse()
    elif change == "complex":
        content["fc.weight"] = content["fc.weight"].to(torch.complex64)
    elif change == "whole numbers":
        content["fc.weight"] = content["fc.weight"].to(torch.int8)
    torch.save(content, theirs)
    refused(bench("import", str(theirs), *QCFS, "--out", "net", *options), *words)


def test_numbers_beside_the_weights_are_no_thresholds(bench, theirs):
    content = torch.load(theirs, weights_only=True)["net"]
    torch.save(content | {"epoch": torch.tensor(300), "act1.L": torch.tensor(8)}, theirs)
    assert bench("import", str(theirs), *QCFS, "--out", "net").status == 0


def test_a_net_with_activations_inside_its_norms_is_imported(bench):
    net = timm.create_model("repvgg_a0", num_classes=10)
    torch.save(net.state_dict(), "a.pth")
    common = ("--method", "relu", "--arch", "timm/repvgg_a0", "--data", "digits")
    result = bench("import", "a.pth", *common, "--dry-run")
    assert result.status == 0, result.err


def test_what_is_there_is_not_replaced(bench, theirs):
    Path("net").mkdir()
    Path("net/model.safetensors").write_bytes(b"mine")
    result = bench("import", str(theirs), *QCFS, "--out", "net")
    assert result.status == 2 and "--overwrite" in result.err
    assert Path("net/model.safetensors").read_bytes() == b"mine"
    assert bench("import", str(theirs), *QCFS, "--out", "net", "--overwrite").status == 0
    again = ("evaluate", "--ckpt", "net/model.safetensors", "--out", "again", "--T", "1", "--logger", "none")
    assert bench(*again).status == 0
    Path("again/record.json").unlink()  # as if it had been stopped
    assert bench(*again).status == 0
    changed = torch.load(theirs, weights_only=True)["net"]
    changed["fc.bias"] += 0.01
    torch.save(changed, "changed.pth")
    assert bench("import", "changed.pth", *QCFS, "--out", "other").status == 0
    imported, source = Path("net/model.safetensors").read_bytes(), ("--ckpt", "other/model.safetensors", "--out", "net")
    common = ("--T", "1", "--logger", "none")
    for command in (("evaluate",), ("fit", "--method", "cos", "--arch", "resnet20", "--data", "digits")):
        result = bench(*command, *source, *common)
        assert result.status == 2 and "--out net: holds a net" in result.err
    assert Path("net/model.safetensors").read_bytes() == imported
    Path("net/record.json").write_text("{}")
    result = bench("import", str(theirs), *QCFS, "--out", "net", "--overwrite")
    assert result.status == 2 and "holds a run" in result.err


def test_thresholds_have_no_place_in_a_relu_net(bench, theirs):
    given = ("--method", "relu", *QCFS[2:6], "--out", "net")
    refused(bench("import", str(theirs), *given), "layer1.0.act1.thresh", "the method has none", "--method qcfs or tcl")


def test_the_steps_of_a_quantised_net_must_be_said(bench, theirs):
    without = [word for word in QCFS if word not in ("--model.L", "8")]
    refused(bench("import", str(theirs), *without, "--out", "net"), "--model.L is missing")


class Oracle(ConversionModule):
    """Right about images that are normalised in one way, and wrong about all others."""

    def __init__(self, data: DigitsDataModule, normalisation: Normalisation) -> None:
        super().__init__(nn.Linear(1, 1))
        part = data.split("train")
        self.known = dict(zip(map(self.key, part.images.float()), part.labels.tolist(), strict=True))
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in normalisation)

    def key(self, image: torch.Tensor) -> bytes:
        return image.round().to(torch.int64).numpy().tobytes()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raw = (x * self.std + self.mean) * 255
        answers = [self.known.get(self.key(image), 0) for image in raw]
        return nn.functional.one_hot(torch.tensor(answers), 10).float()


def test_the_normalisation_that_a_net_was_trained_with_is_found():
    data = DigitsDataModule(mean=MEAN, std=STD)
    header = Header.model_construct()
    for right in (USUAL[3], Normalisation(tuple(MEAN), tuple(STD)), Normalisation((0.305,) * 3, (0.376,) * 3)):
        best, top1 = best_normalisation(Trained(Oracle(data, right), data, header))
        assert (best, top1) == (right, 1.0)


def test_a_net_at_chance_is_imported_with_a_warning(bench, theirs):
    result = bench("import", str(theirs), *QCFS, "--out", "net")
    assert result.status == 0 and "the best usual normalisation on training images" in result.err


def test_weights_are_the_same_whatever_the_file(theirs, bench):
    """The checkpoint's bytes follow from the file and the options, so that anybody repeats a row from its hash."""
    for out in ("one", "two"):
        assert bench("import", str(theirs), *QCFS, "--out", out).status == 0
    one, two = (checkpoints.read(Path(out) / "model.safetensors") for out in ("one", "two"))
    assert Weights.sha256(one) == Weights.sha256(two)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_net_of_one_s_own_is_trained_imported_converted_and_diagnosed(bench):
    """What the page says, word for word."""
    page = (ROOT / "docs/bring_your_own.md").read_text()
    example = page.partition("<!-- begin: example -->")[2].partition("<!-- end: example -->")[0]
    [source] = re.findall(r"^```python\n(.*?)^```$", example, re.MULTILINE | re.DOTALL)
    [commands] = re.findall(r"^```bash\n(.*?)^```$", example, re.MULTILINE | re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(source, "bring_your_own.md", "exec"), {})
    for line in commands.splitlines():
        result = bench(*shlex.split(line)[3:])
        assert result.status == 0, result.err
        assert "normalisation" not in result.err, "a warning: normalisation or mapping is wrong"
    records = {name: read_record(Path(f"runs/{name}/record.json")) for name in ("max", "robust", "opi", "snm")}
    assert len({record.ann.top1 for record in records.values()}) == 1
    assert records["opi"].ann.top1 > 0.6
    assert max(record.snn[1].top1 for record in records.values()) > 0.2
    assert Path("runs/opi/diagnose/diagnosis.json").exists()
