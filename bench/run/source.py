"""``trained``, for methods that convert: the net they are given, from a file, published, or trained first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.errors import UserError
from bench.records.header import RecipeHeader
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
        raise UserError(f"--ckpt last: {spec.method} does not train; give the file of a {kind} net")
    if asked is not None and published.is_asked(asked):
        weights, spec = published.timm_weights(spec, kind)
        path = Path(asked)
    else:
        path = train_first(spec.net) if asked is None and spec.net is not None else Path(str(asked))
        weights = checkpoints.read(path)
    source = weights.header
    # A net that others trained has no seed of ours, so the conversion may be repeated with any.
    seed = [] if source.imported else [("seed", spec.seed)]
    for key, value in (("method", kind), ("arch", spec.arch), ("data", spec.data), *seed):
        if getattr(source, key) != value:
            raise UserError(f"--ckpt {path}: is of {key} {getattr(source, key)}, and {spec.method} needs {key} {value}")
    held_out, wanted = source.recipe.part("data").get("val_split") or 0, spec.data_options["val_split"]
    if spec.data_options["eval_split"] == "val" and int(str(held_out)) < int(str(wanted)):
        raise UserError(
            f"--data.eval_split val: {path} was trained on some of these images, as it held out {held_out}; convert a "
            f"net that was trained with --data.val_split {wanted}"
        )
    return weights, spec, path


def converting(spec: RunSpec, source: Weights) -> Weights:
    """The same weights with the header of their conversion; how the source was trained is recorded with it."""
    theirs = source.header.recipe
    config: Options = {**spec.config(), "source": {**theirs.config, "sha256": source.sha256()}}
    overrides = sorted({*theirs.overrides, *spec.overrides})
    recipe = RecipeHeader(name=theirs.name, overrides=overrides, config=config)
    update = {"method": spec.method, "seed": spec.seed, "recipe": recipe, "source": source.header}
    return source._replace(header=source.header.model_copy(update=update))
