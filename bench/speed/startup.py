"""Commands that compute nothing, in seconds from start to end, against what a user waits for without noticing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.errors import UserError
from bench.records.record import read_record
from bench.speed.figures import Figure

LEADERBOARDS = Path("leaderboards")
RECORDS = 1000
# Seconds that each may take.
WANTED = {"--help": 0.5, "list": 0.5, "leaderboard": 3.0}


def many_records(folder: Path) -> None:
    """Fills a folder with :data:`RECORDS` records: the committed ones, each with other seeds and checkpoints.

    Raises:
        UserError: there are no committed records here.
    """
    committed = [read_record(path) for path in sorted((LEADERBOARDS / "results").rglob("*.json"))]
    if not committed:
        raise UserError(f"{LEADERBOARDS / 'results'}: no records; run this in a checkout of the repository")
    for number in range(RECORDS):
        seed, record = number // len(committed), committed[number % len(committed)]
        text = f"{record.checkpoint.sha256}/{seed}"
        checkpoint = record.checkpoint.model_copy(update={"sha256": hashlib.sha256(text.encode()).hexdigest()})
        copy = record.model_copy(update={"seed": seed, "checkpoint": checkpoint})
        copy.write(folder / copy.path())


def seconds(words: Sequence[str]) -> float:
    """That ``python -m bench`` takes with these arguments, from start to end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "bench", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def startup(pairs: int) -> list[Figure]:
    """Seconds of each of :data:`WANTED`, the leaderboard with 1,000 records.

    Args:
        pairs: measurements of each.
    """
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        results, out = Path(folder, "results"), Path(folder, "out")
        many_records(results)
        options = {"leaderboard": ["--results", str(results), "--out", str(out)]}
        for command, wanted in WANTED.items():
            words = [command, *options.get(command, [])]
            name = f"python -m bench {command}" + (f", {RECORDS:,} records" if command == "leaderboard" else "")

            figure = Figure(name, f"{wanted:g} s", "s")
            figures.append(figure.measure(partial(seconds, words), partial(float, wanted), pairs))
    return figures
