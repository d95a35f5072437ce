"""One run: seed -> data -> method -> Trainer.fit -> Trainer.test -> record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench import architectures, checkpoints, records
from bench.building import HEADER_VERSION, build, build_trained, load_trained
from bench.callbacks import calibration_size
from bench.config import Settings, differences
from bench.epochs import EpochSeed, StopOnNaN
from bench.errors import UserError, first_error
from bench.files import require_writable
from bench.logs import make_loggers
from bench.provenance import code_state
from bench.registry import ARCHITECTURES
from bench.results import evaluate_and_record
from bench.snn.compilation import can_compile
from bench.trainers import LAST, PREVIOUS, LastCheckpoint, make_trainer, quiet, train
from methods import METHODS


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
    if METHODS[settings.method].source:
        return convert(settings, argv)
    science = settings.science()
    out = settings.out or _default_folder(settings)
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
    model, datamodule = build(
        settings.data, settings.method, settings.arch, settings.model_args, settings.data_args, settings.seed
    )
    calibration_size(model, datamodule)  # refused now and not after the training
    seconds = 0.0
    if resume:
        before = checkpoints.read(resume).header
        now = header["code"]
        # The record names the code that began; if other code went on, no commit describes the training.
        dirty = before["code"]["dirty"] or now["dirty"] or before["code"]["commit"] != now["commit"]
        seconds, header["code"] = before.get("seconds") or 0.0, {**before["code"], "dirty": dirty}
    else:
        for name in ("record.json", "model.safetensors", f"checkpoints/{PREVIOUS}"):
            (out / name).unlink(missing_ok=True)
        model.prepare(datamodule.calibration_dataloader(min(model.start_images, len(datamodule.split("train")))))
    if settings.compile and can_compile():
        model.compile_step()
    name = f"{settings.data}-{settings.arch}-{settings.method}-{settings.label}-seed{settings.seed}"
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


def check_early(header: dict[str, Any], argv: list[str]) -> None:
    """Makes now, of what is known, the parts of the record that would else be refused after the training.

    Raises:
        UserError: a name or an argument is too long or has characters that a record cannot hold.
    """
    try:
        checkpoints.Header.model_validate({**header, "epochs": 0}, strict=True)
        records.Run(argv=argv, started="", seconds=0)
    except ValidationError as error:
        raise UserError(f"this cannot stand in a record: {first_error(error, show_input=True)}") from error


def convert(settings: Settings, argv: list[str]) -> Path:
    """Converts a trained net by a method that does not train, evaluates, writes the record.

    Args:
        settings: ``ckpt`` names the source net; without it the net in the source method's default folder is taken,
            and trained first where there is none.
        argv: the command, for the record.

    Returns:
        The record's path.

    Raises:
        UserError: the source net is of another method, architecture, data set or seed.
    """
    entry = METHODS[settings.method]
    kind = entry.source_for(settings.model_args)
    if settings.ckpt == "last":
        raise UserError(f"--ckpt last: {settings.method} does not train; give the file of a {kind} net")
    path = Path(settings.ckpt) if settings.ckpt else _source_net(settings, kind)
    weights = checkpoints.read(path)
    source = weights.header
    wanted = {"method": kind, "arch": settings.arch, "data": settings.data, "seed": settings.seed}
    for key, value in wanted.items():
        if source[key] != value:
            raise UserError(f"--ckpt {path}: is of {key} {source[key]}, and {settings.method} needs {key} {value}")
    science = settings.science()
    science.pop("trainer")
    # How the source was trained is its own affair, and is recorded with it.
    science["data"] = {key: science["data"][key] for key in ("name", "subset", "val_split", "eval_split")}
    science["source"] = {**source["recipe"]["config"], "sha256": weights.sha256()}
    recipe = source["recipe"]
    overrides = sorted({*recipe["overrides"], *settings.overrides})
    header = {
        **source,
        "method": settings.method,
        "recipe": {"name": recipe["name"], "overrides": overrides, "config": science},
        "source": source,
    }
    out = settings.out or _default_folder(settings, "+".join([recipe["name"], *overrides]))
    check_early(header, argv)
    if (out / "checkpoints").exists() or path.parent.resolve() == out.resolve():
        raise UserError(f"--out {out}: holds a training, whose weights would be lost; give another folder")
    if (out / "record.json").exists() and not settings.overwrite:
        raise UserError(f"{out} already holds a record; begin anew with --overwrite, or give another --out")
    require_writable(out)
    model, datamodule = build_trained(header, weights, settings.data_args, path)
    loggers = make_loggers(settings.logger, out, f"{settings.data}-{settings.arch}-{settings.method}", science)
    return evaluate_and_record(
        model, datamodule, entry, header, settings.steps, settings.trainer_args, loggers, out, argv
    )


def _source_net(settings: Settings, source: str) -> Path:
    command = ["--method", source, "--arch", settings.arch, "--data", settings.data, "--seed", str(settings.seed)]
    command += ["--logger", settings.logger]
    if settings.arch not in ARCHITECTURES:
        command[3] = f"{architectures.TIMM_PREFIX}{settings.arch}"
    for name in ("subset", "root"):
        if settings.data_args.get(name) is not None:
            command += [f"--data.{name}", str(settings.data_args[name])]
    from bench.config import parse_fit

    first = parse_fit(command)
    folder = first.out or _default_folder(first)
    path = folder / "model.safetensors"
    if not path.exists():
        print(f"{settings.method} converts a {source} net and --ckpt names none: training one first, in {folder}")
        if (folder / "checkpoints" / LAST).exists():
            first.ckpt = "last"
        fit(first, ["python", "-m", "bench", "fit", *command])
    return path


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
    trained = load_trained(ckpt, {key: value for key, value in options.items() if key != "accelerator"})
    require_writable(out)
    header = trained.weights.header
    config = header["recipe"]["config"]
    name = f"evaluate-{header['data']}-{header['arch']}-{header['method']}-seed{header['seed']}"
    loggers = make_loggers(logger, out, name, config)
    trainer_args = {**config.get("trainer", {}), "accelerator": options.get("accelerator", "auto"), "devices": 1}
    return evaluate_and_record(
        trained.model, trained.datamodule, trained.entry, header, steps, trainer_args, loggers, out, argv
    )


def _find_resume(settings: Settings, folder: Path, header: dict[str, Any]) -> Path | None:
    ours = settings.ckpt is not None and (settings.ckpt == "last" or Path(settings.ckpt).parent == folder)
    if not ours and (folder / LAST).exists() and not settings.overwrite:
        raise UserError(
            f"{folder.parent} already holds a run; go on with --ckpt last, begin anew with --overwrite, "
            "or give another --out"
        )
    if settings.ckpt is None:
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
    old = found.header
    for key in ("method", "arch", "data", "seed"):
        if old[key] != header[key]:
            raise UserError(f"--ckpt {path}: is of {key} {old[key]}, not {header[key]}")
    changed = differences(old["recipe"]["config"], header["recipe"]["config"])
    if changed:
        raise UserError(f"--ckpt {path}: was trained with other settings ({', '.join(changed)} is new); repeat its own")
    return path


def _default_folder(settings: Settings, label: str = "") -> Path:
    leaf = (label or settings.label).replace("/", "-").replace(" ", "")[:80]
    leaf = f"{leaf}-seed{settings.seed}-{records.config_sha256(settings.science())[:8]}"
    return Path("runs") / settings.data / settings.arch / settings.method / leaf
