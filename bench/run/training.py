"""``trained``, for methods that train: from random weights, resumed, or read if all epochs are done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

from bench.errors import UserError
from bench.records.header import HEADER_VERSION, Header, RecipeHeader
from bench.records.record import differences, read_record
from bench.records.spec import RunSpec
from bench.registry.methods import METHODS
from bench.registry.younger import completed
from bench.run import checkpoints
from bench.run.build import Trained, build, build_trained
from bench.run.callbacks import calibration_size
from bench.run.checkpoints import LAST, PREVIOUS, RECORD, WEIGHTS, Weights
from bench.run.epochs import EpochSeed, StopOnNaN
from bench.run.provenance import arithmetic, code_state, trained_by, trained_on
from bench.run.published import is_asked
from bench.run.source import described
from bench.run.trainer import LastCheckpoint, device_for, make_trainer, require_batches, train, training_images
from bench.snn.compilation import can_compile, worth_compiling_training
from datamodules.base import NORMALISATION, ImageDataModule
from methods.training import TrainingModule


def header_of(spec: RunSpec, source: Weights | None = None) -> Header:
    """What a training says of itself before its first epoch, and of the net that it begins from."""
    config = spec.config() | ({"source": described(source)} if source else {})
    header = Header(
        version=HEADER_VERSION,
        method=spec.method,
        arch=spec.arch,
        data=spec.data,
        seed=spec.seed,
        recipe=RecipeHeader(name=spec.recipe, overrides=list(spec.overrides), config=config),
        code=code_state(),
        epochs=0,
    )
    return header if source is None else header.model_copy(update=_inherited(header, source.header))


def _inherited(header: Header, source: Header) -> dict[str, object]:
    """Returns what a tuning has from the net that it begins from: whatever keeps that net from being ranked."""
    whole = source.imported or source.epochs == source.recipe.part("trainer").get("max_epochs")
    facts: dict[str, object] = {
        "code": header.code.model_copy(update={"dirty": header.code.dirty or source.code.dirty}),
        "limited": source.trained_on_part or not whole,
    }
    return facts | ({"imported": source.imported} if source.imported else {})


def untrained(
    spec: RunSpec, resume: Path | None, source: Weights | None = None
) -> tuple[TrainingModule, ImageDataModule] | None:
    """Builds method and data of a training and checks them, before the run's folder and its logs are made.

    Args:
        spec: the run.
        resume: from :func:`find_resume`.
        source: the net that it begins from; ``None`` for random weights.

    Returns:
        Both; ``None`` if all epochs are done and only the weights are left.

    Raises:
        UserError: an option is out of range, the data set is not there, or ``source`` needs other images.
    """
    if resume and resume.name == WEIGHTS:
        return None
    model, datamodule = build(spec.data, spec.method, spec.arch, spec.model, spec.all_data_options, spec.seed)
    assert isinstance(model, TrainingModule)
    if resume is None and datamodule.val_augment and not datamodule.val_split:
        raise UserError("--data.val_augment true: there is no validation split; give --data.val_split N as well")
    if resume is None:
        model.check_beginning(source is not None)
    if source is not None:
        _require_normalisation(source, datamodule, str(spec.local.ckpt))
    device_for(spec.all_trainer_options)
    calibration_size(model, datamodule)
    datamodule.check_training_files()
    return model, datamodule


def _require_normalisation(source: Weights, datamodule: ImageDataModule, ckpt: str) -> None:
    """Refuses to go on training a net on images that are normalised in another way than it knows."""
    recorded = source.header.recipe.part("data")
    theirs = {key: recorded.get(key) or list(getattr(type(datamodule), key)) for key in NORMALISATION}
    other = {key: values for key, values in theirs.items() if values != list(getattr(datamodule, key))}
    if other:
        needed = " ".join(f"--data.{key} '{values}'" for key, values in other.items())
        raise UserError(f"--ckpt {ckpt}: was trained on images with another normalisation; give {needed}")


def trained(
    spec: RunSpec,
    header: Header,
    resume: Path | None,
    out: Path,
    loggers: Sequence[Logger],
    begun: tuple[TrainingModule, ImageDataModule] | None,
    source: Weights | None = None,
) -> Trained:
    """The trained net of a run.

    Args:
        spec: the run.
        header: from :func:`header_of`.
        resume: from :func:`find_resume`.
        out: the run's folder.
        loggers: get losses and accuracies.
        begun: from :func:`untrained`.
        source: the net that it begins from; ``None`` for random weights.

    Raises:
        UserError: bad input, or a loss that is not finite.
        Interrupted: a signal ended the training.
    """
    first = getattr(rank_zero_only, "rank", 0) == 0
    if first and resume and resume.name == PREVIOUS and spec.local.ckpt == "last":
        # Replaces the damaged file. Otherwise the next save would keep the damaged one as the fallback.
        checkpoints.duplicate(resume, resume.with_name(LAST))
    if begun is None:
        assert resume is not None
        return _whole(spec, resume, out)
    model, datamodule = begun
    assert spec.trainer is not None
    before = checkpoints.read(resume).header if resume else None
    epochs = int(str(spec.trainer["max_epochs"]))
    if before:
        config, origin = header.recipe.config, before.recipe.part("source")
        # Only the checkpoint knows from which net it began.
        recipe = header.recipe.model_copy(update={"config": {**config, "source": origin} if origin else config})
        header = header.model_copy(update={"code": trained_by(before, header.code, epochs), "recipe": recipe})
        if before.imported:
            header = header.model_copy(update={"imported": before.imported})
    else:
        calibration = datamodule.calibration_dataloader(min(model.start_images, len(datamodule.split("train"))))
        if source is None:
            model.prepare(calibration)
        else:
            model.start_from(build_trained(source, spec.all_data_options, str(spec.local.ckpt)).model.net, calibration)
    keeper = LastCheckpoint(out / "checkpoints", datamodule, (before and before.seconds) or 0.0)
    validation = {} if len(datamodule.split("val")) else {"limit_val_batches": 0}
    trainer = make_trainer(
        spec.all_trainer_options, loggers, [keeper, EpochSeed(spec.seed), StopOnNaN()], out, **validation
    )
    images = training_images(trainer, datamodule)
    asked = spec.local.compile
    compiled = worth_compiling_training(images * epochs) if asked is None else asked and can_compile()
    compiled = compiled and model.compilable
    if compiled:
        model.compile_step()
    here = arithmetic(trainer.strategy.root_device, trainer.world_size, compiled, str(trainer.precision))
    keeper.header = header = header.model_copy(
        update={
            "num_train_samples": len(datamodule.split("train")),
            "limited": header.trained_on_part or (before is not None and before.limited),
            "arithmetic": trained_on(before, here, epochs),
        }
    )
    require_batches(trainer, datamodule, "train", "test", *([] if validation else ["val"]))
    model.check_training(trainer, datamodule)
    if (resume is None or not is_of(out, resume)) and trainer.is_global_zero:
        # Only now, because no check follows. Checkpoints go first, so that no run resumes from them.
        for path in (out / "checkpoints" / LAST, out / "checkpoints" / PREVIOUS, out / RECORD, out / WEIGHTS):
            path.unlink(missing_ok=True)
    if trainer.is_global_zero:
        print(
            f"training {spec.method} on {spec.arch} and {spec.data}: {epochs} epochs of {images} images, batch "
            f"{datamodule.batch_size}; {here.device}, processes {here.world_size}, threads {here.threads}, "
            f"{here.precision}, {'' if compiled else 'not '}compiled",
            flush=True,
        )
    train(trainer, model, datamodule, resume)
    limited = header.limited or datamodule.limited_training
    done = {"epochs": trainer.current_epoch, "seconds": keeper.seconds, "limited": limited}
    return Trained(model, datamodule, header.model_copy(update=done))


def _whole(spec: RunSpec, ckpt: Path, out: Path) -> Trained:
    """A whole training whose checkpoints are gone; there is nothing left to train."""
    weights = checkpoints.read(ckpt)
    try:
        seconds = read_record(out / RECORD).training.seconds
    except UserError:
        pass  # none was written
    else:  # which the weights do not carry
        weights = weights._replace(header=weights.header.model_copy(update={"seconds": seconds}))
    return build_trained(weights, spec.all_data_options, str(ckpt))


def is_of(out: Path, ckpt: Path) -> bool:
    """Whether a checkpoint is one of the run in a folder; the file or the folder may be a link."""
    return (out / "checkpoints").resolve() in (ckpt.parent.resolve(), ckpt.resolve().parent)


def find_resume(spec: RunSpec, out: Path, header: Header, tuning: bool = False) -> Path | None:
    """Returns the checkpoint that a run continues from; ``None`` for a new run.

    Args:
        spec: the run.
        out: its folder.
        header: what it says of itself.
        tuning: ``--ckpt`` names a net to begin from.

    Raises:
        UserError: the folder holds a run and nothing says what to do with it, or the checkpoint is not of this run.
    """
    folder, asked = out / "checkpoints", spec.local.ckpt
    if tuning and Path(str(asked)).resolve().parent in (out.resolve(), folder.resolve()):
        raise UserError(f"--out {out}: holds the net that the training begins from; give another folder")
    ours = asked is not None and not tuning and (asked == "last" or is_of(out, Path(asked)))
    if ours and spec.local.overwrite:
        raise UserError(f"--ckpt {asked}: continues the run that --overwrite would replace; leave one of them out")
    resumable = any((folder / name).exists() for name in (LAST, PREVIOUS))
    there = resumable or any((out / name).exists() for name in (RECORD, WEIGHTS))
    if not ours and there and not spec.local.overwrite:
        place = f" --out {out}" if tuning and spec.local.out is None else ""
        go_on = f"continue with --ckpt last{place}, " if resumable else ""
        raise UserError(f"{out} already holds a run; {go_on}replace it with --overwrite, or give another --out")
    if asked is None or tuning:
        return None
    if is_asked(asked):
        raise UserError(f"--ckpt {asked}: {spec.method} trains its own net, from random weights")
    path = folder / LAST if asked == "last" else Path(asked)
    if asked == "last" and not path.exists() and (folder / PREVIOUS).exists():
        path = folder / PREVIOUS
        print(f"warning: no {folder / LAST} found; going on from {path}", file=sys.stderr)
    elif asked == "last" and not path.exists():
        path = out / WEIGHTS
        if not path.exists():
            begin = "begin anew with --overwrite in its place" if there else "leave --ckpt out to begin"
            begin += "; to continue a tuning, give its folder with --out" if METHODS[spec.method].begins_from else ""
            raise UserError(f"--ckpt last: no checkpoint found in {folder}; {begin}")
    elif path.suffix == ".safetensors":
        raise UserError(f"--ckpt {path}: holds weights only, and a training resumes from a .ckpt file")
    try:
        old = checkpoints.read(path).header
    except UserError as error:
        if asked != "last" or path.name == PREVIOUS or not (folder / PREVIOUS).exists():
            raise
        path = folder / PREVIOUS
        print(f"warning: {error}; going on from {path}", file=sys.stderr)
        old = checkpoints.read(path).header
    for key in ("method", "arch", "data", "seed"):
        theirs, our = getattr(old, key), getattr(header, key)
        if theirs != our:
            raise UserError(f"--ckpt {path}: has {key} {theirs}, not {our}")
    before, now = ({**completed(its.recipe.config), "source": None} for its in (old, header))
    changed = differences(before, now)
    if changed:
        raise UserError(f"--ckpt {path}: was trained with other settings (new: {', '.join(changed)}); repeat its own")
    if path.name == WEIGHTS:
        whole = header.recipe.part("trainer")["max_epochs"]
        if old.epochs != whole:
            raise UserError(
                f"--ckpt last: {path} has {old.epochs} of {whole} epochs, and no checkpoint to continue from was "
                "found; restart with --overwrite instead of --ckpt last"
            )
        print(f"note: {path} has all {whole} epochs; only the evaluation is run")
    return path
