"""Atomic writes, locks and checks of folders."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import BusyError, UserError


def expand(path: str | Path) -> Path:
    """Expands ``~`` and ``$HOME``, because no shell does it in YAML and in ``--out=~/x``."""
    return Path(os.path.expandvars(path)).expanduser()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes to a temporary file beside ``path``, flushes it to disk, then renames it into place.

    Raises:
        UserError: the file cannot be written; nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        try:
            _write(path, data)
        except (FileNotFoundError, FileExistsError):  # the folder was removed in the meantime: create it again
            _write(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _write(path: Path, data: bytes) -> None:
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private to the user, but results are meant to be shared.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def require_folder(option: str, folder: Path) -> None:
    """Refuses a missing folder; otherwise a mistyped name would look like an empty folder.

    Raises:
        UserError: ``folder``, given by ``option``, does not exist or is not a folder.
    """
    if not folder.is_dir():
        raise UserError(f"{option} {folder}: {'not a folder' if folder.exists() else 'folder not found'}")


def require_absent(*paths: Path) -> None:
    """Refuses to replace a file.

    Raises:
        UserError: one of the files exists; the message names the first.
    """
    for path in paths:
        if path.exists():
            raise UserError(f"{path} already exists; give another --out, or --overwrite")


def require_writable(folder: Path, option: str = "--out") -> None:
    """Checks that a folder can be written, so that a run fails at once and not after hours of training.

    Args:
        folder: made if missing.
        option: names it, for the message.

    Raises:
        UserError: ``folder`` cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {str(folder)!r}: cannot be written ({error})") from error


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock file that only one process can hold. The system frees it when the process ends, even if killed.

    The file is never removed: otherwise two processes could lock two files of the same name.
    filelock does not fit: it uses flock, which forked loader processes would keep after this process was killed.

    Args:
        path: created if missing.
        wait: wait until another process frees it, instead of refusing.

    Raises:
        BusyError: another process holds it.
        UserError: it cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # POSIX locks belong to the process: loader and logging processes that it forks do not keep them.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError) as error:
            raise BusyError(
                f"{path.parent}: another process is using this folder; wait for it, or choose another"
            ) from error
        except OSError:
            pass  # the file system has no locks: continue without one
        yield
    finally:
        os.close(descriptor)
