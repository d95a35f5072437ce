"""The papers' own numbers: one hand-written YAML file per paper, number by number, with table and source.

A row keeps the paper's spelling of method, data set and net. ``same_as`` gives the suite's name for it, and
is written only if both are exactly the same. A row without it is never compared with ours.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from bench.errors import UserError, first_error
from bench.files import require_folder
from bench.leaderboard.text import one_line
from bench.records.record import Name, Strict
from bench.registry.datasets import DATA
from bench.registry.nets import ARCHITECTURES
from bench.yaml_files import UNREADABLE, read_yaml, reason

REPLICATIONS = "replications"
TIMM = "timm/"
KINDS = ("own", "secondary", "second_hand", "replication")
MAX_BYTES = 1_000_000


def _printed(value: object) -> Decimal:
    # A Decimal keeps the digits as printed: 95.40 stays 95.40.
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,3}\.\d{1,3}", value):
        raise ValueError("a percentage as printed, for example 95.40")
    return Decimal(value)


Line = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\n\r]*$")]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=60)]
Percent = Annotated[Decimal, BeforeValidator(_printed), Field(ge=0, le=100)]
# A column printed as ``T>=512`` is written 512+. It is no single number of steps, so it is not compared with ours.
Steps = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}\+?$")]


def _net(value: object) -> object:
    # The prefix tells timm's nets from ours on the command line; records leave it out.
    if isinstance(value, str):
        if value.startswith(TIMM):
            return value.removeprefix(TIMM)
        if value not in ARCHITECTURES:
            raise ValueError(f"{value} is unknown; choose from {', '.join(ARCHITECTURES)} or {TIMM}<name>")
    return value


def _dataset(value: object) -> str:
    names = {entry.title: name for name, entry in DATA.items()}
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{value} is unknown; choose from {', '.join(names)}")
    return names[value]


class SameAs(Strict):
    """The suite's names of a row's method and net; a net of timm is written ``timm/<name>``."""

    method: Name | None = None
    arch: Annotated[Name | None, BeforeValidator(_net)] = None


class ReportedRow(Strict):
    """One printed row: accuracy at each T.

    ``dataset`` is written as in the papers and read as the suite's name. ``kind`` is ``own`` if the method's authors
    print the number, ``secondary`` if another paper does, ``second_hand`` if somebody quotes it, and ``replication`` if
    somebody (``who``) measured it again. An absent ``L``, ``arch``, ``table`` or ``source`` is unknown. ``warmup`` is
    the number of steps that the paper's T leaves out.
    """

    method: Line
    dataset: Annotated[str, BeforeValidator(_dataset)]
    arch: Line | None = None
    same_as: SameAs = SameAs()
    L: Annotated[int, Field(ge=1)] | None = None
    warmup: Annotated[int, Field(ge=0)] = 0
    kind: Literal["own", "secondary", "second_hand", "replication"]
    who: Line | None = None
    table: Line | None = None
    source: Line | None = None
    also: tuple[Line, ...] = ()
    note: Line | None = None
    ann_top1: Percent | None = None
    top1: Annotated[dict[Steps, Percent], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> ReportedRow:
        if (self.kind == "replication") != (self.who is not None):
            raise ValueError("give who for a replication, and only for a replication")
        ours = ARCHITECTURES.get(self.same_as.arch or "")
        if self.dataset == "imagenet" and ours is not None and not ours.imagenet:
            only = ", ".join(name for name, net in ARCHITECTURES.items() if net.imagenet)
            raise ValueError(f"same_as.arch: of the suite's own nets, only {only} is for ImageNet")
        return self


class Paper(Strict):
    """One file: a paper's metadata and rows. An absent value is unknown."""

    key: Key
    title: Line | None = None
    authors: tuple[Line, ...] = ()
    venue: Line | None = None
    year: Annotated[int, Field(ge=1950, le=2100)] | None = None
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}$")] | None = None
    doi: Line | None = None
    code: tuple[Line, ...] = ()
    note: Line | None = None
    rows: list[ReportedRow]

    @model_validator(mode="after")
    def _kinds(self) -> Paper:
        if any((row.kind == "replication") != (self.key == REPLICATIONS) for row in self.rows):
            raise ValueError(f"put replications, and only replications, in {REPLICATIONS}.yaml")
        return self


def read_paper(path: Path) -> Paper:
    """Reads and validates one file.

    Raises:
        UserError: the file cannot be read, is not plain YAML, has duplicate keys or violates the schema; says where.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("larger than 1 MB")
        paper = Paper.model_validate(read_yaml(path, as_written=True))
    except ValidationError as error:
        raise UserError(one_line(f"{path}: {first_error(error)}")) from error
    except UNREADABLE as error:
        raise UserError(one_line(f"{path}: cannot be read as reported numbers: {reason(error)}")) from error
    if path.name != f"{paper.key}.yaml":
        raise UserError(one_line(f"{path}: its key is {paper.key}, so rename it to {paper.key}.yaml"))
    return paper


def load_reported(folder: Path) -> tuple[Paper, ...]:
    """Reads every ``*.yaml`` of a folder, in the order of their names.

    Raises:
        UserError: the folder is missing, or one of its files is refused.
    """
    require_folder("--reported", folder)
    return tuple(read_paper(path) for path in sorted(folder.glob("*.yaml")))
