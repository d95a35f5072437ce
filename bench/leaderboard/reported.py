"""The papers' own numbers: one hand-written YAML file per paper, number by number, with table and source.

A row keeps the paper's spelling of method, data set and net. ``same_as`` says what that is in this suite and is
written only where it is the same thing; without it a row has a name of its own and is never compared with ours.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bench.errors import UserError, first_error
from bench.leaderboard.text import one_line
from bench.records.record import Name
from bench.registry.nets import ARCHITECTURES

# The papers' spelling and the suite's name.
DATASETS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "ImageNet": "imagenet"}
REPLICATIONS = "replications"
TIMM = "timm/"
ON_IMAGENET = "cifar_resnet34"
KINDS = ("own", "secondary", "second_hand", "replication")
MAX_BYTES = 1_000_000
MAX_DEPTH = 8


def _printed(value: object) -> Decimal:
    # A Decimal keeps the digits as printed: 95.40 stays 95.40.
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,3}\.\d{1,3}", value):
        raise ValueError("a percentage as printed, for example 95.40")
    return Decimal(value)


Line = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\n\r]*$")]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=60)]
Percent = Annotated[Decimal, BeforeValidator(_printed), Field(ge=0, le=100)]
# A column printed ``T>=512`` is written 512+: no single number of steps, so nothing of ours is compared with it.
Steps = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}\+?$")]


class Strict(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _net(value: object) -> object:
    # Records name timm's nets without the prefix, which tells them from ours on the command line.
    if isinstance(value, str):
        if value.startswith(TIMM):
            return value.removeprefix(TIMM)
        if value not in ARCHITECTURES:
            raise ValueError(f"{value} is none of {', '.join(ARCHITECTURES)}, nor {TIMM}<name>")
    return value


class SameAs(Strict):
    """The suite's names for a row's method and net; a net of timm is written ``timm/<name>``."""

    method: Name | None = None
    arch: Annotated[Name | None, BeforeValidator(_net)] = None


class ReportedRow(Strict):
    """One printed row: accuracy at each T.

    ``kind``: ``own`` where the method's authors print it, ``secondary`` where another paper does, ``second_hand``
    where somebody quotes it, ``replication`` where somebody (``who``) measured it again. An absent ``L``, ``arch``,
    ``table`` or ``source`` is unknown. ``warmup`` holds the steps that the paper's T leaves out.
    """

    method: Line
    dataset: Literal["CIFAR-10", "CIFAR-100", "ImageNet"]
    arch: Line | None = None
    same_as: SameAs = SameAs()
    L: Annotated[int, Field(ge=1)] | None = None
    warmup: Annotated[int, Field(ge=0)] = 0
    kind: Literal["own", "secondary", "second_hand", "replication"]
    who: Line | None = None
    table: Line | None = None
    source: Line | None = None
    also: list[Line] = []
    note: Line | None = None
    ann_top1: Percent | None = None
    top1: Annotated[dict[Steps, Percent], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> ReportedRow:
        if (self.kind == "replication") != (self.who is not None):
            raise ValueError("who measured it is stated for replications, and only for them")
        if self.dataset == "ImageNet" and self.same_as.arch in ARCHITECTURES and self.same_as.arch != ON_IMAGENET:
            raise ValueError(f"same_as.arch: of the suite's own nets only {ON_IMAGENET} is for ImageNet")
        return self


class Paper(Strict):
    """One file: a paper's metadata and rows. An absent value is unknown."""

    key: Key
    title: Line | None = None
    authors: list[Line] = []
    venue: Line | None = None
    year: Annotated[int, Field(ge=1950, le=2100)] | None = None
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}$")] | None = None
    doi: Line | None = None
    code: list[Line] = []
    note: Line | None = None
    rows: list[ReportedRow]

    @model_validator(mode="after")
    def _kinds(self) -> Paper:
        if any((row.kind == "replication") != (self.key == REPLICATIONS) for row in self.rows):
            raise ValueError(f"replications, and nothing else, belong in {REPLICATIONS}.yaml")
        return self


def read_paper(path: Path) -> Paper:
    """Reads and validates one file.

    Raises:
        UserError: not readable, not plain YAML, duplicate keys, or against the schema; says where.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise ValueError("larger than 1 MB")
        paper = Paper.model_validate(_plain(data.decode()))
    except ValidationError as error:
        raise UserError(one_line(f"{path}: {first_error(error)}")) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(one_line(f"{path}: not a readable file of reported numbers: {error}")) from error
    if path.name != f"{paper.key}.yaml":
        raise UserError(one_line(f"{path}: its key is {paper.key}, so its name must be {paper.key}.yaml"))
    return paper


def load_reported(folder: Path) -> tuple[Paper, ...]:
    """Reads every ``*.yaml`` of a folder, in the order of their names.

    Raises:
        UserError: the folder or one of its files is not as it should be.
    """
    if not folder.is_dir():
        raise UserError(f"--reported {folder}: no such folder")
    return tuple(read_paper(path) for path in sorted(folder.glob("*.yaml")))


class _Loader(yaml.CBaseLoader):
    """Leaves every scalar a string, so that 95.40 keeps its digits, and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        pairs = [(self.construct_object(key, True), self.construct_object(value, True)) for key, value in node.value]
        names = [str(key) for key, _ in pairs]
        if len(names) != len(set(names)):
            raise ValueError(f"line {node.start_mark.line + 1}: duplicate key")
        return dict(zip(names, (value for _, value in pairs), strict=True))


def _plain(text: str) -> object:
    # Events come one by one, so hostile nesting ends here instead of in the C parser's stack.
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CBaseLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else "?"
            raise ValueError(f"line {line}: aliases and deep nesting are not allowed")
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (makes nothing but strings, lists and dicts)
