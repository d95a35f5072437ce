"""Commands killed at random moments: no file is half-written, and the next run gives the undisturbed result."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import LONG, ROOT, same_as, start, timeless


def test_a_leaderboard_killed_at_any_moment_is_whole_after_the_next():
    arguments = [
        "leaderboard",
        "--reported",
        str(ROOT / "leaderboards/reported"),
        "--results",
        "results",
        "--out",
        "out",
    ]
    shutil.copytree(ROOT / "leaderboards/results", "results")
    clock = time.monotonic()
    whole = start(*arguments)
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    span = time.monotonic() - clock
    reference = {path.relative_to("out"): path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert {Path("README.md"), Path("index.html"), Path("cifar10.md")} <= reference.keys()
    between = 0
    draw = random.Random(1)
    for number in range(4):
        for path in reference:
            Path("out", path).unlink(missing_ok=True)
        process = start(*arguments)
        if number % 2:  # in the middle of writing
            while process.poll() is None and not any(Path("out", path).exists() for path in reference):
                time.sleep(0.0005)
        else:
            time.sleep(span * draw.uniform(0.5, 1.0))
        process.kill()
        process.communicate()
        written = {path for path in Path("out").rglob("*") if path.is_file() and path.suffix != ".tmp"}
        for path in written:
            assert path.read_bytes() == reference[path.relative_to("out")], f"{path} is half-written"
        between += 0 < len(written) < len(reference)
    assert between, "no kill came between the first page and the last"
    out, err = start(*arguments).communicate(timeout=120)
    assert {p: Path("out", p).read_bytes() for p in reference} == reference, out + err


@pytest.mark.slow
@pytest.mark.timeout(14_400)
def test_runs_killed_at_random_moments_end_in_the_record_of_the_uninterrupted_one(uninterrupted):
    """FAULT_RUNS runs (default 30), each killed up to three times, from its first moments to its last."""
    clock = time.monotonic()
    start("fit", *LONG, "--out", "measure").communicate(timeout=300)
    span = time.monotonic() - clock
    draw = random.Random(int(os.environ.get("FAULT_SEED", "0")))
    kills = 0
    runs = int(os.environ.get("FAULT_RUNS", "30"))
    for number in range(runs):
        out = Path(f"run{number}")
        for attempt in range(4):
            begun = (out / "checkpoints/last.ckpt").exists()
            process = start("fit", *LONG, "--out", str(out), *(("--ckpt", "last") if begun else ()))
            if attempt < 3:
                try:
                    process.communicate(timeout=span * draw.uniform(0.2, 1.1))
                except subprocess.TimeoutExpired:
                    process.kill()
                    kills += 1
            _, err = process.communicate(timeout=300)
            if process.returncode == 0:
                break
            assert process.returncode == -9, err
            assert not (out / "record.json").exists() or timeless(out / "record.json")
        same_as(uninterrupted, out)
        leftovers = [path.name for path in out.rglob("*") if path.name.endswith(".tmp")]
        assert not leftovers, leftovers
        shutil.rmtree(out)
    print(f"{runs} runs, {kills} kills: {runs} records as that of the uninterrupted run")
    assert kills >= runs // 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_evaluation_killed_at_any_moment_is_whole_after_the_next(uninterrupted):
    arguments = ["evaluate", "--ckpt", str(uninterrupted / "model.safetensors"), "--T", "1,2,4", "--logger", "csv"]
    clock = time.monotonic()
    out, err = start(*arguments, "--out", "reference").communicate(timeout=120)
    assert Path("reference/record.json").exists(), out + err
    span = time.monotonic() - clock
    draw = random.Random(2)
    kills = 0
    for number in range(10):
        folder = Path(f"run{number}")
        process = start(*arguments, "--out", str(folder))
        try:
            process.communicate(timeout=span * draw.uniform(0.4, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        if not (folder / "record.json").exists():
            out, err = start(*arguments, "--out", str(folder)).communicate(timeout=120)
        assert timeless(folder / "record.json") == timeless(Path("reference/record.json")), out + err
        assert not list(folder.rglob("*.tmp"))
    assert kills >= 5
