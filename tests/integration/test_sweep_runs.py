"""Real sweeps of digits on Ray: workers killed, the sweep itself interrupted and killed, a cluster of four machines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SHORT, start

from bench.records.record import Record, read_record
from bench.registry.methods import METHODS

pytest.importorskip("ray")
OPTIONS = {"subset": 64, "max_epochs": 3, "data.batch_size": 8, "T": [1, 2, 4], "logger": "none"}
ALL = [name for name in METHODS if name != "relu"]


def write_sweep(**content: object) -> None:
    Path("sweep.yaml").write_text(json.dumps({"data": ["digits"], "options": OPTIONS, **content}))


def write_large_sweep() -> set[tuple[str, int]]:
    """Methods and seeds of its runs; SWEEP_METHODS and SWEEP_SEEDS make it smaller."""
    names = os.environ.get("SWEEP_METHODS", ",".join(ALL)).split(",")
    seeds = list(range(int(os.environ.get("SWEEP_SEEDS", "2"))))
    write_sweep(methods=[{"name": name, "options": SHORT.get(name, {})} for name in names], seeds=seeds)
    return {(name, seed) for name in names for seed in seeds}


def found() -> dict[tuple[str, int], Record]:
    """All records below ``runs``, by method and seed; each must be whole."""
    return {(r.method.name, r.seed): r for r in (read_record(path) for path in Path("runs").rglob("record.json"))}


def fits() -> list[int]:
    """Process numbers of the runs of sweeps in this folder."""
    here, numbers = str(Path.cwd()), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"fit" in words and b"--out" in words and os.readlink(process / "cwd") == here:
                numbers.append(int(process.name))
    return numbers


def workers() -> list[int]:
    """Process numbers of the Ray workers that run something, which are the parents of the runs."""
    numbers = []
    for run in fits():
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{run}/status").read_text().splitlines()
            numbers.append(int(next(line.split()[1] for line in lines if line.startswith("PPid:"))))
    return numbers


def until(what, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def begun(method: str) -> bool:
    return any(Path("runs").glob(f"digits/*/{method}/*/checkpoints/last.ckpt"))


def finish(process: subprocess.Popen[str], seconds: float = 280) -> tuple[str, str]:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, out + err
    return out, err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_is_replaced_and_the_run_goes_on(tmp_path):
    write_sweep(methods=["qcfs", "cos", "srp"])
    process = start("sweep", "sweep.yaml", "--cpus", "1")
    until(lambda: begun("qcfs") or process.poll() is not None)
    for worker in workers():
        os.kill(worker, signal.SIGKILL)
    until(lambda: not fits() or process.poll() is not None, 20)
    out, err = finish(process)
    assert "will be tried again" in out and "Traceback" not in err
    records = found()
    assert set(records) == {("qcfs", 0), ("cos", 0), ("srp", 0)}
    assert "--ckpt" in records["qcfs", 0].run.argv and "last" in records["qcfs", 0].run.argv, "it resumed"
    assert records["cos", 0].conversion.source_sha256 == records["srp", 0].conversion.source_sha256
    assert records["cos", 0].conversion.source_sha256 == records["qcfs", 0].checkpoint.sha256
    again, _ = finish(start("sweep", "sweep.yaml"), 60)
    assert "3 of 3 runs recorded" in again and found() == records, "nothing is run twice"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_sweep_leaves_no_process_and_goes_on(number, status):
    write_sweep(methods=["qcfs"])
    process = start("sweep", "sweep.yaml", "--cpus", "1")
    until(lambda: begun("qcfs") or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, out + err
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert err.strip().splitlines()[-1].endswith("repeat the command to continue")
    until(lambda: not fits(), 60)
    assert not found()
    finish(start("sweep", "sweep.yaml", "--cpus", "1"))
    assert "last" in found()["qcfs", 0].run.argv


def test_a_run_that_is_refused_is_not_repeated_and_fails_what_needs_it():
    write_sweep(methods=["cos"], options={**OPTIONS, "subset": 5000})
    process = start("sweep", "sweep.yaml", "--cpus", "1")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 1 and "Traceback" not in err, out + err
    assert "after 1 attempt(s)" in out and "--subset 5000" in out and "its source net failed" in out
    assert "0 of 2 runs recorded" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--gpus-per-run", "3"), "--gpus-per-run 3: the largest"),
        (("--cpus", "1", "--cpus-per-run", "2"), "--cpus-per-run 2: the largest"),
        (("--address", "127.0.0.1:1"), "Ray cannot be reached"),
    ],
)
def test_what_ray_cannot_give_is_one_line(option, words):
    write_sweep(methods=["qcfs"])
    process = start("sweep", "sweep.yaml", *option)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 2, out + err
    assert words in err and err.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in err


def single_seconds(records: dict[tuple[str, int], Record]) -> float:
    return sum(r.run.seconds + (r.training.seconds or 0) * r.conversion.retrained for r in records.values())


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_methods_and_two_seeds_with_three_workers_killed():
    """SWEEP_METHODS and SWEEP_SEEDS make it smaller, SWEEP_CPUS larger."""
    asked_for = write_large_sweep()
    clock = time.monotonic()
    process = start("sweep", "sweep.yaml", "--cpus", os.environ.get("SWEEP_CPUS", str(os.cpu_count())))
    killed = 0
    while process.poll() is None and killed < 3:
        before = len(found())
        until(lambda before=before: len(found()) > before or process.poll() is not None, 1200)
        until(lambda: workers() or process.poll() is not None, 1200)
        for worker in workers()[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                killed += 1
    finish(process, 6000)
    wall, records = time.monotonic() - clock, found()
    asked = {key: record for key, record in records.items() if key[0] in {name for name, _ in asked_for}}
    print(f"{len(asked)} records and {len(records) - len(asked)} source nets, {killed} workers killed: {wall:.0f} s; "
          f"sum of the single runs {single_seconds(records):.0f} s")  # fmt: skip
    assert set(asked) == asked_for and killed == 3


@contextlib.contextmanager
def cluster(machines: int) -> Iterator[str]:
    """Machines simulated on this one, each with one core; yields the address."""
    code = (
        "import sys\nfrom ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})\n"
        f"for _ in range({machines - 1}):\n    cluster.add_node(num_cpus=1)\n"
        "print('address', cluster.address, flush=True)\nsys.stdin.read()\ncluster.shutdown()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert process.stdout and process.stdin
    try:
        address = next(line.split()[1] for line in process.stdout if line.startswith("address"))
        yield address
    finally:
        process.stdin.close()
        process.wait(timeout=120)
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_four_machines_of_a_cluster_finish_the_same_sweep():
    asked_for = write_large_sweep()
    with cluster(4) as address:
        clock = time.monotonic()
        finish(start("sweep", "sweep.yaml", "--address", address), 6000)
        print(f"4 nodes: {time.monotonic() - clock:.0f} s")
    assert asked_for <= set(found())
    logs = [path.read_text() for path in Path("runs").rglob("sweep.log")]
    used = {line.rpartition("worker ")[2] for log in logs for line in log.splitlines() if line.startswith("== ")}
    assert len(used) > 1
