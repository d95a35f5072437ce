"""Bad input gets one line, exit status 2, and leaves nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, sha256

from bench.cli.commands import beside
from bench.errors import UserError
from bench.recipes import FOLDER
from bench.run import checkpoints
from bench.run.resolve import parse_fit

COS = ("fit", "--method", "cos", "--logger", "none")
TAKE_PATHS = (
    *((command, "--ckpt") for command in ("evaluate", "diagnose")), (*COS, "--ckpt"), (*COS, "--config"),
    ("evaluate", "--ckpt", "x", "--out"), ("fit", "--method", "qcfs", "--data", "digits", "--logger", "none", "--out"),
    ("export", "--format", "nir", "--ckpt"), ("sweep",),
    ("leaderboard", "--results"),
    *(("leaderboard", "--results", ".", option) for option in ("--reported", "--wandb-dir", "--add")),
)  # fmt: skip
FIT = ("fit", "--method", "qcfs", "--data", "digits", "--logger", "none", "--subset", "64", "--max_epochs", "1")


def refused(result, *words: str) -> None:
    assert result.status == 2
    lines = result.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    assert not [word for word in words if word not in lines[0]], lines[0]


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("devices auto", "CUDA_VISIBLE_DEVICES"), ("accelerator mps", "choose from auto, cpu"),
        ("strategy ddp_spawn", "choose from auto, single_device, ddp,"), ("accumulate_grad_batches -1", "at least 1"),
        ("gradient_clip_val -1", "above 0"), ("limit_test_batches 0", "a fraction up to 1.0"),
        ("limit_train_batches 0.001", "less than one"), ("limit_test_batches 0.001", "less than one"),
    ],
)  # fmt: skip
def test_what_the_trainer_cannot_do_is_refused_before_the_training(bench, option, advice):
    name, value = option.split()
    refused(bench(*FIT, f"--trainer.{name}", value), f"--trainer.{name} {value}", advice)
    assert not list(Path().rglob("*.ckpt"))


def test_an_evaluation_whose_command_no_record_can_hold_is_refused_at_once(bench, trained):
    steps = ",".join(map(str, range(1, 531)))
    refused(bench("evaluate", "--ckpt", str(trained), "--out", "e", "--T", steps, "--logger", "none"), "argv", "2000")
    assert not Path("e").exists()


def test_help_after_a_wrong_value_is_one_line(bench):
    result = bench("fit", "--method", "qcfs", "--data", "digits", "--model.L", "abc", "--help")
    assert result.status == 2 and len(result.err.splitlines()) == 1 and "--model.L" in result.err, result.err


def test_an_evaluation_on_apple_s_gpu_is_refused(bench, trained):
    refused(
        bench("evaluate", "--ckpt", str(trained), "--logger", "none", "--accelerator", "mps"), "--accelerator", "'mps'"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fti",), ["fti", "fit"]),
        (("fit",), ["--method"]),
        (("fit", "--methd", "qcfs"), ["--methd", "did you mean --method"]),
        (("fit", "--method", "qfcs"), ["qfcs", "did you mean qcfs"]),
        (("fit", "--method"), ["--method", "expected one argument"]),
        ((*FIT, "--arch", "resnt20"), ["resnt20", "did you mean resnet20"]),
        ((*FIT, "--arch", "resnet21"), ["resnet21", "did you mean resnet20"]),
        ((*FIT, "--arch", "timm/resnet10"), ["timm/resnet10", "did you mean resnet10t"]),
        ((*FIT, "--data", "cifar"), ["cifar", "did you mean cifar10"]),
        ((*FIT, "--model.LL", "4"), ["--model.LL", "--model.L"]),
        ((*FIT, "--sed", "4"), ["--sed", "--seed"]),
        ((*FIT, "--max_epoch", "4"), ["--max_epoch", "did you mean --max_epochs"]),
        ((*FIT, "--model.L", "four"), ["--model.L", "must be int", "not four"]),
        ((*FIT, "--trainer.limit_test_batches", "x"), ["--trainer.limit_test_batches", "must be int", "not x"]),
        ((*FIT, "--compile", "maybe"), ["--compile", "must be bool or 'auto', not maybe"]),
        ((*FIT, "--model.L", "0"), ["--model.L 0"]),
        ((*FIT, "--model.lambda_init", "-1"), ["--model.lambda_init"]),
        ((*FIT, "--T", "0"), ["--T 0"]),
        ((*FIT, "--T", "1,two"), ["--T 1,two"]),
        ((*FIT, "--T", "1,1"), ["--T 1,1"]),
        ((*FIT, "--T", ""), ["--T"]),
        ((*FIT, "--seed", "-1"), ["--seed -1"]),
        ((*FIT, "--recipe", "papr"), ["--recipe papr"]),
        ((*FIT, "--recipe", "absent.yaml"), ["absent.yaml", "cannot be read"]),
        ((*FIT, "--config", "absent.yaml"), ["absent.yaml", "cannot be read"]),
        ((*FIT, "--subset", "5000"), ["--subset 5000", "1437"]),
        ((*FIT, "--subset", "0"), ["--subset 0"]),
        ((*FIT, "--data.batch_size", "0"), ["--data.batch_size 0"]),
        ((*FIT, "--data.val_split", "1437"), ["--data.val_split 1437"]),
        ((*FIT, "--max_epochs", "0"), ["max_epochs"]),
        ((*FIT, "--logger", "tensorboard"), ["logger"]),
        ((*FIT, "--out", "/dev/null/run"), ["/dev/null/run", "cannot be written"]),
        ((*FIT, "--ckpt", "last"), ["--ckpt last", "no checkpoint"]),
        ((*FIT, "--ckpt", "absent.ckpt"), ["absent.ckpt", "no such file"]),
        ((*FIT, "--model.lr", "1e30", "--data.batch_size", "16"), ["not finite", "batch "]),
        ((*FIT, "--model.lr", "-0.1"), ["--model.lr -0.1"]),
        ((*FIT, "--model.label_smoothing", "2"), ["--model.label_smoothing 2"]),
        ((*FIT, "--model.L", "1" + "0" * 30), ["--model.L"]),
        ((*FIT, "--trainer.devices", "0"), ["--trainer"]),
        ((*FIT, "--trainer.accelerator", "nonsense"), ["--trainer", "nonsense"]),
        ((*FIT, "--trainer.strategy", "nonsense"), ["--trainer", "nonsense"]),
        ((*FIT, "--trainer.precision", "nonsense"), ["precision"]),
        ((*FIT, "--arch", "timm/resnet18.a1_in1k"), ["timm/resnet18.a1_in1k", "dot"]),
        ((*FIT, "--config", "a.yaml", "--config", "b.yaml"), ["--config", "one file"]),
        ((*FIT, "--config", ""), ["--config"]),
        ((*FIT, "--out", "a\0b"), ["--out"]),
        ((*FIT, "--config", "nested.yaml"), ["nested.yaml"]),
        ((*FIT, "--config", "date.yaml"), ["date.yaml", "model.lr"]),
        ((*FIT, "--config", "null.yaml"), ["null.yaml: model.L: must be int, not null"]),
        ((*FIT, "--recipe", "data.yaml"), ["data.yaml", "data.name"]),
        ((*FIT, "--out", ""), ["--out: is empty"]),
        ((*FIT, "--arch", ""), ["--arch: is empty"]),
        ((*FIT, "--ckpt", "last", "--overwrite", "true"), ["--ckpt last", "--overwrite"]),
        ((*FIT, "--recipe", "my.yaml"), ["--recipe: ", "my recipe"]),
        ((*FIT, "--recipe", "arch.yaml"), ["arch.yaml", "arch"]),
        ((*FIT, "--method", "max_norm"), ["--trainer.max_epochs", "max_norm does not train", "--method relu"]),
        ((*FIT[:-2], "--method", "cos", "--data.batch_size", "9"), ["--data.batch_size", "--method qcfs"]),
        ((*FIT, "--config", "twice.yaml"), ["twice.yaml", "line 1", "model", "twice"]),
        ((*FIT, "--trainer.limit_val_batches", "0"), ["--trainer.limit_val_batches"]),
        (("evaluate",), ["--ckpt"]),
        (("evaluate", "--ckpt", "absent.ckpt"), ["absent.ckpt", "no such file"]),
        (("evaluate", "--ckpt", "."), ["is a folder", "model.safetensors"]),
        (("evaluate", "--ckpt", "absent.ckpt", "--trainer.limit_test_batches", "0"), ["batches: 0: must be"]),
        (("export", "--ckpt", "absent.ckpt", "--format", "onnx", "--T", "4,8"), ["--T", "one whole number"]),
        (("evaluate", "--ckpt", "x", "--Q"), ["--Q"]),
        (("list", "--all"), ["--all"]),
        *(((*words, "n" * 300), ["n" * 50]) for words in TAKE_PATHS),
        (("fit", "--method", "qcfs", "--data.root", "nowhere", "--logger", "none"), ["--data.root", "BENCH_DATA_DIR"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_refused_in_one_line(bench, arguments, words, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    Path("nested.yaml").write_text("a: " + "[" * 3000)
    Path("twice.yaml").write_text("model: {L: 2}\nmodel: {L: 4}")
    Path("date.yaml").write_text("model: {lr: 2020-01-01}")
    Path("null.yaml").write_text("model: {L: null}\ntrainer: {gradient_clip_val: null}")
    Path("data.yaml").write_text("name: own\ndata: {name: cifar10}")
    Path("my.yaml").write_text("name: my recipe\nmodel: {L: 2}")
    Path("arch.yaml").write_text("name: own\narch: vgg16")
    refused(bench(*arguments), *words)
    assert not list(Path().rglob("record.json"))


@pytest.mark.parametrize(
    "option", [("--data.batch_size", "0"), ("--trainer.precision", "16-mixed"), ("--trainer.accelerator", "gpu")]
)
def test_a_refused_fit_leaves_no_folder(bench, option, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(bench(*FIT, *option), option[0].rpartition(".")[2])
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("ckpt", "folder"),
    [("a/model.safetensors", "a/export"), ("a/checkpoints/last.ckpt", "a/export"),
     ("nets/x.safetensors", "runs/export/nets-x")],
)  # fmt: skip
def test_the_default_folder_is_in_the_run_or_under_runs(ckpt, folder):
    assert beside(Path(ckpt), "export") == Path(folder)


def test_a_recipe_of_another_net_is_not_the_paper_s_for_this_one():
    recipes = FOLDER / "qcfs"
    for file, name in (
        ("cifar10_resnet20.yaml", "paper"),
        ("cifar10_vgg16.yaml", "file.paper"),
        ("digits.yaml", "file.digits"),
    ):
        spec = parse_fit(["--method", "qcfs", "--recipe", str(recipes / file)])
        assert spec.recipe == name
    assert parse_fit(["--method", "nq", "--recipe", str(recipes / "cifar10_resnet20.yaml")]).recipe == "file.paper"


@pytest.fixture
def trained(trained) -> Path:
    """A copy of the one run that all tests share."""
    return Path(shutil.copytree(trained, "run")) / "checkpoints/last.ckpt"


def test_a_folder_that_holds_a_run_is_not_overwritten(bench, trained):
    before = trained.read_bytes()
    refused(bench("fit", *TINY, "--out", "run"), "already holds a run", "--ckpt last", "--overwrite")
    assert trained.read_bytes() == before
    assert bench("fit", *TINY, "--out", "run", "--overwrite").status == 0


def test_a_run_begun_anew_and_stopped_at_once_cannot_be_taken_for_the_old_one(bench, trained, monkeypatch):
    def stopped(*_: object) -> None:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("bench.run.training.train", stopped)
        assert bench("fit", *TINY, "--out", "run", "--overwrite").status == 2
    assert not list(Path("run").rglob("*.ckpt")) and not Path("run/record.json").exists()
    refused(bench("fit", *TINY, "--out", "run", "--ckpt", "last"), "no checkpoint")


def test_what_several_machines_have_trained_is_evaluated_by_one(bench, trained):
    content = torch.load(trained, weights_only=True)
    content[checkpoints.HEADER]["recipe"]["config"]["trainer"] |= {"num_nodes": 2, "devices": 8}
    torch.save(content, trained)
    assert bench("evaluate", "--ckpt", str(trained), "--logger", "none", "--out", "one", "--T", "1").status == 0


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "model.safetensors"])
def test_truncated_checkpoints(bench, trained, keep, name):
    file = Path("run") / name
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    refused(bench("evaluate", "--ckpt", str(file), "--logger", "none"), name.split("/")[-1], "damaged")


def test_a_checkpoint_that_would_run_code_is_refused(bench):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (Path("exploded"),))

    torch.save({"state_dict": Bomb()}, "bomb.ckpt")
    refused(bench("evaluate", "--ckpt", "bomb.ckpt", "--logger", "none"), "bomb.ckpt")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe", 5), ("recipe", {}), ("seed", -1), ("seed", "x"), ("method", 5), ("arch", "no_such_net"),
        ("data", []), ("code", {}), ("epochs", "many"), ("version", 99),
        ("recipe", {"name": "a", "overrides": [], "config": {"model": {"Q": 1}, "data": {"name": "digits"}}}),
        ("recipe", {"name": "a", "overrides": [], "config": {"model": {"L": "x"}, "data": {"name": "digits"}}}),
    ],
)  # fmt: skip
def test_a_header_that_lies(bench, trained, key, value):
    content = torch.load(trained, weights_only=True)
    content[checkpoints.HEADER][key] = value
    torch.save(content, trained)
    refused(bench("evaluate", "--ckpt", str(trained), "--logger", "none"))
    refused(bench("fit", *TINY, "--out", "run", "--ckpt", str(trained)))


@pytest.mark.parametrize("part", ["model", "snn"])
def test_a_header_of_a_conversion_that_lies(bench, trained, part):
    cos = ("fit", "--method", "cos", "--data", "digits", "--subset", "20", "--T", "1", "--logger", "none")
    assert bench(*cos, "--ckpt", str(trained), "--out", "cos").status == 0
    weights = checkpoints.read(Path("cos/model.safetensors"))
    recipe = weights.header.recipe
    config = recipe.config | {part: {**recipe.part(part), "bogus": 1}}
    header = weights.header.model_copy(update={"recipe": recipe.model_copy(update={"config": config})})
    Path("lies.safetensors").write_bytes(weights._replace(header=header).to_safetensors())
    refused(bench("evaluate", "--ckpt", "lies.safetensors", "--snn.delay", "0", "--logger", "none"), "bogus")


@pytest.mark.parametrize("change", [{"state_dict": 5}, {"state_dict": {"w": 1}}, {"loops": None}])
def test_a_checkpoint_with_parts_of_the_wrong_kind(bench, trained, change):
    content = torch.load(trained, weights_only=True) | change
    torch.save({key: value for key, value in content.items() if value is not None}, trained)
    refused(bench("evaluate", "--ckpt", str(trained), "--logger", "none"), "damaged")


def test_broken_weights_give_no_record(bench, trained):
    content = torch.load(trained, weights_only=True)
    content["state_dict"]["net.conv1.weight"].fill_(float("nan"))
    torch.save(content, trained)
    refused(bench("evaluate", "--ckpt", str(trained), "--logger", "none", "--out", "nan"), "not all finite")
    assert not Path("nan/record.json").exists()


def test_evaluate_does_not_replace_a_record_in_silence(bench, trained):
    before = Path("run/record.json").read_bytes()
    arguments = ["evaluate", "--ckpt", str(trained), "--logger", "none", "--T", "1", "--out", "run"]
    refused(bench(*arguments), "already exists", "--overwrite")
    assert Path("run/record.json").read_bytes() == before
    assert bench(*arguments, "--overwrite").status == 0


def test_a_checkpoint_from_elsewhere_does_not_replace_a_run(bench, trained):
    assert bench("fit", *TINY, "--seed", "1", "--out", "other").status == 0
    refused(bench("fit", *TINY, "--out", "other", "--ckpt", str(trained)), "already holds a run")


def test_a_foreign_checkpoint(bench):
    torch.save({"state_dict": {"w": torch.zeros(1)}}, "foreign.ckpt")
    refused(bench("evaluate", "--ckpt", "foreign.ckpt", "--logger", "none"), "not a checkpoint of this suite")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--arch", "resnet18"), ["arch cifar_resnet20", "cifar_resnet18"]),
        (("--seed", "3"), ["seed 0", "3"]),
        (("--model.L", "2"), ["other settings", "model.L=2"]),
        (("--max_epochs", "3"), ["other settings", "trainer.max_epochs=3"]),
    ],
)
def test_resuming_with_something_else_is_refused(bench, trained, change, words):
    arguments = ["fit", *TINY, *change, "--out", "other", "--ckpt", str(trained)]
    refused(bench(*arguments), *words)


def test_another_method_s_checkpoint(bench, trained):
    content = torch.load(trained, weights_only=True)
    content[checkpoints.HEADER]["method"] = "other"
    torch.save(content, trained)
    refused(bench("fit", *TINY, "--out", "run", "--ckpt", "last"), "method other")
    refused(bench("evaluate", "--ckpt", str(trained), "--logger", "none"), "other", "choose from")


def test_weights_of_another_net(bench, trained):
    content = torch.load(trained, weights_only=True)
    content["state_dict"].pop("net.fc.weight")
    torch.save(content, trained)
    refused(bench("evaluate", "--ckpt", str(trained), "--logger", "none"), "do not fit")


def test_a_negative_threshold_is_refused_at_conversion(bench, trained):
    content = torch.load(trained, weights_only=True)
    content["state_dict"]["net.stages.1.0.act2.threshold"].fill_(-0.5)
    torch.save(content, trained)
    refused(bench("evaluate", "--ckpt", str(trained), "--logger", "none"), "stages.1.0.act2", "-0.5", "positive")


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(bench, trained):
    whole = sha256("run/model.safetensors")
    trained.write_bytes(b"PK broken")
    result = bench("fit", *TINY, "--out", "run", "--ckpt", "last")
    assert result.status == 0
    assert "previous.ckpt" in result.err
    assert sha256("run/model.safetensors") == whole
