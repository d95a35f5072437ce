"""``python -m bench leaderboard``: files new records, regenerates the pages, or checks that they are fresh."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.errors import UserError
from bench.files import require_writable, write_atomically
from bench.leaderboard.aggregate import aggregate
from bench.leaderboard.curves import FOLDER, Picture
from bench.leaderboard.lines import to_json
from bench.leaderboard.load import load
from bench.leaderboard.render import is_generated, render
from bench.leaderboard.reported import load_reported


def run(results: Path, reported: Path, out: Path, check: bool, json_rows: bool, add: Sequence[Path]) -> int:
    """Runs the command: reads, checks and renders everything before it writes anything.

    Args:
        results: folder of committed records.
        reported: folder of the papers' numbers.
        out: folder of the generated files; each ``notes/<data set>.md`` in it gets a link.
        check: write nothing; print the names of generated files that are stale, missing or surplus.
        json_rows: print the rows as JSON; the pages are then written only if ``add`` brings new records.
        add: records of runs, filed under ``results`` first.

    Returns:
        1 if ``check`` finds something, else 0.

    Raises:
        UserError: a record or a file of reported numbers is refused; one line for each reason.
    """
    if check and add:
        raise UserError("leaderboard: --check writes nothing, so it cannot be used with --add")
    filed, new = load(results, add)
    papers = load_reported(reported)
    rows = aggregate([*filed, *new], papers)
    files = render(rows, papers, {path.stem for path in out.glob("notes/*.md")})
    # With --json, only the rows go to standard output.
    report = sys.stderr if json_rows else sys.stdout
    if json_rows:
        print(to_json(rows))
    findings = _differences(out, files)
    if check:
        for name, state in findings.items():
            print(f"{out / name}: {state}", file=report)
        return 1 if findings else 0
    if json_rows and not new:
        return 0
    contents = {name: _content(files[name]) for name, state in findings.items() if state != "surplus"}
    if new:
        require_writable(results, "--results")
        require_writable(out)
    done = []
    for record in new:
        record.write(results / record.path())
        done.append(f"filed {results / record.path()}")
    for name, state in findings.items():
        if state == "surplus":
            (out / name).unlink()
        else:
            write_atomically(out / name, contents[name])
        done.append(f"{'removed' if state == 'surplus' else 'wrote'} {out / name}")
    # Printed last: if the reader stops (``| head -1``), no page must be left stale.
    print(*(done or [f"{out}: up to date"]), sep="\n", file=report)
    return 0


def _content(file: str | Picture) -> str:
    return file if isinstance(file, str) else file.svg()


def _is_fresh(path: Path, file: str | Picture) -> bool:
    if isinstance(file, str):
        return path.read_bytes() == file.encode()
    return file.is_in(path.read_text(encoding="utf-8", errors="replace"))


def _differences(out: Path, files: Mapping[str, str | Picture]) -> dict[str, str]:
    """Compares what is on disk with what should be: names to ``missing``, ``stale`` or ``surplus``."""
    found = {}
    for name, file in files.items():
        if not (out / name).is_file():
            found[name] = "missing"
        elif not _is_fresh(out / name, file):
            found[name] = "stale"
    for path in (*out.glob("*"), *out.glob(f"{FOLDER}/*")):
        name = path.relative_to(out).as_posix()
        if name not in files and is_generated(path):
            found[name] = "surplus"
    return dict(sorted(found.items()))
