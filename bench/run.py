"""One run: seed -> data -> method -> Trainer.fit -> Trainer.test -> record."""

from __future__ import annotations

import hashlib
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import Logger
from rich.console import Console
from rich.table import Table

from bench import architectures, checkpoints, records
from bench.callbacks import ConversionCallback, EpochSeed, StopOnNaN
from bench.config import Settings, differences
from bench.errors import UserError
from bench.files import require_writable, write_atomically
from bench.logs import log_record, make_loggers
from bench.provenance import code_state, environment
from bench.registry import lookup
from datamodules import DATA
from methods import METHODS

HEADER_VERSION = 1


class Interrupted(Exception):
    """SIGINT or SIGTERM ended the training; ``status`` is the shell's for that signal."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Header(Callback):
    """Writes into every checkpoint what it is: enough to rebuild the run and to refuse a wrong use."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.seconds_before = 0.0
        self.started = time.monotonic()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        """Adds the header."""
        seconds = self.seconds_before + time.monotonic() - self.started
        checkpoint[checkpoints.HEADER] = {**self.content, "epochs": checkpoint["epoch"], "seconds": seconds}


def build(method: str, arch: str, data: str, settings: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """Makes data module and method from names and arguments; weights depend on ``seed`` alone.

    Returns:
        The method's LightningModule and the data module.
    """
    datamodule = lookup("--data", data, DATA).load()(**settings["data"])
    datamodule.seed = seed
    pl.seed_everything(seed, workers=True, verbose=False)
    net = architectures.create(arch, datamodule.num_classes).to(memory_format=torch.channels_last)
    return lookup("--method", method, METHODS).load()(net, **settings["model"]), datamodule


def fit(settings: Settings, argv: list[str]) -> Path:
    """Trains, converts, evaluates, writes the record.

    Args:
        settings: from :func:`bench.config.parse_fit`.
        argv: the command, for the record.

    Returns:
        The record's path.

    Raises:
        UserError: bad input, or a loss that is not finite.
        Interrupted: a signal ended the training; it can be resumed.
    """
    science = settings.science()
    sha256 = records.config_sha256(science)
    label = "+".join([settings.recipe, *settings.overrides])
    name = f"{settings.data}-{settings.arch}-{settings.method}-{label}-seed{settings.seed}"
    out = settings.out or _default_folder(settings, sha256)
    require_writable(out)
    header = {
        "version": HEADER_VERSION,
        "method": settings.method,
        "arch": settings.arch,
        "data": settings.data,
        "seed": settings.seed,
        "recipe": {"name": settings.recipe, "overrides": settings.overrides, "config": science},
        "code": code_state().model_dump(),
    }
    resume = _find_resume(settings, out, header)
    model, datamodule = build(
        settings.method,
        settings.arch,
        settings.data,
        {"model": settings.model_args, "data": settings.data_args},
        settings.seed,
    )
    datamodule.setup()
    loggers = make_loggers(settings.logger, out, name, science)
    checkpoint = ModelCheckpoint(
        out / "checkpoints", filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    keeper = Header(header)
    callbacks: list[Callback] = [keeper, checkpoint, EpochSeed(settings.seed), StopOnNaN()]
    if resume:
        before = checkpoints.read(resume).header
        keeper.seconds_before = before["seconds"]
        # The weights come from the code that began; a record must not claim more than that.
        header["code"] = before["code"]
    else:
        model.prepare(datamodule.calibration_dataloader(min(datamodule.batch_size, len(datamodule.split("train")))))
    if settings.compile:
        model.compile_step()
    trainer = make_trainer(settings.trainer_args, loggers, callbacks, out)
    _train(trainer, model, datamodule, resume, checkpoint)
    seconds = keeper.seconds_before + time.monotonic() - keeper.started
    training = {"epochs": trainer.current_epoch, "seconds": seconds}
    del trainer
    return evaluate_and_record(
        model,
        datamodule,
        {**header, **training},
        settings.steps,
        settings.trainer_args,
        loggers,
        out,
        argv,
    )


def evaluate(ckpt: Path, steps: tuple[int, ...], out: Path, logger: str, overrides: dict[str, Any], argv: list[str]) -> Path:
    """Repeats conversion and evaluation from a checkpoint.

    Args:
        ckpt: ``last.ckpt`` or ``model.safetensors``.
        steps: values of T.
        out: folder for the record.
        logger: as for ``fit``.
        overrides: data arguments that do not change results (``root``, ``num_workers``, ``eval_batch_size``), and
            ``accelerator``.
        argv: the command, for the record.

    Returns:
        The record's path.
    """
    require_writable(out)
    weights = checkpoints.read(ckpt)
    header = check_header(weights.header, ckpt)
    config = header["recipe"]["config"]
    data_args = {key: value for key, value in config["data"].items() if key != "name"}
    accelerator = overrides.pop("accelerator", "auto")
    data_args |= overrides
    model, datamodule = build(
        header["method"], header["arch"], header["data"], {"model": config["model"], "data": data_args}, header["seed"]
    )
    try:
        model.load_state_dict(weights.state)
    except RuntimeError as error:
        raise UserError(f"--ckpt {ckpt}: its weights do not fit {header['method']} on {header['arch']}") from error
    name = f"evaluate-{header['data']}-{header['arch']}-{header['method']}-seed{header['seed']}"
    loggers = make_loggers(logger, out, name, config)
    trainer_args = {**config["trainer"], "accelerator": accelerator, "devices": 1}
    return evaluate_and_record(model, datamodule, header, steps, trainer_args, loggers, out, argv)


def check_header(header: dict[str, Any], ckpt: Path) -> dict[str, Any]:
    """Refuses a header that this version cannot read."""
    needed = {"version", "method", "arch", "data", "seed", "recipe", "code"}
    if not needed <= set(header) or header["version"] != HEADER_VERSION:
        raise UserError(f"--ckpt {ckpt}: written by another version of the suite; repeat it with the version that wrote it")
    return header


def _find_resume(settings: Settings, out: Path, header: dict[str, Any]) -> Path | None:
    last = out / "checkpoints" / "last.ckpt"
    if settings.ckpt is None:
        if last.exists() and not settings.overwrite:
            raise UserError(
                f"{out} already holds a run; go on with --ckpt last, begin anew with --overwrite true, or give --out"
            )
        return None
    if settings.ckpt != "last":
        path = Path(settings.ckpt)
        found = checkpoints.read(path)
    else:
        previous = last.with_name("previous.ckpt")
        if not last.exists():
            raise UserError(f"--ckpt last: there is no checkpoint in {last.parent} yet; leave --ckpt out to begin")
        path = last
        try:
            found = checkpoints.read(last)
        except UserError as error:
            if not previous.exists():
                raise
            print(f"warning: {error}; going on from {previous}", file=sys.stderr)
            path, found = previous, checkpoints.read(previous)
    if path.suffix != ".ckpt":
        raise UserError(f"--ckpt {path}: holds weights only, and a training resumes from a .ckpt file")
    old = check_header(found.header, path)
    for key in ("method", "arch", "data", "seed"):
        if old[key] != header[key]:
            raise UserError(f"--ckpt {path}: is of {key} {old[key]}, not {header[key]}")
    changed = differences(old["recipe"]["config"], header["recipe"]["config"])
    if changed:
        raise UserError(f"--ckpt {path}: was trained with other settings ({', '.join(changed)} is new); repeat its options")
    return path


def make_trainer(
    arguments: dict[str, Any], loggers: list[Logger], callbacks: list[Callback], out: Path, **fixed: Any
) -> pl.Trainer:
    """A Trainer with the suite's own choices: our checkpoints, our samplers, quiet unless there is a terminal."""
    bar = sys.stderr.isatty() or sys.stdout.isatty()
    options = {key: value for key, value in arguments.items() if value is not None}
    options = {"enable_progress_bar": bar, "enable_model_summary": False, **options, **fixed}
    if options["enable_progress_bar"]:
        callbacks = [*callbacks, RichProgressBar()]
    return pl.Trainer(
        **options,
        logger=loggers or False,
        callbacks=callbacks,
        plugins=[checkpoints.AtomicCheckpointIO()],
        default_root_dir=out,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1_000_000,
    )


def _train(
    trainer: pl.Trainer, model: Any, datamodule: Any, resume: Path | None, checkpoint: ModelCheckpoint
) -> None:
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    advice = "go on with the same command and --ckpt last"
    try:
        trainer.fit(model, datamodule=datamodule, ckpt_path=resume and str(resume), weights_only=True)
    except SIGTERMException as error:
        raise Interrupted(f"terminated in epoch {trainer.current_epoch}; {advice}", 143) from error
    except SystemExit as error:
        raise Interrupted(f"interrupted in epoch {trainer.current_epoch}; {advice}", 130) from error


def evaluate_and_record(
    model: Any,
    datamodule: Any,
    header: dict[str, Any],
    steps: tuple[int, ...],
    trainer_args: dict[str, Any],
    loggers: list[Logger],
    out: Path,
    argv: list[str],
) -> Path:
    """Tests in full precision, then writes ``model.safetensors`` and ``record.json`` and prints the table."""
    started, clock = datetime.now(UTC), time.monotonic()
    entry = METHODS[header["method"]]
    conversion = ConversionCallback(steps, per_T=entry.per_T)
    trainer = make_trainer({**trainer_args, "precision": "32-true"}, loggers, [conversion], out)
    trainer.test(model, datamodule=datamodule, verbose=False)
    path = out / "record.json"
    if not trainer.is_global_zero:
        return path
    stable = {key: value for key, value in header.items() if key not in ("seconds",)}
    weights = checkpoints.to_safetensors(model.state_dict(), stable)
    write_atomically(out / "model.safetensors", weights)
    config = header["recipe"]["config"]
    snn = conversion.evaluated
    neurons = list(snn.neurons.values())
    limits = (trainer_args.get("limit_train_batches"), trainer_args.get("limit_test_batches"))
    record = records.Record(
        schema_version=records.SCHEMA_VERSION,
        method=records.Method(name=header["method"], paper=entry.paper, options=config["model"]),
        arch=records.Arch(
            name=header["arch"],
            parameters=architectures.count_parameters(model.net),
            macs=architectures.count_macs(model.net, datamodule.input_shape),
        ),
        data=records.Data(
            name=header["data"], fingerprint=datamodule.fingerprint(), num_classes=datamodule.num_classes
        ),
        recipe=records.Recipe(
            name=header["recipe"]["name"],
            overrides=header["recipe"]["overrides"],
            sha256=records.config_sha256(config),
            config=config,
        ),
        seed=header["seed"],
        protocol=records.Protocol(
            version=records.PROTOCOL_VERSION,
            input_coding="direct",
            readout="rate",
            reset="soft",
            checkpoint_selection="last",
            eval_split=datamodule.eval_split,
            num_train_samples=len(datamodule.split("train")),
            num_eval_samples=conversion.results["num_eval_samples"],
            calibration_images=0,
            precision="fp32",
            bn_folded=True,
        ),
        conversion=records.Conversion(
            alphabet=neurons[0].alphabet,
            levels_per_step=neurons[0].levels_per_step,
            causal=snn.causal,
            per_T=entry.per_T,
            retrained=entry.source is None,
            source_sha256=None,
        ),
        ann=records.Accuracy(**conversion.results["ann"]),
        snn=[records.SnnAccuracy(**point) for point in conversion.results["snn"]],
        training=records.Training(
            code=header["code"], epochs=header["epochs"], seconds=header.get("seconds")
        ),
        code=code_state(),
        environment=environment(model.device, trainer.world_size, datamodule.num_workers),
        run=records.Run(
            argv=argv, started=started.isoformat(timespec="seconds"), seconds=round(time.monotonic() - clock, 3)
        ),
        checkpoint=records.Checkpoint(sha256=hashlib.sha256(weights).hexdigest(), format="safetensors"),
        limited=datamodule.limited or any(limit not in (None, 1.0) for limit in limits),
    )
    record.write(path)
    log_record(loggers, record, path)
    for logger in loggers:
        logger.finalize("success")
    print_result(record, path)
    return path


def print_result(record: records.Record, path: Path) -> None:
    """The table at the end of a run."""
    table = Table(title=f"{record.method.name}, {record.arch.name}, {record.data.name}, {record.recipe.label}")
    for heading in ("T", "SNN top-1 %", "top-5 %", "quantised ANN %", "firing rate"):
        table.add_column(heading, justify="right")
    table.add_row("ANN", f"{100 * record.ann.top1:.2f}", f"{100 * record.ann.top5:.2f}", "", "")
    for point in record.snn:
        steps = f"{point.T}" + (f" + {point.warmup}" if point.warmup else "")
        twin = "" if point.quantised_top1 is None else f"{100 * point.quantised_top1:.2f}"
        table.add_row(steps, f"{100 * point.top1:.2f}", f"{100 * point.top5:.2f}", twin, f"{point.firing_rate:.4f}")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    print(f"{record.protocol.num_eval_samples} images{' (limited: never ranked)' if record.limited else ''}; record: {path}")


def _default_folder(settings: Settings, sha256: str) -> Path:
    label = "+".join([settings.recipe, *settings.overrides]).replace("/", "-").replace(" ", "")[:80]
    leaf = f"{label}-seed{settings.seed}-{sha256[:8]}"
    return Path("runs") / settings.data / settings.arch / settings.method / leaf
