"""The format of a sweep file, and its reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast

from pydantic import BeforeValidator, Field, JsonValue, ValidationError

from bench.errors import UserError, first_error, nearest
from bench.records.record import Options, Strict
from bench.registry.methods import METHODS
from bench.run.options import SHORTHANDS, flatten
from bench.yaml_files import UNREADABLE, read_yaml, reason

Grid = dict[str, Annotated[list[JsonValue], Field(min_length=1)]]
FIXED = ("method", "arch", "data", "data.name", "seed", "out", "config", "print_config", "help")


class MethodItem(Strict):
    """A method with its own options; every combination of ``grid`` is a run.

    ``archs`` replaces the file's for this method, because a checkpoint fits one net only. ``source`` has options of the
    net that it converts; they override those in the file's ``sources``.
    """

    name: str
    archs: Annotated[list[str], Field(min_length=1)] | None = None
    options: Options = {}
    grid: Grid = {}
    source: Options = {}


def _named(item: object) -> object:
    """Expands a bare method name to the mapping that it abbreviates, so that errors always refer to a mapping."""
    return {"name": item} if isinstance(item, str) else item


class SweepFile(Strict):
    """What a sweep file holds: each method on each net, data set and seed, for each combination of ``grid``.

    ``options`` are those of ``bench fit`` and go to every run; ``sources`` has further ones for the source nets of the
    methods that do not train, by the source's method.
    """

    methods: Annotated[list[Annotated[MethodItem, BeforeValidator(_named)]], Field(min_length=1)]
    archs: Annotated[list[str], Field(min_length=1)] = ["resnet20"]
    data: Annotated[list[str], Field(min_length=1)] = ["cifar10"]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = [0]
    options: Options = {}
    grid: Grid = {}
    sources: dict[str, Options] = {}


def read_sweep(path: Path) -> SweepFile:
    """Reads and validates a sweep file.

    Raises:
        UserError: it cannot be read, or has something a sweep does not know.
    """
    try:
        content = read_yaml(path)
        sweep = SweepFile.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error, show_input=True)}") from error
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error
    own: list[tuple[str, Mapping[str, object]]]
    own = [
        (f"{i.name}.{part}", options)
        for i in sweep.methods
        for part, options in (("options", i.options), ("grid", i.grid))
    ]
    of_sources = [(f"sources.{kind}", options) for kind, options in sweep.sources.items()]
    of_sources += [(f"{item.name}.source", item.source) for item in sweep.methods]
    # A net that is there already is named for one method at a time, never for what is trained here.
    shared: list[tuple[str, Mapping[str, object]]] = [("options", sweep.options), ("grid", sweep.grid), *of_sources]
    for owners, refused in ((shared, {*FIXED, "ckpt"}), (own, {*FIXED})):
        for where, options in owners:
            for name in full_names(options):
                if name in refused:
                    raise UserError(f"{path}: {where}: the sweep sets {name} itself; remove it")
    for item in sweep.methods:
        if item.source and item.name in METHODS and METHODS[item.name].source is None:
            raise UserError(f"{path}: {item.name}.source: this method trains its own net and converts none")
    names = {item.name for item in sweep.methods}
    possible = {kind for name in names & set(METHODS) for kind in METHODS[name].sources}
    for kind in sweep.sources:
        if kind not in possible:
            hint = nearest(kind, possible)
            raise UserError(f"{path}: sources.{kind}: no method of the sweep converts such a net{hint}")
    return sweep


def full_names(options: Mapping[str, object]) -> Options:
    """Options by their full names, nested or short forms resolved."""
    return {
        SHORTHANDS.get(f"--{key}", f"--{key}")[2:]: value for key, value in flatten(cast(Options, {**options})).items()
    }
