"""Where a Trainer computes, and in how many processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator

from bench.errors import UserError
from bench.registry.datasets import DATA
from bench.run.resolve import parse_fit
from bench.run.trainer import make_trainer, require_batches
from bench.run.trainer_options import checked


def machine_with(monkeypatch: pytest.MonkeyPatch, *there: type) -> None:
    for kind in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda kind=kind: kind in there))


def test_apple_s_gpu_is_not_taken(monkeypatch, tmp_path):
    """It has no double precision, in which neurons count; Lightning would take it for auto and for gpu."""
    machine_with(monkeypatch, MPSAccelerator)
    for accelerator in ("auto", "cpu"):
        trainer = make_trainer({"accelerator": accelerator, "max_epochs": 1}, [], [], tmp_path)
        assert isinstance(trainer.accelerator, CPUAccelerator)
    for accelerator in ("gpu", "cuda"):
        with pytest.raises(UserError, match=f"^--trainer.accelerator {accelerator}: PyTorch finds no CUDA"):
            make_trainer({"accelerator": accelerator}, [], [], tmp_path)


@pytest.mark.parametrize(
    ("accelerator", "taken"), [("auto", "cuda"), ("gpu", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")]
)
def test_a_gpu_is_taken_where_there_is_one(monkeypatch, tmp_path, accelerator, taken):
    machine_with(monkeypatch, CUDAAccelerator, MPSAccelerator)
    made = {}

    def record(**options: object) -> SimpleNamespace:
        made.update(options)
        return SimpleNamespace(world_size=1)

    spec = parse_fit(["--method", "qcfs", "--data", "digits", "--trainer.accelerator", accelerator])
    monkeypatch.setattr("bench.run.trainer.pl.Trainer", record)
    make_trainer(spec.all_trainer_options, [], [], tmp_path)
    assert (made["accelerator"], made["devices"], made["num_nodes"]) == (taken, 1, 1)
    assert spec.label == "digits", "where it is computed does not decide a result"


def test_a_launcher_s_processes_are_those_of_the_record(monkeypatch, tmp_path):
    """``srun -n 4`` of a run that says it is one process."""
    monkeypatch.setattr("bench.run.trainer.pl.Trainer", lambda **_: SimpleNamespace(world_size=4))
    with pytest.raises(UserError, match=r"--trainer\.devices 1: .* 4 processes"):
        make_trainer({"strategy": "ddp"}, [], [], tmp_path)


def test_images_that_do_not_divide_over_the_processes_are_found_before_the_training(tmp_path):
    trainer = make_trainer({"accelerator": "cpu", "devices": 2}, [], [], tmp_path)
    assert trainer.world_size == 2
    with pytest.raises(UserError, match="63 evaluation images do not divide over 2 processes"):
        require_batches(trainer, DATA["digits"].load()(subset=63), "train", "test")


def test_mixed_half_precision_is_refused_where_it_would_be_another(tmp_path):
    with pytest.raises(UserError, match=r"--trainer\.precision 16-mixed: .*bf16-mixed"):
        make_trainer({"accelerator": "cpu", "precision": "16-mixed"}, [], [], tmp_path)


@pytest.fixture(scope="module")
def defaults() -> dict[str, object]:
    return parse_fit(["--method", "qcfs", "--data", "digits"]).all_trainer_options


@pytest.mark.parametrize(
    ("option", "values", "advice"),
    [
        ("devices", ("auto", "-1", -1, 0, [0], [0, 1], "0,1", "null", 1.0, True), "CUDA_VISIBLE_DEVICES"),
        ("num_nodes", (0, -1), "at least 1"),
        ("accelerator", ("mps", "tpu", "hpu", ""), "choose from auto, cpu, gpu, cuda"),
        ("strategy", ("ddp_fork", "ddp_spawn", "ddp_notebook", "fsdp", "deepspeed_stage_2", "model_parallel",
                      {"class_path": "pytorch_lightning.strategies.DDPStrategy"}), "choose from auto, single_device"),
        ("max_epochs", (0, -1, None), "at least 1"),
        ("accumulate_grad_batches", (0, -1), "at least 1"),
        ("gradient_clip_val", (-1, 0, 0.0, float("inf"), float("nan")), "above 0"),
        ("gradient_clip_algorithm", ("sum",), "norm, value"),
        ("limit_train_batches", (0, -1, 0.0, -0.5, 1.5, float("nan")), "a fraction up to 1.0"),
        ("limit_test_batches", (0, -1, 0.0, -0.5, 1.5, float("nan")), "a fraction up to 1.0"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(defaults, option, values, advice):
    for value in values:
        with pytest.raises(UserError, match=rf"^--trainer\.{option} ") as caught:
            checked({**defaults, option: value})
        assert advice in str(caught.value) and "\n" not in str(caught.value)


def test_one_device_is_of_one_process(defaults):
    assert checked({**defaults, "strategy": "single_device"})["strategy"] == "single_device"
    for several in ("devices", "num_nodes"):
        with pytest.raises(UserError, match="single_device: runs one process only"):
            checked({**defaults, "strategy": "single_device", several: 2})
