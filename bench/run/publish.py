"""``publish``: what a run leaves in its folder, in the logs and on the screen."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger
from rich.console import Console
from rich.table import Table

from bench.files import lock, write_atomically
from bench.records.energy import ENERGY_MODEL
from bench.records.record import Options, Record
from bench.registry.methods import display
from bench.run.build import Trained
from bench.run.checkpoints import RECORD, WEIGHTS
from bench.run.loggers import finish, log_record


@contextmanager
def working_in(out: Path, trainer_options: Options) -> Iterator[None]:
    """Locks a run's folder and removes half-written files of a killed run.

    Args:
        out: the run's folder.
        trainer_options: of the Trainer.

    Raises:
        BusyError: another process writes there.
    """
    before = getattr(rank_zero_only, "rank", 0)
    if all(trainer_options.get(key) in (None, 1, "1") for key in ("devices", "num_nodes")):
        # A launcher of several runs (srun) gives each a rank in the environment, from which Lightning has taken it
        # when it was imported; in this run there is one process.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # lightning_utilities declares no type for it
    try:
        if getattr(rank_zero_only, "rank", 0) != 0:  # processes of one run share its folder
            yield
            return
        with lock(out / ".lock"):
            for stale in (*out.glob(".*.tmp"), *(out / "checkpoints").glob(".*.tmp")):
                stale.unlink(missing_ok=True)
            yield
    finally:
        rank_zero_only.rank = before  # type: ignore[attr-defined]  # as above


def keep_weights(net: Trained, out: Path) -> str:
    """Writes ``model.safetensors``, so that an interrupted evaluation does not lose the training.

    Returns:
        The file's SHA-256.
    """
    net.model.float()
    content = net.weights.to_safetensors()
    if getattr(rank_zero_only, "rank", 0) == 0:
        write_atomically(out / WEIGHTS, content)
    return hashlib.sha256(content).hexdigest()


def publish(record: Record, out: Path, loggers: Sequence[Logger]) -> Path:
    """Writes ``record.json``, completes the logs and prints the table.

    Returns:
        The record's path.
    """
    path = out / RECORD
    record.write(path)
    log_record(loggers, record, path)
    finish(loggers)
    print_result(record, path)
    return path


def print_result(record: Record, path: Path) -> None:
    """The table at the end of a run, and what can be done with it."""
    names = (display(record.method.name), record.arch.name, record.data.name, f"recipe {record.recipe.label}")
    table = Table(title=f"{', '.join(names)}, seed {record.seed}")
    waits = any(point.wait for point in record.snn)
    costs = ("SNN top-1 %", "top-5 %", "quantised ANN %", "firing rate", "SynOps (M)", "energy (uJ)")
    for heading in ("T", *["latency"] * waits, *costs):
        table.add_column(heading, justify="right")
    joules, none = ENERGY_MODEL.joules(record.arch.macs, 0), [""] * waits
    ann = (f"{100 * record.ann.top1:.2f}", f"{100 * record.ann.top5:.2f}")
    table.add_row("ANN", *none, *ann, "", "", "", f"{joules * 1e6:.1f}")
    for name, value in record.extras.items():
        table.add_row(name, *none, f"{100 * value:.2f}")
    for point in record.snn:
        steps = [f"{point.T}" + (f" + {point.warmup}" if point.warmup else "")]
        steps += [f"{point.latency}"] * waits
        twin = "" if point.quantised_top1 is None else f"{100 * point.quantised_top1:.2f}"
        assert point.synops is not None
        assert point.energy_joule is not None
        accuracies = (f"{100 * point.top1:.2f}", f"{100 * point.top5:.2f}", twin, f"{point.firing_rate:.4f}")
        table.add_row(*steps, *accuracies, f"{point.synops / 1e6:.2f}", f"{point.energy_joule * 1e6:.1f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    limited = " (limited: never ranked)" if record.limited else ""
    print(f"{record.protocol.num_eval_samples} images{limited}; record: {path}")
    following = [f"python -m bench diagnose --ckpt {shlex.quote(str(path.with_name(WEIGHTS)))} --T {record.snn[-1].T}"]
    following += [f"python -m bench leaderboard --add {shlex.quote(str(path))}"] * (not record.limited)
    print(f"next: {', or '.join(following)}")
