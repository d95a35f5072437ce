"""The offline W&B run holds metrics, the curve as table and picture, and the record as an artifact."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import wandb
from conftest import TINY

from bench.run.loggers import why_offline


def read_offline_run(folder: Path) -> list[Any]:
    """All records of the transaction log that ``wandb sync`` would upload.

    The file is a 7-byte head, then LevelDB's log format: blocks of 32 KiB, in them pieces of
    (checksum, length, kind) and data, where kinds 1 to 4 are a whole record, its first, a middle and its last piece.
    """
    from wandb.proto import wandb_internal_pb2

    data = next(folder.glob("wandb/offline-run-*/*.wandb")).read_bytes()
    assert data[:4] == b":W&B"
    position, pieces, records = 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        pieces += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            records.append(record)
            pieces = b""
    return records


def test_offline_run_is_complete(bench):
    result = bench("fit", *TINY[:-1], "wandb", "--out", "run")
    assert result.status == 0, result.err
    wandb.teardown()  # as at the end of a command: waits for W&B's process, which writes the file
    records = read_offline_run(Path("run"))
    history: dict[str, Any] = {}
    for record in records:
        for item in record.history.item:
            history[".".join(item.nested_key) or item.key] = json.loads(item.value_json)
    accuracy = json.loads(Path("run/record.json").read_text())["snn"][2]["top1"]
    kinds = [record.WhichOneof("record_type") for record in records]
    assert history.get("snn/acc@T=4") == pytest.approx(accuracy), (result.err, sorted(history), kinds)
    assert history["snn/curve._type"] == "table-file"
    assert history["snn/curve_picture._type"] == "image-file"
    files = {path.name: path for path in Path("run/wandb").rglob("*") if path.is_file()}
    table = json.loads(next(path for name, path in files.items() if name.endswith(".table.json")).read_text())
    assert [row[0] for row in table["data"]] == [1, 2, 4]
    picture = next(path for name, path in files.items() if name.endswith(".png")).read_bytes()
    assert picture.startswith(b"\x89PNG")
    artifacts = [record.request.log_artifact.artifact for record in records if record.request.HasField("log_artifact")]
    artifacts += [record.artifact for record in records if record.HasField("artifact")]
    entries = {entry.path: entry for artifact in artifacts if artifact.type == "record"
               for entry in artifact.manifest.contents}  # fmt: skip
    assert Path(entries["record.json"].local_path).read_bytes() == Path("run/record.json").read_bytes()
    config = next(record.run.config for record in records if record.HasField("run"))
    assert {update.key for update in config.update} >= {"method", "arch", "model"}
    assert Path("run/csv/version_0/metrics.csv").exists(), "the CSV log is always there"


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A user's home folder with nothing in it, whose W&B settings are read anew."""
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_") or name in ("NETRC", "HTTPS_PROXY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def network():
    """A port of this machine that answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(9)
        yield server.getsockname()[1]


def test_no_key_or_no_network_means_offline_and_the_reason_is_said(monkeypatch, home):
    assert "no key for" in why_offline()
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "127.0.0.1:9 does not answer" in why_offline()


def test_the_key_that_a_login_files_is_found(home, network):
    """For the server of ``wandb login --host``, which W&B keeps in its own settings."""
    (home / ".netrc").write_text(f"machine 127.0.0.1:{network}\n  login user\n  password {'x' * 40}\n")
    (home / ".config/wandb").mkdir(parents=True)
    (home / ".config/wandb/settings").write_text(f"[default]\nbase_url = http://127.0.0.1:{network}\n")
    assert why_offline() is None


def test_a_network_behind_a_proxy_is_one(monkeypatch, home, network):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.invalid")
    assert "wandb.invalid:443 does not answer" in why_offline()
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{network}")
    assert why_offline() is None


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("WANDB_PROJECT", "team/proj", "team/proj"),
        ("WANDB_MODE", "Offline", "mode"),
        ("WANDB_BASE_URL", "localhost:8080", "base_url"),
        ("WANDB_RUN_ID", "a/b", "Run ID"),
        ("WANDB_INIT_TIMEOUT", "1m", "init_timeout"),
    ],
)
def test_settings_that_wandb_refuses_are_one_line_before_anything_is_lost(
    bench, home, monkeypatch, trained, variable, value, word
):
    shutil.copytree(trained, "run")
    monkeypatch.setenv(variable, value)
    result = bench("fit", *TINY, "--logger", "wandb", "--out", "run", "--overwrite")
    assert result.status == 2 and len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("error: W&B: ") and word in result.err
    assert {path.name for path in Path("run").iterdir()} >= {path.name for path in trained.iterdir()}
