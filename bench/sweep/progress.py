"""What a running sweep shows: a table that follows the runs' output, or without a terminal a line for each event."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from bench.records.record import duration
from bench.sweep.plan import Job

Phase = Literal["recorded", "waiting", "queued", "running", "done", "failed"]
LOG = "sweep.log"
# Rows of a table that must fit on a screen.
ROWS = 30


@dataclass
class Progress:
    """The progress of one job.

    Attributes:
        job: the run.
        phase: its state, such as ``waiting`` for its source net or ``queued`` for a free worker.
        attempts: how often it has been started.
        busy: how often it ended because another process was using its folder.
        note: why it failed, or is tried again.
        started: start of the current attempt, in seconds of ``time.time``.
        command: command of the current attempt.
        not_before: when it may be tried again, in seconds of ``time.time``.
    """

    job: Job
    phase: Phase = "waiting"
    attempts: int = 0
    busy: int = 0
    note: str = ""
    started: float = 0.0
    command: list[str] = field(default_factory=list)
    not_before: float = 0.0

    @property
    def log(self) -> Path:
        """What the run prints, all attempts one after the other."""
        return self.job.folder / LOG

    def submitted(self, command: list[str]) -> None:
        """Notes that an attempt waits for a worker."""
        self.phase, self.started, self.command = "queued", time.time(), command
        self.attempts += 1

    def look(self) -> None:
        """A queued run is running once its worker has written to the log."""
        if self.phase == "queued" and self.log.exists() and self.log.stat().st_mtime >= self.started:
            self.phase, self.started = "running", time.time()

    def last_line(self) -> str:
        """The last line that the run printed."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Display:
    """Shows a table, or plain lines if standard output is not a terminal."""

    def __init__(self, runs: Sequence[Progress]) -> None:
        self.runs, self.started = runs, time.monotonic()
        self.live = Live(console=Console(), refresh_per_second=2) if sys.stdout.isatty() else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.update(self._table())
            self.live.stop()

    def event(self, run: Progress, what: str) -> None:
        """Says that something happened to a run."""
        line = f"{self.summary()}: {run.job.title}: {what}"
        if self.live:
            self.live.console.print(escape(line))
        else:
            print(line, flush=True)

    def refresh(self) -> None:
        """Looks at the runs and draws the table anew."""
        for run in self.runs:
            run.look()
        if self.live:
            self.live.update(self._table())

    def summary(self) -> str:
        """``5/30 recorded``."""
        phases = Counter(run.phase for run in self.runs)
        return f"{phases['done'] + phases['recorded']}/{len(self.runs)} recorded"

    def _table(self) -> Table:
        phases = Counter(run.phase for run in self.runs)
        counts = ", ".join(f"{count} {phase}" for phase, count in phases.items())
        table = Table(title=f"{counts}; {duration(time.monotonic() - self.started)}", title_justify="left")
        for heading in ("run", "phase", "attempt", "time", "last line"):
            table.add_column(heading, no_wrap=True, overflow="ellipsis")
        shown = [run for run in self.runs if run.phase == "running"] + [r for r in self.runs if r.phase == "failed"]
        for run in shown[:ROWS]:
            spent = duration(time.time() - run.started) if run.phase == "running" else ""
            note = run.last_line() if run.phase == "running" else run.note
            table.add_row(escape(run.job.title), run.phase, str(run.attempts), spent, escape(note))
        return table
