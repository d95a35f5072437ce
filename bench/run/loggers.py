"""Loggers, and what W&B gets at the end of a run."""

from __future__ import annotations

import contextlib
import functools
import netrc
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from lightning_utilities.core.rank_zero import rank_zero_only
from pydantic import ValidationError
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from bench.errors import UserError, first_error, in_one_line
from bench.records.record import Options, Record
from bench.registry.methods import display

if TYPE_CHECKING:  # slow to import and not needed otherwise
    from matplotlib.figure import Figure

# Seconds to wait for W&B at the beginning and at the end of a run; what is not uploaded by then stays on disk.
INIT_SECONDS, FINISH_SECONDS = 60, 120


def make_loggers(kind: str, out: Path, name: str, config: Options) -> list[Logger]:
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
    loggers: list[Logger] = [SturdyCSVLogger(out, name="csv", flush_logs_every_n_steps=1)]
    if kind == "wandb":
        loggers.append(_wandb_logger(out, name, config))
    return loggers


class SturdyCSVLogger(CSVLogger):
    """Creates its folder again if it was removed during a run, so that later metrics are not lost."""

    @rank_zero_only
    def save(self) -> None:
        """Writes what has been logged since the last time."""
        os.makedirs(self.log_dir, exist_ok=True)
        super().save()


class SturdyWandbLogger(WandbLogger):
    """Continues without W&B if the connection is lost. Results and metrics are on disk as well, so none is lost."""

    gone = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See :class:`pytorch_lightning.loggers.WandbLogger`."""
        self.attempt(lambda: super(SturdyWandbLogger, self).log_metrics(metrics, step), Path(self.save_dir or "."))

    def end(self) -> None:
        """Completes the run even if something could not be sent. Otherwise W&B may keep it open."""
        where, gone, self.gone = Path(self.save_dir or "."), self.gone, False
        self.attempt(self.experiment.finish, where, warn=not gone)

    def attempt(self, send: Callable[[], object], where: Path, warn: bool = True) -> None:
        """Calls ``send``. Warns at the first failure and does nothing from then on.

        Args:
            send: sends something to W&B.
            where: the file or folder on disk that has the same data.
            warn: print the warning; false if it has been printed already.
        """
        if self.gone:
            return
        try:
            send()
        except Exception as error:
            # Those of its service are no documented class of W&B's, nor of one base.
            if not isinstance(error, (TimeoutError, OSError)) and not type(error).__module__.startswith("wandb"):
                raise
            self.gone = True
            reason = in_one_line(error, 120)
            if warn:
                print(f"warning: W&B cannot be reached ({reason}); upload the rest later with wandb sync, from {where}",
                      file=sys.stderr)  # fmt: skip
            if isinstance(error, ConnectionError):
                _forget_service()


def _forget_service() -> None:
    """Removes W&B's exit hook: its background process has died, and the hook would end ours with a traceback."""
    import wandb

    # It removes the hook before it fails in the same way again.
    with contextlib.suppress(ConnectionError):
        wandb.teardown()


def _wandb_logger(out: Path, name: str, config: Options) -> WandbLogger:
    """A logger whose run has begun: settings that W&B refuses are refused now, before anything is computed.

    Raises:
        UserError: W&B refuses its settings, which come from its environment variables and files, or cannot write.
    """
    import wandb

    disabled = os.environ.get("WANDB_MODE") == "disabled"
    offline = None if disabled else why_offline()
    if offline and os.environ.get("WANDB_MODE") != "offline":
        _say(f"note: W&B logs this run offline: {offline}")
    # A server that goes away in mid-run must not keep the run from ending; releases before these settings wait for it.
    # Quiet: the link is shown once, and no summary of all metrics stands before the table of the result.
    wanted = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS, "quiet": True}
    known = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}

    def begin(mode: Literal["online", "offline", "disabled"]) -> WandbLogger:
        project = os.environ.get("WANDB_PROJECT", "ann2snn-bench")
        made = SturdyWandbLogger(name=name, save_dir=out, project=project, mode=mode, config=config, log_model=False,
                                 settings=wandb.Settings(**known))  # fmt: skip
        # Lightning (2.6) passes this setting even if it is None, and newer releases of W&B warn of it.
        made._wandb_init.pop("anonymous", None)
        made.experiment  # noqa: B018 - begins the run
        return made

    try:
        if not disabled and offline is None:
            try:
                return begin("online")
            except (wandb.errors.CommError, TimeoutError, OSError) as error:
                print(f"warning: W&B does not answer ({_reason(error)}); this run is logged offline", file=sys.stderr)
        return begin("disabled" if disabled else "offline")
    except (wandb.errors.Error, OSError, ValueError, TypeError) as error:
        raise UserError(
            f"W&B: {_reason(error)}; check $WANDB_* and W&B's settings, or log with --logger csv"
        ) from error


@rank_zero_only
def _say(line: str) -> None:
    print(line)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_error(error, show_input=True)
    return in_one_line(error, 160)


def why_offline() -> str | None:
    """Why a run cannot be logged online, by W&B's own settings; ``None`` if it can.

    Without a key or a network W&B would prompt or hang.

    Raises:
        UserError: W&B refuses its settings.
    """
    import wandb

    try:
        settings = wandb.setup().settings
        server = urlparse(str(settings.base_url))
        port = server.port or (80 if server.scheme == "http" else 443)
    except (wandb.errors.Error, OSError, ValueError, TypeError) as error:
        raise UserError(
            f"W&B: {_reason(error)}; check $WANDB_* and W&B's settings, or log with --logger csv"
        ) from error
    host = server.hostname or str(settings.base_url)
    if settings.mode in ("offline", "disabled"):
        return f"its mode is {settings.mode}"
    if not settings.api_key and not any(_in_netrc(name) for name in (server.netloc, host)):
        return f"no key for {host} found (wandb login, or $WANDB_API_KEY)"
    proxy = getproxies().get(server.scheme)
    if proxy and not proxy_bypass(host):
        through = urlparse(proxy if "://" in proxy else f"http://{proxy}")
        host, port = through.hostname or host, through.port or 80
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError as error:
        return f"{host}:{port} does not answer ({error})"
    return None


def _in_netrc(host: str) -> bool:
    try:
        # By name: as its default file, netrc would refuse one that others may read, which W&B does not.
        return netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def log_record(loggers: Sequence[Logger], record: Record, path: Path) -> None:
    """Sends the accuracy-vs-T curve, as a table and as a picture, and the record as an artifact to W&B."""
    send_to_wandb(loggers, lambda logger: _send(logger, record, path), path)


def send_to_wandb(loggers: Sequence[Logger], send: Callable[[WandbLogger], object], where: Path) -> None:
    """Calls ``send`` with each logger of W&B; a server that cannot be reached is warned of.

    Args:
        loggers: of a run, of any kind.
        send: logs something.
        where: the file on disk that has the same data.
    """
    for logger in loggers:
        if isinstance(logger, SturdyWandbLogger):
            logger.attempt(functools.partial(send, logger), where)


def _send(logger: WandbLogger, record: Record, path: Path) -> None:
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


def finish(loggers: Sequence[Logger]) -> None:
    """Completes the logs, so that what is on disk is whole when the command ends."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, SturdyWandbLogger):
            logger.end()


def draw_curve(record: Record) -> Figure:
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
    axes.set_title(f"{display(record.method.name)}, {record.arch.name}, {record.data.name}")
    axes.legend()
    return figure
