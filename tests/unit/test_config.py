"""Precedence, short forms and refusals of the configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.records.record import differences
from bench.registry.datasets import DATA
from bench.run.options import expand_shorthands
from bench.run.resolve import parse_fit, parse_steps
from bench.yaml_files import UNREADABLE, read_yaml, reason

BASE = ["--method", "qcfs", "--data", "digits"]


def test_defaults_then_recipe_then_config_then_options(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: r\nmodel: {L: 5, lr: 0.5, momentum: 0.5, lambda_percentile: 50}\n")
    config = tmp_path / "config.yaml"
    config.write_text("model: {lr: 0.25, momentum: 0.25, lambda_percentile: null}\n")
    spec = parse_fit([*BASE, "--recipe", str(recipe), "--config", str(config), "--model.momentum", "0.125"])
    model = spec.model
    assert (model["weight_decay"], model["L"], model["lr"], model["momentum"]) == (5e-4, 5, 0.25, 0.125)
    assert spec.recipe == "file.r"
    assert model["lambda_percentile"] is None
    assert spec.overrides == ("model.lambda_percentile=None", "model.lr=0.25", "model.momentum=0.125")


@pytest.mark.parametrize(
    "text",
    ["data: digits\nsubset: 7\nmax_epochs: 3\nT: 1,2\n", "data.name: digits\ndata.subset: 7\n"
        "trainer.max_epochs: 3\nT: [1, 2]\n",
     "data: {name: digits, subset: 7}\ntrainer: {max_epochs: 3}\nT: 1,2\n"],
)  # fmt: skip
def test_a_config_file_takes_every_form_of_an_option(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("method: qcfs\n" + text)
    spec = parse_fit(["--config", str(config)])
    assert (spec.data, spec.data_options["subset"], spec.all_trainer_options["max_epochs"]) == ("digits", 7, 3)
    assert spec.local.T == (1, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {LL: 4}", ["model.LL", "model.L"]),
        ("model: {L: four}", ["model.L", "four"]),
        ("- 1", ["mapping"]),
        ("model: {L: 4", ["cannot be read", "line ", "expected"]),
        ("model:\n\t- L", ["cannot be read", "line ", "character"]),
        ("model: {L: 4}\nmodel: {L: 5}", ["cannot be read", "line ", "model", "twice"]),
        ("model:\n  L: 010", ["cannot be read", "010", "decimal"]),
        ("model:\n  lr: 1:30", ["cannot be read", "1:30", "decimal"]),
    ],
)
@pytest.mark.parametrize("kind", ["config", "recipe"])
def test_bad_files_are_refused_by_name(tmp_path: Path, text: str, words: list[str], kind: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text if kind == "config" or text.startswith("-") else f"name: bad\n{text}")
    with pytest.raises(UserError) as refusal:
        parse_fit([*BASE, f"--{kind}", str(file)])
    message = str(refusal.value)
    assert "bad.yaml" in message
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("written", ["010", "-010", "00", "08", "0_1", "0o10", "1:30", "1:30.5", "12:30:45", "+1_0:59"])
def test_a_number_that_yaml_reads_in_another_base_is_refused_with_its_line(tmp_path: Path, written: str) -> None:
    """And is the text that it looks like in quotes, and where everything is read as it is written."""
    path = tmp_path / "file.yaml"
    path.write_text(f"a: 1\nb:\n- {written}\n")
    with pytest.raises(ValueError, match=rf"^line 3: .*{re.escape(written)} "):
        read_yaml(path)
    assert read_yaml(path, as_written=True) == {"a": "1", "b": [written]}
    path.write_text(f"a: 1\nb:\n- '{written}'\n")
    assert read_yaml(path)["b"] == [written]


def test_decimal_numbers_and_texts_are_read_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("[0, -7, 10, 0.5, 1.0e-3, 1e-3, 1_000, a:30, '0']")
    assert read_yaml(path) == [0, -7, 10, 0.5, 0.001, "1e-3", 1000, "a:30", "0"]
    path.write_text("model: {lr: 1e-3}")
    assert parse_fit([*BASE, "--config", str(path)]).model["lr"] == 0.001


@pytest.mark.parametrize("as_written", [False, True])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\n\nb: ]\n", 3),
        ("a: 1\n b: 2\n", 2),
        ("a: 1\nb:\n\t- 2\n", 3),
        ("a: 1\n--- 2\n", 2),
        ("a: 1\n\n[b]: 2\n", 3),
    ],
)
def test_the_reason_why_yaml_is_not_has_the_line(tmp_path: Path, text: str, line: int, as_written: bool) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(UNREADABLE) as refused:
        read_yaml(path, as_written=as_written)
    assert re.fullmatch(rf"line {line}: [^\n]*[a-z]{{4}}[^\n]*", reason(refused.value))


def test_a_net_of_timm_does_not_get_the_recipe_of_ours() -> None:
    ours = parse_fit(["--method", "qcfs", "--arch", "cifar_resnet18"])
    assert (ours.arch, ours.recipe) == ("cifar_resnet18", "paper")
    theirs = parse_fit(["--method", "qcfs", "--arch", "timm/resnet18"])
    assert (theirs.arch, theirs.recipe) == ("resnet18", "ours")
    own = parse_fit(["--method", "qcfs", "--arch", "timm/vgg16_bn", "--data", "imagenet"])
    assert (own.arch, own.recipe, own.model["L"]) == ("vgg16_bn", "paper", 16)


def test_the_hashed_part_knows_no_paths_and_no_seed() -> None:
    one = parse_fit(["--method", "qcfs", "--seed", "1", "--out", "a", "--data.root", "x", "--data.num_workers", "2"])
    two = parse_fit(["--method", "qcfs", "--seed", "2", "--out", "b", "--T", "1"])
    assert one.config() == two.config()
    assert parse_fit(["--method", "qcfs", "--model.L", "2"]).config() != two.config()


def test_short_forms() -> None:
    assert expand_shorthands(["--data", "digits", "--subset=5", "--compile", "--seed", "1", "--overwrite", "no"]) == [
        "--data.name", "digits", "--data.subset=5", "--compile", "true", "--seed", "1", "--overwrite", "no",
    ]  # fmt: skip


def test_steps() -> None:
    assert parse_steps("8, 1,2") == (1, 2, 8)
    assert parse_steps(4) == (4,)
    for bad in ("0", "-1", "1.5", "", "a", "1,,2", "2,2", "1;2"):
        with pytest.raises(UserError, match="--T"):
            parse_steps(bad)


def test_differences_name_the_option() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == ["a.c=3", "d=4"]


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", None), ("0.5", 0.5), ("5", 5)])
def test_one_batch_is_not_all_of_them(text: str, value: float | None) -> None:
    spec = parse_fit(["--method", "qcfs", "--data", "digits", "--trainer.limit_train_batches", text])
    found = spec.all_trainer_options["limit_train_batches"]
    assert found == value and type(found) is type(value)


def test_clipping_is_the_same_however_it_is_written() -> None:
    clip = "--trainer.gradient_clip_val"
    found = [
        parse_fit([*BASE, clip, *given]).config()
        for given in (["1"], ["1.0"], ["1", "--trainer.gradient_clip_algorithm", "norm"])
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("text", ["8", "'8'"])
def test_processes_are_hashed_as_their_number(tmp_path: Path, text: str) -> None:
    """Runs of 1 and of 8 processes are not seeds of one row, however the number is written."""
    file = tmp_path / "own.yaml"
    file.write_text(f"trainer: {{devices: {text}}}")
    spec = parse_fit([*BASE, "--config", str(file)])
    assert spec.config() == parse_fit([*BASE, "--trainer.devices", "8"]).config()
    assert spec.config()["trainer"]["devices"] == 8
    assert spec.overrides == ("trainer.devices=8",)


def test_nothing_given_is_one_process(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("trainer: {devices: null, num_nodes: 1, strategy: null, accelerator: null}")
    spec = parse_fit([*BASE, "--config", str(tmp_path / "own.yaml")])
    assert spec.config() == parse_fit(BASE).config()
    assert [spec.all_trainer_options[key] for key in ("devices", "strategy", "accelerator")] == [1, "auto", "auto"]


@pytest.mark.parametrize(("old", "new"), [("32", "32-true"), ("bf16", "bf16-mixed"), ("16-mixed", "16-mixed")])
def test_a_precision_has_one_name(old: str, new: str) -> None:
    spec = parse_fit([*BASE, "--trainer.precision", old])
    assert spec.all_trainer_options["precision"] == new
    assert spec.overrides == (), "arithmetic makes no row of its own"


def test_home_folder_and_variables_are_known_wherever_a_path_is_given(tmp_path: Path, monkeypatch) -> None:
    """No shell has seen ``--out=~/x``, nor a file's paths."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("out: ~/a\nckpt: $HOME/b\ndata: {name: cifar10, root: ~/c}\n")
    spec = parse_fit(["--method", "qcfs", "--config=~/own.yaml"])
    assert (spec.local.out, spec.local.ckpt) == (tmp_path / "a", str(tmp_path / "b"))
    assert DATA["cifar10"].load()(**spec.all_data_options).root == tmp_path / "c"
    monkeypatch.setenv("BENCH_DATA_DIR", "~/d")
    assert DATA["imagenet"].load()().root == tmp_path / "d/imagenet"
