"""One run of a method that does not train: source net -> conversion -> Trainer.test -> record."""

from __future__ import annotations

from pathlib import Path

from bench.cli.resolve import Settings, parse_fit
from bench.errors import UserError
from bench.files import require_writable
from bench.nets import architectures
from bench.registry.methods import METHODS
from bench.registry.nets import ARCHITECTURES
from bench.run import checkpoints, pretrained
from bench.run.build import build_trained
from bench.run.loggers import make_loggers
from bench.run.results import check_early, evaluate_and_record, working_in
from bench.run.trainer import LAST

# Of the data's and the Trainer's options, those that mean something where nothing is trained.
EVALUATED = ("name", "subset", "val_split", "eval_split", "partial", "eval_resize", "eval_interpolation")
ON_TEST = ("limit_test_batches", "devices", "num_nodes")


def convert(settings: Settings, argv: list[str]) -> Path:
    """Converts a trained net by a method that does not train, evaluates, writes the record.

    Args:
        settings: ``ckpt`` names the source net, a file or timm's weights; without it the net in the source method's
            default folder is taken, and trained first where there is none.
        argv: the command, for the record.

    Returns:
        The record's path.

    Raises:
        UserError: the source net is of another method, architecture, data set or seed.
    """
    entry = METHODS[settings.method]
    kind = entry.source_for(settings.model_args)
    _refuse_training_options(settings, kind)
    if settings.ckpt == "last":
        raise UserError(f"--ckpt last: {settings.method} does not train; give the file of a {kind} net")
    path = Path(settings.ckpt) if settings.ckpt else None
    if pretrained.is_asked(settings.ckpt):
        weights = pretrained.timm_weights(settings, kind)
    else:
        path = path or _source_net(settings, kind)
        weights = checkpoints.read(path)
    assert path is not None
    source = weights.header
    wanted = {"method": kind, "arch": settings.arch, "data": settings.data, "seed": settings.seed}
    for key, value in wanted.items():
        if source[key] != value:
            raise UserError(f"--ckpt {path}: is of {key} {source[key]}, and {settings.method} needs {key} {value}")
    held_out = source["recipe"]["config"]["data"].get("val_split") or 0
    if settings.data_args["eval_split"] == "val" and held_out < settings.data_args["val_split"]:
        raise UserError(
            f"--data.eval_split val: {path} was trained on some of these images, as it held out {held_out}; convert a "
            f"net that was trained with --data.val_split {settings.data_args['val_split']}"
        )
    science = settings.science()
    science.pop("trainer")
    # How the source was trained is its own affair, and is recorded with it.
    science["data"] = {key: science["data"][key] for key in EVALUATED if key in science["data"]}
    science["source"] = {**source["recipe"]["config"], "sha256": weights.sha256()}
    recipe = source["recipe"]
    overrides = sorted({*recipe["overrides"], *settings.overrides})
    header = {
        **source,
        "method": settings.method,
        "recipe": {"name": recipe["name"], "overrides": overrides, "config": science},
        "source": source,
    }
    out = settings.out or settings.folder(recipe=recipe["name"], overrides=recipe["overrides"], source=recipe["config"])
    check_early(header, argv)
    if (out / "checkpoints").exists() or path.parent.resolve() == out.resolve():
        raise UserError(f"--out {out}: holds a training, whose weights would be lost; give another folder")
    if (out / "record.json").exists() and not settings.overwrite:
        raise UserError(f"{out} already holds a record; begin anew with --overwrite, or give another --out")
    require_writable(out)
    with working_in(out, settings.trainer_args):
        model, datamodule = build_trained(header, weights, settings.data_args, path)
        label = "+".join([recipe["name"], *overrides])
        name = f"{settings.data}-{settings.arch}-{settings.method}-{label}-seed{settings.seed}"
        loggers = make_loggers(settings.logger, out, name, science | {"seed": settings.seed, "T": settings.steps})
        return evaluate_and_record(
            model, datamodule, entry, header, settings.steps, settings.trainer_args, loggers, out, argv
        )


def _refuse_training_options(settings: Settings, kind: str) -> None:
    """What would change nothing must not stand in the record, nor in the name of a row."""
    for override in settings.overrides:
        option = override.partition("=")[0]
        group, _, name = option.partition(".")
        if (group == "trainer" and name not in ON_TEST) or (group == "data" and name not in EVALUATED):
            raise UserError(
                f"--{option}: {settings.method} does not train; train a net with it by --method {kind} and give that "
                "with --ckpt"
            )


def _source_net(settings: Settings, source: str) -> Path:
    command = ["--method", source, "--arch", settings.arch, "--data", settings.data, "--seed", str(settings.seed)]
    command += ["--logger", settings.logger]
    if settings.arch not in ARCHITECTURES:
        command[3] = f"{architectures.TIMM_PREFIX}{settings.arch}"
    for name in ("subset", "root", "partial", "check", "num_workers", "val_split"):
        # A split of 0 is no change of the source's recipe.
        if settings.data_args.get(name) is not None and (name, settings.data_args[name]) != ("val_split", 0):
            command += [f"--data.{name}", str(settings.data_args[name])]
    command += ["--trainer.accelerator", str(settings.trainer_args["accelerator"])]
    command += [] if settings.compile is None else ["--compile", str(settings.compile).lower()]
    from bench.run.fit import fit  # which calls this module for methods that do not train

    first = parse_fit(command)
    folder = first.out or first.folder()
    path = folder / "model.safetensors"
    if not path.exists():
        print(f"{settings.method} converts a {source} net and --ckpt names none: training one first, in {folder}")
        if (folder / "checkpoints" / LAST).exists():
            first.ckpt = "last"
        fit(first, ["python", "-m", "bench", "fit", *command])
    return path
