"""Notes when papers' numbers were compared with their sources: ``python docs/reviewed.py`` (``--check`` only looks).

``leaderboards/reported/CHECKSUMS`` has a line for each file: SHA-256, the day of its review, name. A file that was
changed since has another checksum; once its numbers have been compared with the tables that they stand in, this writes
its line anew with today's date and leaves those of the others.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import sys
from pathlib import Path

REPORTED = Path(__file__).resolve().parents[1] / "leaderboards" / "reported"


def reviewed(folder: Path, today: str) -> tuple[str, list[str]]:
    """Returns the new text of a folder's ``CHECKSUMS``, and the names of the files whose entry changes."""
    noted = folder / "CHECKSUMS"
    lines = [line.split(maxsplit=2) for line in noted.read_text().splitlines()] if noted.is_file() else []
    before = {name: (digest, day) for digest, day, name in lines}
    after = {}
    for path in sorted(folder.glob("*.yaml")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        known, day = before.get(path.name, ("", ""))
        after[path.name] = (digest, day if known == digest else today)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return "".join(f"{digest}  {day}  {name}\n" for name, (digest, day) in after.items()), changed


def main(folder: Path = REPORTED) -> int:
    """Writes the checksums; with ``--check``, returns 1 if a file was changed since its review."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    checking = parser.parse_args().check
    text, changed = reviewed(folder, datetime.date.today().isoformat())
    for name in changed:
        print(f"{name}: {'changed since its review' if checking else 'noted as reviewed today'}")
    if not checking:
        (folder / "CHECKSUMS").write_text(text)
    return int(checking and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
