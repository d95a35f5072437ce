"""A signal during training leaves a checkpoint from which the run goes on to the same result."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from conftest import LONG, sha256, start

from bench.records.record import read_record


@pytest.mark.parametrize(
    ("number", "status", "epochs", "workers"),
    [
        (signal.SIGUSR1, 143, 2, 1),  # by which SLURM announces the end of a job
        pytest.param(signal.SIGINT, 130, 2, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, 2, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, 2, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, 0, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(uninterrupted, number, status, epochs, workers):
    out = Path("run")
    command = ("fit", *LONG, "--logger", "csv", "--out", str(out), "--data.num_workers", str(workers))
    process = start(*command)
    deadline = time.monotonic() + 120
    # The checkpoint of an epoch is written before its line in the log.
    seen = (lambda: (out / "checkpoints/last.ckpt").exists()) if epochs == 0 else (lambda: _epochs(out) >= epochs)
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert "--ckpt last" in err.strip().splitlines()[-1]
    assert not (out / "record.json").exists()

    process = start(*command, "--ckpt", "last")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert sha256(out / "model.safetensors") == sha256(uninterrupted / "model.safetensors")
    assert read_record(out / "record.json").training.epochs == 6
    assert _epochs(out) == 6, "every epoch is in the logs once"


@pytest.mark.slow
@pytest.mark.parametrize(
    "long",
    [
        pytest.param(["nq" if item == "qcfs" else item for item in LONG], id="noise"),
        # Batches of 50 leave a last one that is smaller, which is compiled by itself.
        pytest.param([*LONG, "--compile", "true", "--data.batch_size", "50", "--data.num_workers", "1"], id="compiled"),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(long):
    whole = start("fit", *long, "--out", "whole")
    _, err = whole.communicate(timeout=200)
    assert whole.returncode == 0, err
    process = start("fit", *long, "--logger", "csv", "--out", "run")
    deadline = time.monotonic() + 120
    while _epochs(Path("run")) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not Path("run/record.json").exists()
    process = start("fit", *long, "--out", "run", "--ckpt", "last")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert sha256(Path("run/model.safetensors")) == sha256(Path("whole/model.safetensors"))


def _epochs(out: Path) -> int:
    lines = [line.split(",") for log in out.glob("csv/*/metrics.csv") for line in log.read_text().splitlines()]
    # Header lines name the column; the line of an evaluation leaves it empty.
    positions = [line.index("train/loss") if "train/loss" in line else None for line in lines]
    count, column = 0, None
    for line, position in zip(lines, positions, strict=True):
        if position is not None:
            column = position
        elif column is not None and len(line) > column:
            count += bool(line[column])
    return count
