"""Files that are whole or absent."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bench.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes to a temporary file beside ``path``, flushes it to disk, then renames it into place.

    Raises:
        UserError: the folder cannot be written; nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private to the user; results are meant to be shared.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def require_writable(folder: Path) -> None:
    """Fails now rather than after hours of training.

    Raises:
        UserError: ``folder`` cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise UserError(f"--out {str(folder)!r}: cannot be written ({error})") from error
