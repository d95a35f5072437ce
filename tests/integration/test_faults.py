"""Full disks, folders that cannot be written or vanish, damaged files, a W&B server that dies, two runs at once: each
really done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import LONG, TINY, same_as, sha256, start, timeless

from bench.errors import UserError
from bench.records.record import read_record
from bench.run import checkpoints
from bench.run import loggers as logs

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-euc")
own_mounts = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or shutil.which("unshare") is None
    or subprocess.run([*NAMESPACE, "mount -t tmpfs none /mnt"], capture_output=True).returncode != 0,
    reason="no mounts of one's own here",
)


def in_namespace(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script that may mount; ``"$@"`` is ``python -m bench`` with the arguments."""
    command = [*NAMESPACE, script, "sh", sys.executable, "-m", "bench", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)


def one_line(err: str, *words: str) -> None:
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and not [word for word in words if word not in last], err


def resume(uninterrupted: Path, out: Path) -> None:
    process = start("fit", *LONG, "--out", str(out), "--ckpt", "last")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    same_as(uninterrupted, out)


# ----------------------------------------------------------------------------------------------- disks and folders


@pytest.mark.slow
@own_mounts
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_elsewhere(uninterrupted):
    Path("full").mkdir()
    # Enough for two checkpoints (1.2 and 2.3 MB) and not for the next beside them.
    script = 'mount -t tmpfs -o size=5m none full; set +e; "$@"; status=$?; cp -r full/run copy; exit $status'
    done = in_namespace(script, "fit", *LONG, "--out", "full/run")
    assert done.returncode == 2, done.stdout + done.stderr
    one_line(done.stderr, "No space left on device")
    assert not list(Path("copy").rglob("*.tmp")) and not Path("copy/record.json").exists()
    checkpoints.read(Path("copy/checkpoints/last.ckpt"))
    resume(uninterrupted, Path("copy"))


def test_a_limit_on_file_size_does_so_too():
    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)); "
            "from bench.cli.main import main; sys.exit(main(sys.argv[1:]))")  # fmt: skip
    command = [sys.executable, "-c", code, "fit", *TINY, "--out", "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stdout + done.stderr
    one_line(done.stderr, "last.ckpt", "File too large")
    assert not list(Path("run").rglob("*.tmp")) and not list(Path("run").rglob("*.ckpt"))


@own_mounts
@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_a_read_only_folder_is_refused_at_once(trained, command):
    Path("there").mkdir()
    script = 'mount --bind there there; mount -o remount,ro,bind there; exec "$@"'
    arguments = {"fit": LONG, "evaluate": ["--ckpt", str(trained / "model.safetensors"), "--logger", "none"]}
    done = in_namespace(script, command, *arguments[command], "--out", "there/run")
    assert done.returncode == 2, done.stdout + done.stderr
    one_line(done.stderr, "there/run", "cannot be written", "Read-only file system")


@own_mounts
@pytest.mark.slow
def test_a_folder_that_becomes_read_only_in_mid_run_ends_it_in_one_line_and_it_goes_on(uninterrupted):
    Path("there").mkdir()
    script = """
        mount -t tmpfs none there
        set +e
        "$@" & run=$!
        while [ ! -e there/run/checkpoints/previous.ckpt ] && kill -0 $run; do sleep 0.05; done
        # Over itself: the mount below cannot become read-only while the run holds its lock's file open.
        mount --bind there there
        mount -o remount,ro,bind there
        wait $run; status=$?
        cp -r there/run copy
        exit $status
    """
    done = in_namespace(script, "fit", *LONG, "--out", "there/run")
    assert done.returncode == 2, done.stdout + done.stderr
    one_line(done.stderr, "Read-only file system")
    assert not Path("copy/record.json").exists()
    resume(uninterrupted, Path("copy"))


@pytest.mark.slow
def test_a_folder_that_vanishes_in_mid_run_is_made_anew(uninterrupted):
    out = Path("run")
    process = start("fit", *[item if item != "none" else "csv" for item in LONG], "--out", str(out))
    wait(lambda: (out / "checkpoints/previous.ckpt").exists(), process)
    vanished = Path("elsewhere")
    out.rename(vanished)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    same_as(uninterrupted, out)
    assert list(out.glob("csv/*/metrics.csv"))


def wait(what, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


# ------------------------------------------------------------------------------------------------- two runs at once


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_of_two_processes_that_write_the_same_record_one_is_refused(uninterrupted, command):
    arguments = {
        "fit": LONG,
        "evaluate": ["--ckpt", str(uninterrupted / "model.safetensors"), "--logger", "none", "--T", "1,2,4"],
    }
    processes = [start(command, *arguments[command], "--out", "run") for _ in range(2)]
    ends = sorted((process.communicate(timeout=250), process.returncode) for process in processes)
    ends.sort(key=lambda end: end[1])
    # 75: it may be tried again later. 2: so late that the first had ended.
    assert ends[0][1] == 0 and ends[1][1] in (2, 75), ends
    err = ends[1][0][1]
    assert ("another process is using" if ends[1][1] == 75 else "already holds a r") in err
    one_line(err)
    assert timeless(Path("run/record.json"))["checkpoint"] == timeless(uninterrupted / "record.json")["checkpoint"]


# -------------------------------------------------------------------------------------------------- damaged files


def test_a_fall_back_keeps_the_whole_checkpoint_whatever_comes_next(bench, uninterrupted, monkeypatch):
    shutil.copytree(uninterrupted, "run")
    folder = Path("run/checkpoints")
    good = sha256(folder / "previous.ckpt")
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:5000])

    def killed(*_: object) -> None:
        raise UserError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("bench.run.training.train", killed)
        result = bench("fit", *LONG, "--out", "run", "--ckpt", "last")
    assert result.status == 2 and "going on from run/checkpoints/previous.ckpt" in result.err
    assert sha256(folder / "last.ckpt") == sha256(folder / "previous.ckpt") == good
    resume(uninterrupted, Path("run"))


# ------------------------------------------------------------------------------------------------------------- W&B


class WandbServer:
    """As much of W&B's server as a run needs to believe that it is online."""

    def __init__(self) -> None:
        self.streamed = threading.Event()
        run = {"id": "a", "name": "run", "displayName": "run", "project": {"id": "p", "name": "p"}, "config": None}
        run["project"] |= {"entity": {"id": "e", "name": "e"}}
        answers = {
            "viewer": {"id": "v", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}},
            "serverInfo": {"cliVersionInfo": {"max_cli_version": "0.99.0"}, "features": []},
            "upsertBucket": {"bucket": run, "inserted": True},
        }
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.path.endswith("file_stream"):
                    server.streamed.set()
                content = json.dumps({"data": answers}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def die(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    server = WandbServer()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    yield server
    server.die()


@pytest.mark.slow
def test_a_wandb_server_that_dies_in_mid_run_costs_seconds_and_no_result(
    bench, uninterrupted, wandb_server, monkeypatch
):
    monkeypatch.setattr(logs, "FINISH_SECONDS", 5)
    threading.Thread(target=lambda: (wandb_server.streamed.wait(100), wandb_server.die()), daemon=True).start()
    arguments = [item if item != "none" else "wandb" for item in LONG]
    clock = time.monotonic()
    result = bench("fit", *arguments, "--out", str(Path("run").resolve()))
    assert result.status == 0, result.err
    assert wandb_server.streamed.is_set(), "it was online"
    assert time.monotonic() - clock < 200
    assert read_record(Path("run/record.json")).training.epochs == 6
    assert list(Path("run/wandb").glob("run-*/run-*.wandb")), "kept on disk for wandb sync"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pkill") is None, reason="no pkill")
def test_a_wandb_service_that_dies_in_mid_run_costs_no_result(uninterrupted, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = Path("run").resolve()
    arguments = [item if item != "none" else "wandb" for item in LONG]
    process = start("fit", *arguments, "--out", str(out))
    wait(lambda: (out / "checkpoints/previous.ckpt").exists(), process)
    subprocess.run(["pkill", "-9", "-P", str(process.pid), "wandb-core"], check=True)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0 and "Traceback" not in err, err
    assert err.count("W&B cannot be reached") == 1
    same_as(uninterrupted, out)


@pytest.mark.slow
def test_a_wandb_server_that_never_answers_means_offline(bench, monkeypatch):
    class Silent(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(503)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(logs, "INIT_SECONDS", 5)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{http.server_address[1]}")
    # W&B's service process may be of an earlier test, with that one's folder for relative paths.
    out = Path("run").resolve()
    result = bench("fit", *[item if item != "none" else "wandb" for item in TINY], "--out", str(out))
    http.shutdown()
    http.server_close()
    assert result.status == 0, result.err
    assert "logged offline" in result.err
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))


def test_a_run_needs_nobody_who_reads_its_lines():
    """A reader that leaves after one line, and a standard output that is closed, as cron's may be."""
    words = [sys.executable, "-m", "bench", "fit", *TINY, "--max_epochs", "1", "--T", "1"]
    left = subprocess.Popen([*words, "--out", "left"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert left.stdout.readline().startswith(b"training")
    left.stdout.close()
    closed = subprocess.Popen(["bash", "-c", 'exec "$@" >&-', "-", *words, "--out", "closed"])
    for process, folder in ((left, "left"), (closed, "closed")):
        assert process.wait(200) == 0
        assert read_record(Path(folder, "record.json")).training.epochs == 1


def test_a_full_disk_behind_standard_output_is_one_line():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "bench", "list"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "No space left" in done.stderr
