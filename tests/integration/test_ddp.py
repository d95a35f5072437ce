"""Two processes count every test image once."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY, start

from bench.records.record import read_record

DDP = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")


def test_two_processes_measure_what_one_measures(bench):
    # Long enough to be far from chance, where any two nets would score alike.
    longer = ("--subset", "256", "--max_epochs", "5", "--data.batch_size", "16")
    process = start("fit", *TINY, *longer, *DDP, "--data.eval_batch_size", "7", "--out", "two")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("record: ") == 1, "one process writes and prints"
    two = read_record(Path("two/record.json"))
    assert two.ann.top1 > 0.3
    assert two.environment.world_size == 2 and two.protocol.num_eval_samples == 256
    assert bench("evaluate", "--ckpt", "two/model.safetensors", "--T", "1,2,4", "--out", "one",
                 "--logger", "none").status == 0  # fmt: skip
    one = read_record(Path("one/record.json"))
    assert (two.ann, two.snn, two.checkpoint) == (one.ann, one.snn, one.checkpoint)


@pytest.mark.slow
def test_a_test_set_that_does_not_divide_is_refused():
    process = start("fit", *TINY, "--subset", "63", *DDP, "--out", "odd")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 2, out + err
    assert "63 evaluation images do not divide over 2 processes" in err
    assert not Path("odd/record.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "status"), [("ddp", 2), ("ddp_find_unused_parameters_true", 0)])
def test_rnl_whose_stages_train_different_parameters_says_which_strategy_it_needs(strategy, status):
    arguments = ["rnl" if item == "qcfs" else item for item in TINY]
    process = start("fit", *arguments, *DDP[:-1], strategy, "--model.stage2_epochs", "1", "--out", "run")
    out, err = process.communicate(timeout=250)
    assert process.returncode == status, out + err
    assert Path("run/record.json").exists() == (status == 0)
    if status:
        assert "ddp_find_unused_parameters_true" in err and "Traceback" not in err
