"""The main job from the command line to the record."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import ROOT, TINY, sha256, timeless

from bench.errors import UserError
from bench.records.header import Header, is_cut
from bench.records.record import Arithmetic, Code, read_record
from bench.run.build import build
from bench.run.checkpoints import read
from bench.run.provenance import environment, trained_on
from bench.run.resolve import differences, parse_fit, with_source
from bench.run.training import find_resume, header_of
from bench.snn.compilation import can_compile


def test_fit_writes_a_valid_record_a_table_and_weights(bench):
    result = bench("fit", *TINY, "--out", "run")
    assert result.status == 0, result.err
    record = read_record(Path("run/record.json"))
    assert (record.method.name, record.arch.name, record.data.name) == ("qcfs", "cifar_resnet20", "digits")
    assert [point.T for point in record.snn] == [1, 2, 4]
    assert record.limited and record.protocol.num_eval_samples == 64
    assert record.recipe.overrides == ["data.subset=64", "trainer.max_epochs=2"]
    assert record.training.epochs == 2
    assert all(0 < point.firing_rate < 1 for point in record.snn)
    assert f"{100 * record.ann.top1:.2f}" in result.out and "record: run/record.json" in result.out
    # Only what may be ranked is to be filed.
    assert result.out.splitlines()[-1] == "next: python -m bench diagnose --ckpt run/model.safetensors --T 4"
    assert Path("run/model.safetensors").stat().st_size > 1_000_000
    assert not list(Path("run").rglob("*.tmp"))


def test_same_seed_gives_the_same_record(bench):
    for folder in ("a", "b"):
        assert bench("fit", *TINY, "--seed", "7", "--out", folder).status == 0
    assert timeless(Path("a/record.json")) == timeless(Path("b/record.json"))


def test_another_seed_gives_other_weights_and_another_order():
    """Checksums would differ in any case, as the header has the seed."""
    made = [build("digits", "qcfs", "cifar_resnet20", {}, {}, seed) for seed in (0, 0, 1)]
    weights = [model.net.get_parameter("conv1.weight") for model, _ in made]
    orders = [next(iter(data.train_dataloader()))[1] for _, data in made]
    for first, same, other in (weights, orders):
        assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("file", ["checkpoints/last.ckpt", "model.safetensors"])
def test_evaluate_repeats_what_fit_measured(bench, file):
    assert bench("fit", *TINY, "--out", "run").status == 0
    result = bench("evaluate", "--ckpt", f"run/{file}", "--T", "1,2,4,8", "--out", "again", "--logger", "none")
    assert result.status == 0, result.err
    old, new = read_record(Path("run/record.json")), read_record(Path("again/record.json"))
    assert new.ann == old.ann
    assert new.snn[:3] == old.snn
    assert new.checkpoint == old.checkpoint
    assert new.recipe == old.recipe
    assert (new.training.code, new.training.epochs) == (old.training.code, 2)
    assert new.training.arithmetic == old.training.arithmetic


def test_a_record_says_on_what_its_weights_were_trained(bench):
    threads = torch.get_num_threads()
    assert bench("fit", *TINY, "--out", "run").status == 0
    environment = read_record(Path("run/record.json")).environment
    expected = {"torch": environment.torch, "device": environment.device, "threads": threads, "world_size": 1}
    expected |= {"compiled": False, "precision": "32-true"}
    try:
        torch.set_num_threads(threads + 1)
        assert bench("fit", *TINY, "--out", "run", "--ckpt", "last").status == 0
    finally:
        torch.set_num_threads(threads)
    record = read_record(Path("run/record.json"))
    assert record.environment.threads == threads + 1
    assert record.training.arithmetic is not None
    assert record.training.arithmetic.model_dump() == expected, "nothing was trained the second time"


@pytest.mark.parametrize(
    ("instructions", "precision"), [("AVX2", "bf16-mixed"), ("AVX512", "bf16-mixed"), ("AVX2", "32")]
)
def test_a_precision_that_the_processor_lacks_falls_back_to_32_bits_and_says_so(
    bench, monkeypatch, instructions, precision
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr("bench.run.training.train", lambda *_: (_ for _ in ()).throw(UserError("no more is needed")))
    result = bench("fit", *TINY, "--trainer.precision", precision, "--out", "run")
    assert (result.status, result.err) == (2, "error: no more is needed\n")
    falls_back = instructions == "AVX2" and precision == "bf16-mixed"
    assert ("in 32 bits instead" in result.out) is falls_back
    used = "bf16-mixed" if (instructions, precision) == ("AVX512", "bf16-mixed") else "32-true"
    assert f", {used}, not compiled" in result.out, "the first line comes before the first step"


def test_a_record_names_the_cpu_s_instructions():
    """A processor of one name has AVX-512 on one virtual machine and not on another, and rounds differently."""
    assert environment(torch.device("cpu"), 1, 0).device.endswith(f", {torch.backends.cpu.get_cpu_capability()})")


def test_a_training_that_other_code_goes_on_with_is_said_to_be_no_longer_ranked(bench, monkeypatch):
    """Where there is nothing left to train it does not matter which code is there now."""

    def resumed_by(commit: str, *options: str) -> tuple[str, Code]:
        monkeypatch.setattr("bench.run.training.code_state", lambda: Code(commit=commit * 40, dirty=False))
        result = bench("fit", *TINY, "--T", "1", "--out", "run", *options)
        assert result.status == 0, result.err
        return result.out, read_record(Path("run/record.json")).training.code

    _, began = resumed_by("e")
    out, whole = resumed_by("f", "--ckpt", "last")
    assert whole == began and not whole.dirty and "never be ranked" not in out
    Path("run/checkpoints/previous.ckpt").replace("run/checkpoints/last.ckpt")
    out, mixed = resumed_by("f", "--ckpt", "last")
    assert "began with commit eeeeeeeeee and continues with ffffffffff" in out and "never be ranked" in out
    assert mixed.dirty and mixed.commit == began.commit


@pytest.mark.parametrize(
    ("epochs", "threads", "expected"), [(0, 2, 1), (3, 1, 1), (3, 2, None), (3, None, None), (9, 2, 2)]
)
def test_a_training_that_went_on_elsewhere_has_no_one_arithmetic(epochs, threads, expected):
    def arithmetic(threads: int | None) -> Arithmetic | None:
        return threads and Arithmetic(torch="2", device="cpu", threads=threads, world_size=1)

    here = arithmetic(1)
    before = Header.model_construct(epochs=epochs, arithmetic=arithmetic(threads))
    assert trained_on(before, here, 9) == arithmetic(expected)
    assert trained_on(None, here, 9) == here


def test_the_evaluation_batch_size_does_not_change_the_training(bench):
    for folder, size in (("a", "100"), ("b", "7")):
        assert bench("fit", *TINY, "--data.eval_batch_size", size, "--out", folder).status == 0
    assert sha256("a/model.safetensors") == sha256("b/model.safetensors")


def test_csv_log_holds_training_and_every_T(bench):
    arguments = [*TINY[:-1], "csv", "--data.val_split", "32"]
    assert bench("fit", *arguments, "--out", "run").status == 0
    rows = list(csv.DictReader(Path("run/csv/version_0/metrics.csv").read_text().splitlines()))
    keys = {key for row in rows for key, value in row.items() if value}
    assert {"train/loss", "train/acc", "val/acc", "ann/acc", "snn/acc@T=1", "snn/acc@T=4", "snn/acc_top5@T=2",
            "snn/firing_rate@T=4", "ann/quantised_acc@T=4"} <= keys  # fmt: skip
    logged = next(float(row["snn/acc@T=4"]) for row in rows if row["snn/acc@T=4"])
    assert logged == pytest.approx(read_record(Path("run/record.json")).snn[2].top1)


def test_print_config_is_a_config_file_that_repeats_the_run(bench):
    printed = bench("fit", *TINY, "--model.L", "3", "--print_config")
    assert printed.status == 0
    Path("config.yaml").write_text(printed.out)
    assert bench("fit", *TINY, "--model.L", "3", "--out", "a").status == 0
    assert bench("fit", "--config", "config.yaml", "--out", "b").status == 0
    assert timeless(Path("a/record.json")) == timeless(Path("b/record.json"))


def test_a_recipe_file_of_ones_own(bench):
    Path("mine.yaml").write_text("name: mine\nmodel: {L: 2, lambda_init: 1.0}\ntrainer: {max_epochs: 1}\n")
    arguments = [item for item in TINY if item not in ("--max_epochs", "2")]
    result = bench("fit", *arguments, "--recipe", "mine.yaml", "--out", "run")
    assert result.status == 0, result.err
    record = read_record(Path("run/record.json"))
    assert record.recipe.name == "file.mine" and record.recipe.overrides == ["data.subset=64"]
    assert record.method.options["L"] == 2 and record.training.epochs == 1


def test_a_timm_net_works(bench):
    arguments = [{"resnet20": "timm/resnet10t"}.get(item, item) for item in TINY]
    result = bench("fit", *arguments, "--model.lambda_init", "1", "--out", "run")
    assert result.status == 0, result.err
    assert read_record(Path("run/record.json")).arch.name == "resnet10t"


def test_validation_split_can_be_evaluated_and_is_never_ranked(bench):
    arguments = [item for item in TINY if item not in ("--subset", "64")]
    result = bench("fit", *arguments, "--trainer.limit_train_batches", "1", "--data.val_split", "200",
                   "--data.eval_split", "val", "--out", "run")  # fmt: skip
    assert result.status == 0, result.err
    record = read_record(Path("run/record.json"))
    assert record.limited and record.protocol.eval_split == "val"
    assert record.protocol.num_eval_samples == 200 and record.protocol.num_train_samples == 1437 - 200


@pytest.mark.parametrize(("limit", "cut"), [(None, False), (1.0, False), (1, True), (0.5, True), (11, True)])
def test_one_batch_an_epoch_is_part_of_the_data_and_one_whole_epoch_is_not(limit, cut):
    assert is_cut(limit) is cut
    assert differences({"limit": 1.0}, {"limit": limit}) == ([] if limit == 1.0 and not cut else [f"limit={limit}"])


@pytest.mark.parametrize("left", ["record.json", "model.safetensors"])
def test_a_finished_run_without_its_checkpoints_is_not_lost(bench, left):
    Path("run").mkdir()
    Path("run", left).write_text("weeks of work")
    result = bench("fit", *TINY, "--out", "run")
    assert (result.status, Path("run", left).read_text()) == (2, "weeks of work")
    assert "--overwrite" in result.err and "--ckpt last" not in result.err


@pytest.mark.parametrize(("left", "advice"), [("record.json", "--overwrite"), ("sweep.log", "leave --ckpt out")])
def test_what_is_advised_if_there_is_nothing_to_go_on_from(bench, left, advice):
    """A run's record keeps the same command without ``--ckpt`` from beginning."""
    Path("run").mkdir()
    Path("run", left).write_text("weeks of work")
    result = bench("fit", *TINY, "--out", "run", "--ckpt", "last")
    assert result.status == 2 and "no checkpoint" in result.err and advice in result.err
    assert [path.name for path in Path("run").iterdir()] == [left]


def test_a_training_that_ends_before_its_first_checkpoint_advises_none(bench, monkeypatch):
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("bench.run.trainer.LastCheckpoint.on_train_start", full)
    result = bench("fit", *TINY, "--out", "run")
    assert result.status == 2 and "No space left" in result.err and "--ckpt" not in result.err
    assert find_resume(parse_fit(TINY), Path("run"), header_of(parse_fit(TINY))) is None, "the same command begins"


@pytest.mark.parametrize(
    ("left", "words"),
    [("record.json", ["--ckpt", "fit --method relu", "--overwrite"]), ("checkpoints/previous.ckpt", ["damaged"])],
)
def test_a_source_net_of_which_a_part_is_left_is_not_trained_over(bench, left, words):
    """What is asked of the conversion (``--ckpt last``, ``--overwrite``) is not asked of its source net."""
    command = ("--method", "max_norm", *TINY[2:4], "--data", "digits", "--subset", "64", "--logger", "none")
    net = with_source(parse_fit(command)).net
    path = net.folder() / left
    path.parent.mkdir(parents=True)
    path.write_text("weeks of work")
    result = bench("fit", *command)
    assert result.status == 2 and all(word in result.err for word in words), result.err
    assert path.read_text() == "weeks of work"


def test_a_finished_run_without_its_checkpoints_is_evaluated_at_further_T(bench, trained):
    shutil.copytree(trained, "run")
    shutil.rmtree("run/checkpoints")
    before = read_record(Path("run/record.json"))
    result = bench("fit", *TINY, "--T", "1,2,4,8", "--out", "run", "--ckpt", "last")
    assert result.status == 0 and "has all 2 epochs" in result.out, result.err
    after = read_record(Path("run/record.json"))
    assert (after.checkpoint, after.training, after.snn[:3]) == (before.checkpoint, before.training, before.snn)
    assert [point.T for point in after.snn] == [1, 2, 4, 8] and not Path("run/checkpoints").exists()
    weights = read(Path("run/model.safetensors"))
    changed = weights._replace(header=weights.header.model_copy(update={"epochs": 1}))
    Path("run/model.safetensors").write_bytes(changed.to_safetensors())
    result = bench("fit", *TINY, "--out", "run", "--ckpt", "last")
    assert result.status == 2 and "has 1 of 2 epochs" in result.err


def test_an_evaluation_of_the_first_batches_is_never_ranked(bench, trained):
    ckpt = str(trained / "model.safetensors")
    first = ("--T", "1", "--logger", "none", "--data.eval_batch_size", "10")
    assert bench("evaluate", "--ckpt", ckpt, *first, "--trainer.limit_test_batches", "2", "--out", "two").status == 0
    found = read_record(Path("two/record.json"))
    assert (found.limited, found.protocol.num_eval_samples) == (True, 20)
    cut = ("--trainer.limit_test_batches", "1", "--data.eval_batch_size", "10", "--trainer.limit_train_batches", "1")
    fit = ("fit", "--method", "qcfs", "--data", "digits", "--max_epochs", "1", "--T", "1", "--logger", "none")
    assert bench(*fit, *cut, "--out", "cut").status == 0
    assert bench("evaluate", "--ckpt", "cut/model.safetensors", *first, "--out", "again").status == 0
    found = read_record(Path("again/record.json"))
    assert (found.limited, found.protocol.num_eval_samples) == (True, 360), "the training is cut, the evaluation is not"
    assert "trainer.limit_test_batches=1" not in found.recipe.overrides


def test_a_trial_leaves_no_trace_in_what_is_measured_later(bench, trained):
    """Neither the limit of a source's evaluation nor that of a conversion, nor a read-out."""
    digits = ("--arch", "resnet20", "--data", "digits", "--T", "1,2", "--logger", "none")
    one = ("--trainer.limit_test_batches", "1", "--data.eval_batch_size", "10")
    assert bench("fit", *TINY, *one, "--snn.delay", "1").status == 2, "a training has no read-out"
    assert bench("fit", *TINY, *one, "--out", "net").status == 0
    card = ("export", "--ckpt", "net/model.safetensors", "--format", "safetensors", "--out", "card", "--T", "1")
    assert bench(*card).status == 0, "the record knows the file"
    late = ("--T", "1,2", "--snn.delay", "1", "--out", "net", "--overwrite")
    assert bench("evaluate", "--ckpt", "net/model.safetensors", *late).status == 0
    cos = ("fit", "--method", "cos", *digits, "--subset", "64", "--model.rho", "2")
    assert bench(*cos, "--ckpt", "net/model.safetensors", "--out", "whole").status == 0
    assert bench(*cos, "--ckpt", "net/model.safetensors", *one, "--out", "trial").status == 0
    again = ("evaluate", "--ckpt", "trial/model.safetensors", "--T", "1,2", "--logger", "none", "--out", "again")
    assert bench(*again).status == 0
    whole, trial, later = (read_record(Path(name, "record.json")) for name in ("whole", "trial", "again"))
    assert (whole.protocol.num_eval_samples, trial.protocol.num_eval_samples) == (64, 10)
    assert "trainer.limit_test_batches=1" in trial.recipe.overrides
    assert whole.recipe == later.recipe and whole.snn == later.snn
    assert not [change for change in whole.recipe.overrides if "limit" in change or "delay" in change]


def test_going_on_with_a_recorded_run_keeps_its_steps(bench, trained):
    shutil.copytree(trained, "run")
    assert bench("fit", *TINY, "--T", "8", "--out", "run", "--ckpt", "last").status == 0
    assert [point.T for point in read_record(Path("run/record.json")).snn] == [1, 2, 4, 8]


def test_a_checkpoint_may_be_named_by_a_link(bench, trained):
    shutil.copytree(trained, "run")
    Path("link.ckpt").symlink_to("run/checkpoints/last.ckpt")
    assert bench("fit", *TINY, "--ckpt", "link.ckpt", "--out", "run").status == 0
    assert sha256(Path("run/model.safetensors")) == sha256(trained / "model.safetensors")


def test_a_training_that_goes_on_elsewhere_replaces_what_is_there(bench, trained):
    shutil.copytree(trained, "other")
    shutil.copytree(trained, "run")
    early = Path("other/checkpoints/previous.ckpt").rename("other/checkpoints/early.ckpt")
    for name in ("checkpoints/last.ckpt", "model.safetensors"):
        Path("run", name).write_text("of another run")
    assert bench("fit", *TINY, "--T", "1", "--ckpt", str(early), "--out", "run").status == 2
    assert bench("fit", *TINY, "--T", "1", "--ckpt", str(early), "--out", "run", "--overwrite").status == 0
    assert read(Path("run/model.safetensors")).header.epochs == 2
    left = [path for path in Path("run").rglob("*") if path.is_file() and path.read_bytes() == b"of another run"]
    assert not left and [point.T for point in read_record(Path("run/record.json")).snn] == [1]


def test_a_net_evaluated_into_another_training_s_folder_is_refused(bench, trained):
    shutil.copytree(trained, "mine")
    before = sha256(Path("mine/model.safetensors"))
    result = bench("evaluate", "--ckpt", str(trained / "model.safetensors"), "--out", "mine", "--overwrite")
    assert result.status == 2 and "another training" in result.err
    assert sha256(Path("mine/model.safetensors")) == before
    again = bench("evaluate", "--ckpt", "mine/model.safetensors", "--T", "1", "--out", "mine", "--overwrite",
                  "--logger", "none")  # fmt: skip
    assert again.status == 0, again.err


def test_an_unfinished_training_gets_no_weights_that_others_would_take_for_the_whole_one(bench, trained):
    shutil.copytree(trained, "run")
    for name in ("record.json", "model.safetensors"):
        Path("run", name).unlink()
    result = bench(
        "evaluate", "--ckpt", "run/checkpoints/previous.ckpt", "--T", "1", "--out", "run", "--logger", "none"
    )
    assert result.status == 2 and "has 1 of 2 epochs" in result.err
    assert not Path("run/model.safetensors").exists()


@pytest.mark.parametrize(
    "refused",
    [
        ("--trainer.precision", "16-mixed"),
        ("--trainer.limit_train_batches", "0.01"),
        ("--trainer.limit_test_batches", "0.01"),
        ("--trainer.precision", "transformer-engine"),
        ("--model.calibration_images", "0"),
        ("--method", "nq", "--data.val_split", "0", "--data.val_augment", "false"),
        ("--method", "rnl", "--model.stage2_epochs", "2"),
        ("--method", "snn2ann", "--model.momentum", "1"),
        ("--T", "[]"),
    ],
    ids=" ".join,
)
def test_an_option_that_is_refused_overwrites_nothing(bench, trained, refused):
    shutil.copytree(trained, "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*.*") if path.is_file()}
    result = bench("fit", *TINY, "--out", "run", "--overwrite", *refused)
    assert result.status == 2 and len(result.err.splitlines()) == 1, result.err
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_goes_on_from_the_checkpoint_before_the_last_if_that_is_gone(bench, trained):
    shutil.copytree(trained, "run")
    for name in ("record.json", "model.safetensors", "checkpoints/last.ckpt"):
        Path("run", name).unlink()
    previous = Path("run/checkpoints/previous.ckpt").read_bytes()
    begun_anew = bench("fit", *TINY, "--seed", "5", "--out", "run")
    assert begun_anew.status == 2 and "--ckpt last" in begun_anew.err
    assert Path("run/checkpoints/previous.ckpt").read_bytes() == previous
    result = bench("fit", *TINY, "--out", "run", "--ckpt", "last")
    assert result.status == 0 and "going on from run/checkpoints/previous.ckpt" in result.err
    assert sha256(Path("run/model.safetensors")) == sha256(trained / "model.safetensors")


def test_no_checkpoint_is_loaded_that_no_command_has_named(bench, trained):
    """Lightning's requeueing under SLURM leaves such a file, and loads any that is there."""
    Path("run").mkdir()
    shutil.copy(trained / "checkpoints/last.ckpt", "run/hpc_ckpt_1.ckpt")
    result = bench("fit", *TINY, "--out", "run", "--seed", "1")
    assert result.status == 0 and "epoch 1/2" in result.out


def test_compiled_steps_train_the_same_weights_by_name(bench):
    if not can_compile():
        pytest.skip("torch.compile does not work here")
    # In double precision, because in single precision a rounding moves a level, and two steps later most of them.
    short = ("--trainer.limit_train_batches", "1", "--trainer.precision", "64-true")
    for out, compiled in (("run", True), ("plain", False)):
        assert bench("fit", *TINY, *short, "--compile", str(compiled).lower(), "--out", out).status == 0
        assert read_record(Path(out, "record.json")).training.arithmetic.compiled is compiled
    compiled, plain = (read(Path(out, "model.safetensors")).state for out in ("run", "plain"))
    assert all(torch.allclose(compiled[name], plain[name], atol=1e-5) for name in plain)
    assert bench("evaluate", "--ckpt", "run/checkpoints/last.ckpt", "--T", "1", "--logger", "none").status == 0


@pytest.mark.slow
def test_readme_claim_on_digits(bench):
    result = bench("fit", "--method", "qcfs", "--arch", "resnet20", "--data", "digits", "--logger", "none")
    assert result.status == 0, result.err
    record = read_record(next(Path("runs").rglob("record.json")))
    at_8 = next(point for point in record.snn if point.T == 8)
    assert at_8.top1 > 0.95 and abs(at_8.top1 - record.ann.top1) <= 0.02


@pytest.mark.network
def test_cifar10_is_downloaded(bench):
    result = bench("fit", "--method", "qcfs", "--arch", "resnet20", "--subset", "128", "--max_epochs", "1",
                   "--logger", "none", "--data.root", str(ROOT / "data"))  # fmt: skip
    assert result.status == 0, result.err
