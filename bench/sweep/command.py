"""``python -m bench sweep``: plans, prints, or runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.errors import UserError
from bench.files import require_writable
from bench.leaderboard.load import reasons
from bench.records.record import config_sha256, duration, read_record
from bench.run.build import build_untrained
from bench.run.source import trained_with
from bench.sweep.estimate import Estimator
from bench.sweep.plan import Job, Planner, plain
from bench.sweep.scheduler import Resources, Scheduler
from bench.sweep.sweep_file import read_sweep


def run(file: Path, out: Path, committed: Path, resources: Resources, dry_run: bool, as_commands: bool) -> int:
    """Plans a sweep file and prints or runs it.

    Args:
        file: see :class:`bench.sweep.sweep_file.SweepFile`.
        out: folder of all runs.
        committed: folder of further records to estimate from.
        resources: what Ray is asked for.
        dry_run: only print the plan.
        as_commands: only print the commands.

    Returns:
        0, or 1 if a run failed.

    Raises:
        UserError: bad input.
        Interrupted: by a signal; the same command goes on.
    """
    ranges = (
        ("--cpus", resources.cpus, 1),
        ("--cpus-per-run", resources.cpus_per_run, 0),
        ("--gpus-per-run", resources.gpus_per_run, 0),
        ("--retries", resources.retries, 0),
    )
    for option, value, least in ranges:
        if value is not None and not least <= value < 1e6:
            raise UserError(f"{option} {value}: must be a number of at least {least}")
    if resources.address is not None and resources.cpus is not None:
        raise UserError("--cpus is for a Ray of its own; the cluster at --address has its own number")
    if (resources.gpus_per_run or 0) > 1 and resources.gpus_per_run != int(resources.gpus_per_run or 0):
        raise UserError(f"--gpus-per-run {resources.gpus_per_run}: above 1 it must be a whole number")
    jobs = Planner(read_sweep(file), out).plan()
    if as_commands:
        _print_commands(jobs)
        return 0
    if dry_run:
        _print_plan(jobs, Estimator([out, committed]))
        return 0
    _check(jobs)
    require_writable(out)
    failed = Scheduler(jobs, resources).run()
    for lost in failed:
        print(f"failed: {lost.job.title}: {lost.note}")
    for reason, titles in _refused(jobs).items():
        rest = f" and {len(titles) - 3} more" if len(titles) > 3 else ""
        print(f"never ranked: {', '.join(titles[:3])}{rest}: {reason}")
    print(f"{len(jobs) - len(failed)} of {len(jobs)} runs recorded under {out}")
    return 1 if failed else 0


def _check(jobs: Sequence[Job]) -> None:
    """Refuses a sweep before any run begins if an option is out of range or a ``--ckpt`` does not fit.

    The data need not be on this machine.
    """
    specs, tried = {job.folder: job.spec for job in jobs}, set()
    for job in jobs:
        if job.state() == "recorded":
            continue
        source = None if job.source is None else specs[job.source]
        try:
            kind, options = trained_with(job.spec, source)
            # Seeds differ in nothing that is checked, and making a large net takes seconds.
            asked = (job.spec.sha256, job.spec.local.T, kind, config_sha256(options))
            if asked not in tried:
                build_untrained(job.spec, kind, options, load=False)
            tried.add(asked)
        except UserError as error:
            raise UserError(f"{job.title}: {error}") from error


def _refused(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Why the leaderboard will not take records that are there, and which: better read now than after weeks."""
    found: dict[str, list[str]] = {}
    for job in jobs:
        if job.state() == "recorded":
            for reason in reasons(read_record(job.folder / "record.json")):
                found.setdefault(reason, []).append(job.title)
    return found


def _print_commands(jobs: Sequence[Job]) -> None:
    due = [job for job in jobs if job.state() != "recorded"]
    first = [job for job in due if job.source is None]
    then = [job for job in due if job.source is not None]
    for heading, part in (("in any order, at the same time", first), ("once all of the above have ended", then)):
        if part:
            print(f"# {heading}")
            for job in part:
                print(shlex.join(plain(job)))


def _print_plan(jobs: Sequence[Job], estimator: Estimator) -> None:
    table = Table(title=f"{len(jobs)} runs")
    for heading in ("run", "state", "converts", "estimate"):
        table.add_column(heading, justify="right" if heading == "estimate" else "left", overflow="fold")
    total, unknown, scaled = 0.0, 0, False
    titles = {job.folder: job.title for job in jobs}
    for job in jobs:
        state, estimate = job.state(), estimator.seconds(job)
        shown = "-" if state == "recorded" else "not measured yet"
        if state != "recorded" and estimate:
            total += estimate.seconds
            scaled |= estimate.scaled
            shown = duration(estimate.seconds) + (" *" if estimate.scaled else "")
        unknown += state != "recorded" and estimate is None
        table.add_row(job.title, state, titles[job.source] if job.source else "", shown)
    Console(width=160).print(table)
    due = sum(job.state() != "recorded" for job in jobs)
    known = f"{duration(total)} one after the other, from records made on {', '.join(sorted(estimator.devices))}"
    known = known if due > unknown else "nothing to estimate from"
    rest = f"; {unknown} not measured yet" if unknown else ""
    if scaled:
        print("* measured with another net, and scaled by multiply-accumulates")
    print(f"{due} of {len(jobs)} to run: {known if due else 'none'}{rest}")
