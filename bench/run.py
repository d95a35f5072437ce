"""One run: seed -> data -> method -> Trainer.fit -> Trainer.test -> record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from bench import architectures, checkpoints, records
from bench.callbacks import EpochSeed, StopOnNaN
from bench.config import Settings, differences
from bench.errors import UserError
from bench.files import require_writable
from bench.logs import make_loggers
from bench.provenance import code_state
from bench.registry import lookup
from bench.results import evaluate_and_record
from bench.trainers import LAST, PREVIOUS, LastCheckpoint, make_trainer, quiet, train
from datamodules import DATA
from methods import METHODS

HEADER_VERSION = 1
_HEADER_KEYS = {"version", "method", "arch", "data", "seed", "recipe", "code", "epochs"}


def build(
    method: str, arch: str, data: str, model_args: dict[str, Any], data_args: dict[str, Any], seed: int
) -> tuple[Any, Any]:
    """Makes method and data module from names and arguments; the weights depend on ``seed`` alone.

    Returns:
        The method's LightningModule and the data module, loaded.
    """
    datamodule = lookup("--data", data, DATA).load()(**data_args)
    datamodule.seed = seed
    datamodule.setup()
    pl.seed_everything(seed, workers=True, verbose=False)
    net = architectures.create(arch, datamodule.num_classes).to(memory_format=torch.channels_last)
    return lookup("--method", method, METHODS).load()(net, **model_args), datamodule


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
    quiet()
    science = settings.science()
    label = "+".join([settings.recipe, *settings.overrides])
    out = settings.out or _default_folder(settings, label)
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
    if settings.recipe == "default":
        print(f"note: {settings.method} has no recipe for {settings.arch} on {settings.data}; its defaults are used")
    resume = _find_resume(settings, out / "checkpoints", header)
    model, datamodule = build(
        settings.method, settings.arch, settings.data, settings.model_args, settings.data_args, settings.seed
    )
    seconds = 0.0
    if resume:
        before = checkpoints.read(resume).header
        # What began the training is named in the record, even if the code has changed since.
        seconds, header["code"] = before["seconds"], before["code"]
    else:
        model.prepare(datamodule.calibration_dataloader(min(datamodule.batch_size, len(datamodule.split("train")))))
    if settings.compile:
        model.compile_step()
    name = f"{settings.data}-{settings.arch}-{settings.method}-{label}-seed{settings.seed}"
    loggers = make_loggers(settings.logger, out, name, science)
    keeper = LastCheckpoint(out / "checkpoints", header, seconds)
    validation = {} if len(datamodule.split("val")) else {"limit_val_batches": 0}
    trainer = make_trainer(
        settings.trainer_args, loggers, [keeper, EpochSeed(settings.seed), StopOnNaN()], out, **validation
    )
    train(trainer, model, datamodule, resume)
    header |= {"epochs": trainer.current_epoch, "seconds": keeper.seconds}
    entry = METHODS[settings.method]
    return evaluate_and_record(
        model, datamodule, entry, header, settings.steps, settings.trainer_args, loggers, out, argv
    )


def evaluate(
    ckpt: Path, steps: tuple[int, ...], out: Path, logger: str, options: dict[str, Any], argv: list[str]
) -> Path:
    """Repeats conversion and evaluation from a checkpoint.

    Args:
        ckpt: ``last.ckpt`` or ``model.safetensors``.
        steps: values of T.
        out: folder for the record.
        logger: as for ``fit``.
        options: ``accelerator``, and data arguments that do not change results.
        argv: the command, for the record.

    Returns:
        The record's path.

    Raises:
        UserError: the checkpoint is damaged, not ours, or its weights do not fit what its header says.
    """
    quiet()
    weights = checkpoints.read(ckpt)
    header = check_header(weights.header, ckpt)
    require_writable(out)
    config = header["recipe"]["config"]
    data_args = {key: value for key, value in config["data"].items() if key != "name"}
    data_args |= {key: value for key, value in options.items() if key != "accelerator"}
    model, datamodule = build(
        header["method"], header["arch"], header["data"], config["model"], data_args, header["seed"]
    )
    try:
        model.load_state_dict(weights.state)
    except RuntimeError as error:
        raise UserError(f"--ckpt {ckpt}: its weights do not fit {header['method']} on {header['arch']}") from error
    name = f"evaluate-{header['data']}-{header['arch']}-{header['method']}-seed{header['seed']}"
    loggers = make_loggers(logger, out, name, config)
    trainer_args = {**config["trainer"], "accelerator": options.get("accelerator", "auto"), "devices": 1}
    entry = METHODS[header["method"]]
    return evaluate_and_record(model, datamodule, entry, header, steps, trainer_args, loggers, out, argv)


def check_header(header: dict[str, Any], ckpt: Path) -> dict[str, Any]:
    """Refuses a header that this version cannot read."""
    if not set(header) >= _HEADER_KEYS or header["version"] != HEADER_VERSION:
        raise UserError(f"--ckpt {ckpt}: written by another version of the suite; use the version that wrote it")
    return header


def _find_resume(settings: Settings, folder: Path, header: dict[str, Any]) -> Path | None:
    if settings.ckpt is None:
        if (folder / LAST).exists() and not settings.overwrite:
            raise UserError(
                f"{folder.parent} already holds a run; go on with --ckpt last, begin anew with --overwrite, "
                "or give another --out"
            )
        return None
    path = folder / LAST if settings.ckpt == "last" else Path(settings.ckpt)
    if settings.ckpt == "last" and not path.exists():
        raise UserError(f"--ckpt last: there is no checkpoint in {folder} yet; leave --ckpt out to begin")
    if path.suffix == ".safetensors":
        raise UserError(f"--ckpt {path}: holds weights only, and a training resumes from a .ckpt file")
    try:
        found = checkpoints.read(path)
    except UserError as error:
        if settings.ckpt != "last" or not (folder / PREVIOUS).exists():
            raise
        path = folder / PREVIOUS
        print(f"warning: {error}; going on from {path}", file=sys.stderr)
        found = checkpoints.read(path)
    old = check_header(found.header, path)
    for key in ("method", "arch", "data", "seed"):
        if old[key] != header[key]:
            raise UserError(f"--ckpt {path}: is of {key} {old[key]}, not {header[key]}")
    changed = differences(old["recipe"]["config"], header["recipe"]["config"])
    if changed:
        raise UserError(f"--ckpt {path}: was trained with other settings ({', '.join(changed)} is new); repeat its own")
    return path


def _default_folder(settings: Settings, label: str) -> Path:
    leaf = label.replace("/", "-").replace(" ", "")[:80]
    leaf = f"{leaf}-seed{settings.seed}-{records.config_sha256(settings.science())[:8]}"
    return Path("runs") / settings.data / settings.arch / settings.method / leaf
