"""Driving the real command line in this process and in processes of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.cli.main import main
from bench.records.record import read_record

ROOT = Path(__file__).resolve().parents[2]
# Small enough for seconds, long enough for two checkpoints.
TINY = ("--method", "qcfs", "--arch", "resnet20", "--data", "digits", "--subset", "64", "--T", "1,2,4",
        "--max_epochs", "2", "--logger", "none")  # fmt: skip
# Long enough to be hit in the middle, with random crops, shuffling and the schedule to go wrong on resumption.
LONG = [item if item != "2" else "6" for item in TINY] + ["--data.batch_size", "8", "--model.lr", "0.01"]
# Options of methods in a test; smaller than the defaults where these take long or need more images.
SHORT: dict[str, dict[str, float]] = {
    "snnc_ap": {"model.iterations": 3},
    "rnl": {"model.stage2_epochs": 2},
    "cos": {"model.rho": 2},
    "surrogate": {"model.T": 1},
    "dsr": {"model.T": 1},
    "tandem": {"model.T": 1, "model.ann_epochs": 1, "model.epochs_per_layer": 0.05},
    "lasnn": {"model.T": 1, "model.ann_epochs": 1},
    "snn2ann": {"model.T": 1},
    "ltb": {"model.iterations": 3, "model.batch": 32},
    "ftbc": {"model.batch": 32},
    "parallel": {"model.iterations": 3},
}


class Result(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Away from the checkout, without a W&B key, with one thread per process: two tests may share two cores."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "BENCH_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield
    # W&B's service process would take relative paths of the next test for paths in this one's folder.
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs ``python -m bench ...`` in this process."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        status = main(list(arguments))
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


def sha256(path: Path | str) -> str:
    """Of a file; comparing megabytes themselves would keep pytest busy for minutes where they differ."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def start(*arguments: str) -> subprocess.Popen[str]:
    """Starts ``python -m bench ...`` as a process of its own, with one thread (the number of them changes sums)."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's background jobs ignore SIGINT, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one finished run (``TINY``); whoever changes it copies it first."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["fit", *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one finished run (``LONG``), which others that were stopped and resumed are compared with."""
    folder = tmp_path_factory.mktemp("whole")
    process = start("fit", *LONG, "--out", str(folder))
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return folder


def same_as(uninterrupted: Path, out: Path) -> None:
    """Asserts that two runs of one command have the same weights and records."""
    assert sha256(out / "model.safetensors") == sha256(uninterrupted / "model.safetensors")
    assert timeless(out / "record.json") == timeless(uninterrupted / "record.json")


def timeless(path: Path) -> dict[str, object]:
    """A record without what depends on when and how fast it was made."""
    read_record(path)
    record = json.loads(path.read_text())
    record.pop("run")
    record["training"].pop("seconds")
    return record
