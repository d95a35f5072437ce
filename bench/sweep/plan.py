"""From a sweep file to the runs it asks for, each with its own folder and command."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench import records
from bench.config import Settings, parse_fit
from bench.errors import UserError, first_error
from bench.options import SHORTHANDS, flatten
from methods import METHODS

Options = dict[str, Any]
Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]
# What means something to a method that does not train: which images, where, how they are loaded and on what.
FOR_CONVERSION = ("T", "logger", "overwrite", "data.subset", "data.val_split", "data.eval_split", "data.root",
                  "data.num_workers", "data.eval_batch_size", "data.partial", "data.check", "trainer.accelerator",
                  "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.limit_test_batches")  # fmt: skip
FIXED = ("method", "arch", "data", "data.name", "seed", "out", "config", "print_config", "help")
State = Literal["recorded", "begun", "new"]


class Strict(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodItem(Strict):
    """A method with options of its own; every combination of ``grid`` is a run."""

    name: str
    options: Options = {}
    grid: Grid = {}


class SweepFile(Strict):
    """What a sweep file holds: each method on each net, data set and seed, for each combination of ``grid``.

    ``options`` are those of ``bench fit`` and go to every run; ``sources`` has further ones for the source nets of the
    methods that do not train, by the source's method.
    """

    methods: Annotated[list[str | MethodItem], Field(min_length=1)]
    archs: Annotated[list[str], Field(min_length=1)] = ["resnet20"]
    data: Annotated[list[str], Field(min_length=1)] = ["cifar10"]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = [0]
    options: Options = {}
    grid: Grid = {}
    sources: dict[str, Options] = {}


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        settings: resolved.
        folder: of the run; it depends on all that decides the result.
        arguments: of ``python -m bench``.
        source: folder of the run whose net this one converts.
    """

    settings: Settings
    folder: Path
    arguments: list[str] = field(compare=False)
    source: Path | None = None

    @property
    def title(self) -> str:
        """For tables: what tells runs apart."""
        s = self.settings
        return f"{s.method} {s.arch} {s.data} {self.folder.name.rpartition('-')[0]}"

    def state(self) -> State:
        """Whether its record is there, for all its T, or a checkpoint to go on from."""
        try:
            record = records.read_record(self.folder / "record.json")
        except UserError:
            begun = (self.folder / "checkpoints/last.ckpt").exists()
            return "begun" if begun else "new"
        whole = set(self.settings.steps) <= {point.T for point in record.snn}
        return "recorded" if whole else "begun"

    def command(self) -> list[str]:
        """The arguments as they are due now: to begin, or to go on after an interruption."""
        if self.state() != "begun":
            return self.arguments
        trains = METHODS[self.settings.method].source is None
        return [*self.arguments, *(("--ckpt", "last") if trains else ("--overwrite",))]


def read_sweep(path: Path) -> SweepFile:
    """Reads and validates a sweep file.

    Raises:
        UserError: it cannot be read, or has something a sweep does not know.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        sweep = SweepFile.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    owners = [
        ("options", sweep.options),
        ("grid", sweep.grid),
        *((f"sources.{k}", v) for k, v in sweep.sources.items()),
    ]
    for item in sweep.methods:
        if isinstance(item, MethodItem):
            owners += [(f"{item.name}.options", item.options), (f"{item.name}.grid", item.grid)]
    for where, options in owners:
        for name in _full(options):
            if name in FIXED or (name == "ckpt" and where in ("options", "grid")):
                raise UserError(f"{path}: {where}: {name} is the sweep's to set")
    return sweep


def _full(options: Mapping[str, Any]) -> Options:
    """Options by their full names, nested or short forms resolved."""
    return {SHORTHANDS.get(f"--{key}", f"--{key}")[2:]: value for key, value in flatten(dict(options)).items()}


def _words(options: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        if name == "T" and isinstance(value, list):
            value = ",".join(map(str, value))
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words


def _combinations(grid: Mapping[str, list[Any]]) -> Iterator[Options]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


class Planner:
    """Makes the jobs of a file, each once, sources before what converts them.

    Args:
        sweep: the file.
        root: folder of all runs.
    """

    def __init__(self, sweep: SweepFile, root: Path) -> None:
        self.sweep, self.root = sweep, root
        self.jobs: dict[Path, Job] = {}

    def plan(self) -> list[Job]:
        """All jobs in an order in which they could run one after the other.

        Raises:
            UserError: an unknown name or option; it names the run.
        """
        wanted = [item if isinstance(item, MethodItem) else MethodItem(name=item) for item in self.sweep.methods]
        axes = itertools.product(self.sweep.data, self.sweep.archs, self.sweep.seeds, wanted)
        for data, arch, seed, item in axes:
            for shared in _combinations(_full(self.sweep.grid)):
                for own in _combinations(_full(item.grid)):
                    common = _full(self.sweep.options) | shared
                    self._add(item.name, (arch, data, seed), common, _full(item.options) | own)
        return list(self.jobs.values())

    def _add(self, method: str, where: tuple[str, str, int], common: Options, own: Options) -> Job:
        entry = METHODS.get(method)
        converts = entry is not None and entry.source is not None
        shared = {name: value for name, value in common.items() if name in FOR_CONVERSION or not converts}
        options = shared | own
        arch, data, seed = where
        base = ["--method", method, "--arch", arch, "--data", data, "--seed", str(seed), *_words(options)]
        try:
            settings = parse_fit(base)
        except UserError as error:
            raise UserError(f"{method}, {arch}, {data}, seed {seed}: {error}") from error
        except SystemExit as stop:
            raise UserError(
                f"{method}, {arch}, {data}, seed {seed}: help and print_config are no options here"
            ) from stop
        if not converts or settings.ckpt:
            return self._file(settings, settings.folder(self.root, settings.ckpt or ""), base, None)
        assert entry is not None
        kind = entry.source_for(settings.model_args)
        source = self._add(kind, where, common, _full(self.sweep.sources.get(kind, {})))
        overrides = sorted({*source.settings.overrides, *settings.overrides})
        folder = settings.folder(self.root, "+".join([source.settings.recipe, *overrides]))
        return self._file(settings, folder, [*base, "--ckpt", str(source.folder / "model.safetensors")], source.folder)

    def _file(self, settings: Settings, folder: Path, base: list[str], source: Path | None) -> Job:
        job = Job(settings, folder, ["fit", *base, "--out", str(folder)], source)
        return self.jobs.setdefault(folder, job)


def plain(job: Job) -> list[str]:
    """The whole command, as a user would type it."""
    return ["python", "-m", "bench", *job.command()]


def executable(job: Job) -> list[str]:
    """The whole command for this Python."""
    return [sys.executable, "-m", "bench", *job.command()]
