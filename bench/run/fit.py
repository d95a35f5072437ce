"""One run: seed -> data -> method -> Trainer.fit -> Trainer.test -> record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from bench.cli.resolve import Settings, differences
from bench.errors import UserError
from bench.files import require_writable
from bench.records.record import read_record
from bench.registry.methods import METHODS
from bench.registry.younger import completed
from bench.run import checkpoints
from bench.run.build import HEADER_VERSION, build, build_trained, load_trained
from bench.run.callbacks import calibration_size
from bench.run.epochs import EpochSeed, StopOnNaN
from bench.run.loggers import make_loggers
from bench.run.pretrained import is_asked
from bench.run.provenance import arithmetic, code_state, trained_by, trained_on
from bench.run.results import check_early, evaluate_and_record, trained_on_part, working_in
from bench.run.trainer import LAST, PREVIOUS, LastCheckpoint, make_trainer, quiet, train, training_images
from bench.snn.compilation import can_compile, worth_compiling_training

# What a finished run leaves in its folder.
WEIGHTS = "model.safetensors"
RESULTS = ("record.json", WEIGHTS)


def fit(settings: Settings, argv: list[str]) -> Path:
    """Trains, converts, evaluates, writes the record.

    Args:
        settings: from :func:`bench.cli.resolve.parse_fit`.
        argv: the command, for the record.

    Returns:
        The record's path.

    Raises:
        UserError: bad input, or a loss that is not finite.
        Interrupted: a signal ended the training; it can be resumed.
    """
    quiet()
    code_state()  # now, before anybody goes on working in the checkout
    if METHODS[settings.method].source:
        from bench.run.conversion import convert

        return convert(settings, argv)
    science = settings.science()
    out = settings.out or settings.folder()
    header: dict[str, Any] = {
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
    check_early(header, argv)
    resume = _find_resume(settings, out / "checkpoints", header)
    require_writable(out)
    with working_in(out, settings.trainer_args):
        if resume and resume.name == PREVIOUS and settings.ckpt == "last":
            # In the damaged one's place, or the next save would make that the one to fall back to.
            checkpoints.duplicate(resume, resume.with_name(LAST))
        if resume and resume.name == WEIGHTS:
            return _evaluate_again(settings, resume, out, argv)
        return _train(settings, header, resume, out, argv)


def _train(settings: Settings, header: dict[str, Any], resume: Path | None, out: Path, argv: list[str]) -> Path:
    model, datamodule = build(
        settings.data, settings.method, settings.arch, settings.model_args, settings.data_args, settings.seed
    )
    # Refused now and not after the training, nor after what an earlier run has left is gone.
    calibration_size(model, datamodule)
    datamodule.check_training_files()
    seconds, before = 0.0, None
    if resume:
        before = checkpoints.read(resume).header
        seconds = before.get("seconds") or 0.0
        header["code"] = trained_by(before, header["code"], settings.trainer_args["max_epochs"])
    else:
        # First what an earlier run would be resumed from.
        for name in (f"checkpoints/{LAST}", f"checkpoints/{PREVIOUS}", *RESULTS):
            (out / name).unlink(missing_ok=True)
        model.prepare(datamodule.calibration_dataloader(min(model.start_images, len(datamodule.split("train")))))
    loggers = _loggers(settings, out)
    keeper = LastCheckpoint(out / "checkpoints", header, seconds)
    validation = {} if len(datamodule.split("val")) else {"limit_val_batches": 0}
    trainer = make_trainer(
        settings.trainer_args, loggers, [keeper, EpochSeed(settings.seed), StopOnNaN()], out, **validation
    )
    images, epochs = training_images(trainer, datamodule), settings.trainer_args["max_epochs"]
    compiled = (
        can_compile() if settings.compile else settings.compile is None and worth_compiling_training(images * epochs)
    )
    if compiled:
        model.compile_step()
    here = arithmetic(trainer.strategy.root_device, trainer.world_size, compiled, str(trainer.precision)).model_dump()
    header["num_train_samples"] = len(datamodule.split("train"))
    header["limited"] = trained_on_part({**header, "limited": (before or {}).get("limited", False)})
    header["arithmetic"] = trained_on(before, here, settings.trainer_args["max_epochs"])
    if trainer.is_global_zero:
        print(
            f"training {settings.method} on {settings.arch} and {settings.data}: {epochs} epochs of {images} images, "
            f"batch {datamodule.batch_size}; {here['device']}, processes {here['world_size']}, threads "
            f"{here['threads']}, {here['precision']}, {'' if compiled else 'not '}compiled",
            flush=True,
        )
    train(trainer, model, datamodule, resume)
    header |= {"epochs": trainer.current_epoch, "seconds": keeper.seconds}
    header["limited"] |= datamodule.limited_training
    return _record(settings, model, datamodule, header, loggers, out, argv)


def _evaluate_again(settings: Settings, ckpt: Path, out: Path, argv: list[str]) -> Path:
    """Of a whole training whose checkpoints are gone; there is nothing left to train."""
    weights = checkpoints.read(ckpt)
    header = weights.header
    try:
        training = read_record(out / "record.json").training
    except UserError:
        pass  # none was written
    else:
        header = {**header, "seconds": training.seconds}  # which the weights do not carry
    model, datamodule = build_trained(header, weights, settings.data_args, ckpt)
    return _record(settings, model, datamodule, header, _loggers(settings, out), out, argv)


def _loggers(settings: Settings, out: Path) -> list[Logger]:
    name = f"{settings.data}-{settings.arch}-{settings.method}-{settings.label}-seed{settings.seed}"
    config = settings.science() | {"seed": settings.seed, "T": settings.steps}
    return make_loggers(settings.logger, out, name, config)


def _record(
    settings: Settings,
    model: Any,
    datamodule: Any,
    header: dict[str, Any],
    loggers: list[Logger],
    out: Path,
    argv: list[str],
) -> Path:
    entry, steps = METHODS[settings.method], settings.steps
    return evaluate_and_record(model, datamodule, entry, header, steps, settings.trainer_args, loggers, out, argv)


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
    code_state()
    if (out / "checkpoints").exists() and ckpt.parent.resolve() not in (out.resolve(), (out / "checkpoints").resolve()):
        raise UserError(f"--out {out}: holds another training, whose weights would be lost; give another folder")
    trained = load_trained(ckpt, {key: value for key, value in options.items() if key != "accelerator"})
    require_writable(out)
    header = trained.weights.header
    config = header["recipe"]["config"]
    # One process evaluates, however many have trained.
    one = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    trainer_args = {**config.get("trainer", {}), "accelerator": options.get("accelerator", "auto"), **one}
    with working_in(out, trainer_args):
        name = f"evaluate-{header['data']}-{header['arch']}-{header['method']}-seed{header['seed']}"
        loggers = make_loggers(logger, out, name, config | {"seed": header["seed"], "T": steps})
        return evaluate_and_record(
            trained.model, trained.datamodule, trained.entry, header, steps, trainer_args, loggers, out, argv
        )


def _find_resume(settings: Settings, folder: Path, header: dict[str, Any]) -> Path | None:
    ours = settings.ckpt is not None and (settings.ckpt == "last" or Path(settings.ckpt).parent == folder)
    there = any(path.exists() for path in (folder / LAST, *(folder.parent / name for name in RESULTS)))
    if not ours and there and not settings.overwrite:
        go_on = "go on with --ckpt last, " if (folder / LAST).exists() else ""
        raise UserError(
            f"{folder.parent} already holds a run; {go_on}begin anew with --overwrite, or give another --out"
        )
    if settings.ckpt is None:
        return None
    if is_asked(settings.ckpt):
        raise UserError(f"--ckpt {settings.ckpt}: {settings.method} trains its own net, from random weights")
    path = folder / LAST if settings.ckpt == "last" else Path(settings.ckpt)
    if settings.ckpt == "last" and not path.exists():
        path = folder.parent / WEIGHTS
        if not path.exists():
            raise UserError(f"--ckpt last: there is no checkpoint in {folder} yet; leave --ckpt out to begin")
    elif path.suffix == ".safetensors":
        raise UserError(f"--ckpt {path}: holds weights only, and a training resumes from a .ckpt file")
    try:
        found = checkpoints.read(path)
    except UserError as error:
        if settings.ckpt != "last" or not (folder / PREVIOUS).exists():
            raise
        path = folder / PREVIOUS
        print(f"warning: {error}; going on from {path}", file=sys.stderr)
        found = checkpoints.read(path)
    old = found.header
    for key in ("method", "arch", "data", "seed"):
        if old[key] != header[key]:
            raise UserError(f"--ckpt {path}: is of {key} {old[key]}, not {header[key]}")
    changed = differences(completed(old["recipe"]["config"]), completed(header["recipe"]["config"]))
    if changed:
        raise UserError(f"--ckpt {path}: was trained with other settings ({', '.join(changed)} is new); repeat its own")
    if path.name == WEIGHTS:
        epochs, whole = old["epochs"], settings.trainer_args["max_epochs"]
        if epochs < whole:
            raise UserError(
                f"--ckpt last: {path} has {epochs} of {whole} epochs, and there is no checkpoint to go on from"
            )
        print(f"note: {path} has all {whole} epochs: it is evaluated")
    return path
