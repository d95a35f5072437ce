"""Collects record artifacts of W&B runs, from folders of offline runs or from W&B's service, for filing."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.files import require_folder
from bench.leaderboard.load import reasons
from bench.leaderboard.text import one_line
from bench.records.record import Record, read_record

# The type and file name that a run gives its artifact.
TYPE, NAME = "record", "record.json"
# LevelDB's log format, which W&B's transaction log has after a header of 7 bytes: blocks of 32 KiB with pieces. A piece
# has checksum, length, kind and data. Kinds 1 to 4 are a whole message, and its first, a middle and its last piece.
HEAD, BLOCK, PIECE = b":W&B", 32768, struct.Struct("<IHB")
START = 7
LAST_PIECES = (1, 4)
SECONDS = 60


@dataclass(frozen=True)
class Found:
    """A record and the run it comes from, for messages."""

    run: str
    path: Path


def collect(folder: Path | None, project: str | None, results: Path, into: Path) -> list[Path]:
    """Collects the records of W&B runs that can be filed and have not been filed yet.

    Runs that may not be filed are skipped with a message, because a project holds trials beside results.

    Args:
        folder: searched, with all subfolders, for runs that W&B kept on disk.
        project: ``ENTITY/PROJECT`` of W&B's service.
        results: folder of filed records.
        into: folder for downloaded records.

    Returns:
        Paths for ``leaderboard --add``.

    Raises:
        UserError: a folder or project is invalid, no record was found, or W&B does not answer.
    """
    found: list[Found] = []
    if folder is not None:
        found += _on_disk(folder)
    if project is not None:
        found += _online(project, into)
    if not found:
        raise UserError(f"{folder or project}: no W&B run with a record found; add the run's record.json with --add")
    return _to_be_filed(found, results)


def _to_be_filed(found: Sequence[Found], results: Path) -> list[Path]:
    chosen: dict[str, Path] = {}
    for item in sorted(found, key=lambda item: (item.run, str(item.path))):
        try:
            record = read_record(item.path)
            if why := "; ".join(reasons(record)):
                raise UserError(why)
        except UserError as error:
            print(one_line(f"skipped {item.run}: {error}", 400), file=sys.stderr)
            continue
        # The same run may be on disk and on the service, or already filed; another one of that name is refused later.
        if not _is_filed(record, results / record.path()):
            chosen.setdefault(record.dumps(), item.path)
    return list(chosen.values())


def _is_filed(record: Record, path: Path) -> bool:
    """Whether this run is filed; the file may lack fields that were added to records later."""
    if not path.is_file():
        return False
    try:
        return read_record(path) == record
    except UserError:
        return False  # a damaged file is reported when the folder is read


def _on_disk(folder: Path) -> Iterator[Found]:
    require_folder("--wandb-dir", folder)
    for log in sorted(folder.rglob("*.wandb")):
        run = log.parent.name
        for path, digest in _artifact_files(log):
            if not path.is_file():
                raise UserError(one_line(f"{log}: its record {path} is missing; add the run's record.json with --add"))
            if base64.b64encode(hashlib.md5(path.read_bytes(), usedforsecurity=False).digest()).decode() != digest:
                raise UserError(one_line(f"{log}: its record {path} was changed after the run"))
            yield Found(run, path)


def _artifact_files(log: Path) -> Iterator[tuple[Path, str]]:
    """Yields local path and MD5 of each record that a run logged."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    seen = set()
    for message in _messages(log):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(message)
        except DecodeError as error:
            raise UserError(one_line(f"{log}: not a readable W&B log ({error})")) from error
        # Offline, an artifact is a request; an uploaded one is a record.
        held = [record.request.log_artifact.artifact] if record.request.HasField("log_artifact") else []
        held += [record.artifact] if record.HasField("artifact") else []
        for artifact in held:
            for entry in artifact.manifest.contents if artifact.type == TYPE else ():
                if entry.path == NAME and entry.local_path not in seen:
                    seen.add(entry.local_path)
                    yield Path(entry.local_path), entry.digest


def _messages(log: Path) -> Iterator[bytes]:
    try:
        data = log.read_bytes()
    except OSError as error:
        raise UserError(one_line(f"{log}: cannot be read ({error.strerror})")) from error
    if not data.startswith(HEAD):
        raise UserError(one_line(f"{log}: not a W&B log"))
    position, pieces = START, b""
    # The log of a killed run may end in the middle of a message, which is skipped.
    while position + PIECE.size <= len(data):
        rest = BLOCK - position % BLOCK
        if rest < PIECE.size:
            position += rest
            continue
        _, length, kind = PIECE.unpack_from(data, position)
        position += PIECE.size
        pieces += data[position : position + length]
        if position + length > len(data):
            return
        position += length
        if kind in LAST_PIECES:
            yield pieces
            pieces = b""


def _online(project: str, into: Path) -> Iterator[Found]:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", project, re.ASCII):
        raise UserError(one_line(f"--wandb {project}: give ENTITY/PROJECT"))
    try:
        import wandb

        for number, run in enumerate(wandb.Api(timeout=SECONDS).runs(project)):
            for part, artifact in enumerate(run.logged_artifacts()):
                if artifact.type == TYPE:
                    folder = into / f"{number}-{part}"
                    artifact.download(root=str(folder))
                    yield Found(f"{project}/{run.id}", folder / NAME)
    except UserError:
        raise
    except Exception as error:  # W&B raises its own, requests' and GraphQL's
        raise UserError(one_line(f"--wandb {project}: {type(error).__name__}: {error}", 400)) from error
