"""The net that a method is given: to convert (a file, published, or trained first), or to begin a training from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.errors import UserError
from bench.records.header import Header, RecipeHeader
from bench.records.record import Options
from bench.records.spec import RunSpec
from bench.registry.methods import METHODS
from bench.run import checkpoints, published
from bench.run.checkpoints import Weights


def source_weights(spec: RunSpec, train_first: Callable[[RunSpec], Path]) -> tuple[Weights, RunSpec, Path]:
    """The net that a run converts.

    Args:
        spec: of a method that does not train.
        train_first: trains ``spec.net`` if it is not there yet, and gives the file of its weights.

    Returns:
        The weights; the run, whose options published weights may have completed; and where the weights are from.

    Raises:
        UserError: the net is of another method, architecture, data set or seed.
    """
    kind = METHODS[spec.method].source_for(spec.model)
    asked = spec.local.ckpt
    if asked == "last":
        raise UserError(f"--ckpt last: {spec.method} does not train; give the file of a {kind} net, or leave --ckpt "
                        "out to go on with the training of one")  # fmt: skip
    if asked is not None and published.is_asked(asked):
        weights, spec = published.timm_weights(spec, kind)
        path = Path(asked)
    else:
        path = train_first(spec.net) if asked is None and spec.net is not None else Path(str(asked))
        weights = checkpoints.read(path)
    require_fitting(spec, weights.header, (kind,), path)
    return weights, spec, path


def tuned_weights(spec: RunSpec) -> Weights | None:
    """Returns the net that a training begins from; ``None`` if it begins from random weights or is resumed.

    Args:
        spec: of a method that trains.

    Raises:
        UserError: ``--ckpt`` names a net of another method, architecture, data set or seed.
    """
    kinds, asked = METHODS[spec.method].begins_from, spec.local.ckpt
    if not kinds or asked is None or asked == "last" or published.is_asked(asked):
        return None
    path = Path(asked)
    weights = checkpoints.read(path)
    if weights.header.method == spec.method:
        return None
    require_fitting(spec, weights.header, kinds, path)
    return weights


def trained_with(spec: RunSpec, source: RunSpec | None = None) -> tuple[str, Options]:
    """The method that trains a run's net, and its options; the file of ``--ckpt`` is read, if one is named.

    Args:
        spec: the run.
        source: the run whose net it converts.

    Raises:
        UserError: the file is absent or damaged, or its net is of another method, architecture, data set or seed.
    """
    if spec.trains:
        tuned_weights(spec)
        return spec.method, spec.model
    if source is not None:
        return source.method, source.model
    asked, kind = str(spec.local.ckpt), METHODS[spec.method].source_for(spec.model)
    if published.is_asked(asked):
        return kind, {}
    header = checkpoints.read(Path(asked)).header
    require_fitting(spec, header, (kind,), Path(asked))
    return kind, header.recipe.part("model")


def require_fitting(spec: RunSpec, source: Header, kinds: Sequence[str], path: Path) -> None:
    """Refuses a net that is not what a run needs.

    Args:
        spec: the run.
        source: header of the net.
        kinds: methods that it may be of.
        path: its source, for the message.

    Raises:
        UserError: names what differs.
    """
    allowed: dict[str, tuple[object, ...]]
    allowed = {"method": tuple(kinds), "arch": (spec.arch,), "data": (spec.data,)}
    if not source.imported or source.epochs:  # a net that only others trained has no seed of ours: any fits
        allowed["seed"] = (spec.seed,)
    for key, values in allowed.items():
        if (found := getattr(source, key)) not in values:
            needed = " or ".join(str(value) for value in values)
            hint = _instead(spec.method, str(found)) if key == "method" else ""
            raise UserError(f"--ckpt {path}: has {key} {found}, but {spec.method} needs {key} {needed}{hint}")
    require_held_out(spec, source.recipe.part("data").get("val_split"), str(path))


def require_held_out(spec: RunSpec, held_out: object, net: str) -> None:
    """Refuses to evaluate on held-out training images that the net was trained on.

    Args:
        spec: of the evaluation.
        held_out: number of training images that the net's training held out; ``None`` for none.
        net: the net, for the message.

    Raises:
        UserError: it held out too few.
    """
    wanted = spec.data_options["val_split"]
    if spec.data_options["eval_split"] == "val" and int(str(held_out or 0)) < int(str(wanted)):
        raise UserError(
            f"--data.eval_split val: {net} was trained on some of these images, as it held out {held_out or 0}; give a "
            f"net that was trained with --data.val_split {wanted}"
        )


def _instead(method: str, found: str) -> str:
    """Says how a net of another method can be converted."""
    if found in METHODS[method].sources:
        return f"; give {METHODS[method].option_for(found)}"
    options = {name: entry.option_for(found) for name, entry in METHODS.items() if found in entry.sources}
    others = [f"{name} ({option})" if option else name for name, option in options.items()]
    return f"; such a net is converted by {', '.join(others)}" if others else ""


def described(source: Weights) -> Options:
    """Returns what a configuration says of the net that was converted or tuned."""
    return {**source.header.of_weights().recipe.config, "sha256": source.sha256()}


def converting(spec: RunSpec, source: Weights) -> Weights:
    """The same weights with the header of their conversion; how the source was trained is recorded with it."""
    theirs = source.header.of_weights().recipe
    config: Options = {**spec.config(), "source": described(source)}
    overrides = sorted({*theirs.overrides, *spec.overrides})
    recipe = RecipeHeader(name=theirs.name, overrides=overrides, config=config)
    update = {"method": spec.method, "seed": spec.seed, "recipe": recipe, "source": source.header}
    return source._replace(header=source.header.model_copy(update=update))
