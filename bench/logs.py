"""Loggers, and what W&B gets at the end of a run."""

from __future__ import annotations

import netrc
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from bench.records import Record


def make_loggers(kind: str, out: Path, name: str, config: dict[str, Any]) -> list[Logger]:
    """Makes the loggers of a run.

    ``csv`` writes ``csv/version_<n>/metrics.csv``, a new one for each part of a resumed run; ``wandb`` does so too
    and logs to W&B; ``none`` writes nothing.

    Args:
        kind: one of the three.
        out: the run's folder.
        name: the run's name on W&B.
        config: the resolved configuration.
    """
    if kind == "none":
        return []
    loggers: list[Logger] = [CSVLogger(out, name="csv", flush_logs_every_n_steps=1)]
    if kind == "wandb":
        disabled = os.environ.get("WANDB_MODE") == "disabled"
        mode: Any = "disabled" if disabled else "online" if wandb_reachable() else "offline"
        project = os.environ.get("WANDB_PROJECT", "ann2snn-bench")
        loggers.append(WandbLogger(name=name, save_dir=out, project=project, mode=mode, config=config, log_model=False))
    return loggers


def wandb_reachable() -> bool:
    """Whether there is a key and a network; without either W&B would prompt or hang."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host = url.hostname or "api.wandb.ai"
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(host):
        return False
    try:
        socket.create_connection((host, url.port or (80 if url.scheme == "http" else 443)), timeout=3).close()
    except OSError:
        return False
    return True


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def log_record(loggers: list[Logger], record: Record, path: Path) -> None:
    """Sends the accuracy-vs-T curve, as a table and as a picture, and the record as an artifact to W&B."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        import wandb  # slow to import and not needed otherwise

        columns = ["T", "warmup", "top1", "top5", "firing_rate", "quantised_top1", "synops", "energy_joule"]
        rows = [[getattr(point, column) for column in columns] for point in record.snn]
        logger.experiment.log(
            {
                "snn/curve": wandb.Table(columns=columns, data=rows),
                "snn/curve_picture": wandb.Image(draw_curve(record)),
            }
        )
        artifact = wandb.Artifact(f"record-{record.method.name}-{record.arch.name}-{record.data.name}", "record")
        artifact.add_file(str(path), name="record.json")
        logger.experiment.log_artifact(artifact)


def finish(loggers: list[Logger]) -> None:
    """Completes the logs, so that what is on disk is whole when the command ends."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def draw_curve(record: Record) -> Any:
    """A matplotlib figure of accuracy against T, with the ANN as a dashed line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    steps = [point.T for point in record.snn]
    axes.plot(steps, [100 * point.top1 for point in record.snn], "o-", label="SNN")
    twins = [(p.T, 100 * p.quantised_top1) for p in record.snn if p.quantised_top1 is not None]
    axes.plot([T for T, _ in twins], [top1 for _, top1 in twins], ":", label="quantised twin")
    axes.axhline(100 * record.ann.top1, linestyle="--", color="black", label="ANN")
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(T) for T in steps])
    axes.set(xlabel="T (time-steps)", ylabel="top-1 (%)")
    axes.set_title(f"{record.method.name}, {record.arch.name}, {record.data.name}")
    axes.legend()
    return figure
