"""Records out of W&B: offline logs as W&B writes them, and a stand-in for its API."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from record_factory import file_record, make_record

from bench.cli import main as cli
from bench.errors import UserError
from bench.leaderboard.collect import BLOCK, HEAD, PIECE, collect
from bench.records.record import Record

ROOT = Path(__file__).parents[2]


def log_bytes(*messages: bytes) -> bytes:
    """W&B's transaction log: a head, then LevelDB's log format."""
    out = bytearray(HEAD + b"\x00\x00\x00")
    for message in messages:
        first = True
        while True:
            room = BLOCK - len(out) % BLOCK
            if room < PIECE.size:
                out += bytes(room)
                continue
            part, message = message[: room - PIECE.size], message[room - PIECE.size :]
            kind = (1 if not message else 2) if first else (4 if not message else 3)
            out += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
            if not message:
                break
    return bytes(out)


def offline_run(folder: Path, record: Record, kind: str = "record", filler: int = 0) -> Path:
    """A run folder with a log that names a record."""
    wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    run = folder / "wandb" / f"offline-run-{len(list(folder.rglob('*.wandb')))}"
    staged = run / "staged.json"
    record.write(staged)
    message = wandb_internal_pb2.Record()
    artifact = message.request.log_artifact.artifact
    artifact.type = kind
    entry = artifact.manifest.contents.add()
    entry.path, entry.local_path = "record.json", str(staged)
    entry.digest = base64.b64encode(hashlib.md5(staged.read_bytes()).digest()).decode()
    other = wandb_internal_pb2.Record()
    other.output_raw.line = "x" * filler
    (run / "run-a.wandb").write_bytes(log_bytes(other.SerializeToString(), message.SerializeToString()))
    return run


@pytest.mark.parametrize("filler", [1, 40_000, BLOCK - 30, BLOCK * 3])
def test_records_of_offline_runs_are_found_across_blocks(tmp_path: Path, filler: int) -> None:
    record = make_record()
    run = offline_run(tmp_path, record, filler=filler)
    offline_run(tmp_path, make_record(1), kind="model")
    assert collect(tmp_path, None, tmp_path / "results", tmp_path) == [run / "staged.json"]


def test_what_is_filed_is_not_added_again_and_trials_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    filed, fresh, trial = make_record(0), make_record(1), make_record(2, limited=True)
    file_record(results, filed)
    runs = [offline_run(tmp_path / "runs", record) for record in (filed, fresh, trial, fresh)]
    assert collect(tmp_path / "runs", None, results, tmp_path) == [runs[1] / "staged.json"]
    reason = "limited: measured or trained on part of the data, or tuned from a training that was not finished"
    assert capsys.readouterr().err == f"skipped offline-run-2: {reason}\n"
    # What was filed before records had all their fields is filed as well.
    old = filed.model_dump(mode="json")
    del old["training"]["arithmetic"], old["extras"]
    (results / filed.path()).write_text(json.dumps(old))
    assert collect(tmp_path / "runs", None, results, tmp_path) == [runs[1] / "staged.json"]
    (results / filed.path()).write_bytes(b"\xff not UTF-8")
    assert runs[0] / "staged.json" in collect(tmp_path / "runs", None, results, tmp_path)


def test_a_killed_run_and_damage(tmp_path: Path) -> None:
    run = offline_run(tmp_path, make_record())
    log, whole = run / "run-a.wandb", (run / "run-a.wandb").read_bytes()
    for data, reason in (
        (whole[:-1], "no W&B run with a record"),
        (b"other", "not a W&B log"),
        (whole[:7] + struct.pack("<IHB", 0, 3, 1) + b"\xff\xff\xff", "not a readable W&B log"),
    ):
        log.write_bytes(data)
        with pytest.raises(UserError, match=reason):
            collect(tmp_path, None, tmp_path, tmp_path)
    log.write_bytes(whole)
    (run / "staged.json").write_text("{}")
    with pytest.raises(UserError, match="was changed"):
        collect(tmp_path, None, tmp_path, tmp_path)
    (run / "staged.json").unlink()
    with pytest.raises(UserError, match="is missing"):
        collect(tmp_path, None, tmp_path, tmp_path)


class FakeApi:
    """What is used of ``wandb.Api``."""

    def __init__(self, records: list[Record], fails: bool = False) -> None:
        self.records, self.fails, self.asked = records, fails, ""

    def runs(self, project: str) -> list[Any]:
        self.asked = project
        if self.fails:
            raise ConnectionError("no\nroute")
        return [SimpleNamespace(id=f"run{k}", logged_artifacts=lambda r=r: self._artifacts(r))
                for k, r in enumerate(self.records)]  # fmt: skip

    @staticmethod
    def _artifacts(record: Record) -> list[Any]:
        def download(root: str) -> str:
            record.write(Path(root) / "record.json")
            return root

        return [SimpleNamespace(type="run_table", download=None), SimpleNamespace(type="record", download=download)]


def test_records_of_a_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeApi([make_record(0), make_record(1), make_record(2, code__dirty=True)])
    monkeypatch.setattr("wandb.Api", lambda timeout: api)
    paths = collect(None, "me/project", tmp_path / "results", tmp_path)
    assert api.asked == "me/project"
    assert [path.read_text() for path in paths] == [make_record(k).dumps() for k in range(2)]
    assert "skipped me/project/run2: code.dirty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("project", "api", "reason"),
    [
        ("project", FakeApi([]), "give ENTITY/PROJECT"),
        ("a/b/c", FakeApi([]), "give ENTITY/PROJECT"),
        ("a/b\n", FakeApi([]), "give ENTITY/PROJECT"),
        ("me/project", FakeApi([]), "no W&B run with a record"),
        ("me/project", FakeApi([], fails=True), "ConnectionError: no route"),
    ],
)
def test_what_goes_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str, api: FakeApi, reason: str
) -> None:
    monkeypatch.setattr("wandb.Api", lambda timeout: api)
    with pytest.raises(UserError) as caught:
        collect(None, project, tmp_path, tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_files_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record()
    offline_run(tmp_path / "runs", record)
    (tmp_path / "results").mkdir()
    arguments = ["leaderboard", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]
    arguments += ["--reported", str(ROOT / "leaderboards/reported"), "--wandb-dir", str(tmp_path / "runs")]
    assert cli.main([*arguments, "--check"]) == 2
    assert cli.main(arguments) == 0
    assert (tmp_path / "results" / record.path()).read_text() == record.dumps()
    assert cli.main(arguments) == 0, "again: nothing new"
    assert cli.main([*arguments[:-1], str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
