"""From a sweep file to the runs it asks for, each with its own folder and command."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from bench.errors import UserError
from bench.records import record as records
from bench.records.record import Options, differences
from bench.records.spec import RunSpec
from bench.registry.datasets import DATA
from bench.registry.entries import lookup
from bench.registry.methods import METHODS
from bench.run.checkpoints import LAST, PREVIOUS, RECORD, WEIGHTS
from bench.run.resolve import Chosen, resolve
from bench.run.source import require_held_out
from bench.run.trainer_options import TRAINING
from bench.sweep.sweep_file import SweepFile, full_names

State = Literal["recorded", "begun", "new"]


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        spec: of the run.
        folder: of the run; it depends on all that decides the result.
        arguments: of ``python -m bench``.
        source: folder of the run whose net this one converts.
        weights: whether another run converts its net.
    """

    spec: RunSpec
    folder: Path
    arguments: list[str] = field(compare=False)
    source: Path | None = None
    weights: bool = False

    @property
    def title(self) -> str:
        """For tables: what tells runs apart."""
        s = self.spec
        return f"{s.method} {s.arch} {s.data} {self.folder.name.rpartition('-')[0]}"

    @property
    def trains(self) -> bool:
        """Whether it trains its net itself."""
        return self.spec.trains

    def state(self) -> State:
        """Whether its record is there, of the present source net and for all its T, or a checkpoint to go on from.

        Weights do as well: they are written when the training is over, and its checkpoints may have been removed.
        """
        kept = any(
            (self.folder / name).exists() for name in (f"checkpoints/{LAST}", f"checkpoints/{PREVIOUS}", WEIGHTS)
        )
        begun: State = "begun" if self.trains and kept else "new"
        try:
            record = records.read_record(self.folder / RECORD)
        except UserError:
            return begun
        if self.weights and not (self.folder / WEIGHTS).exists():
            return begun  # others need its weights
        if self.source is not None:
            try:
                source = records.read_record(self.source / RECORD)
            except UserError:
                return "begun"  # its net will be another
            if record.conversion.source_sha256 != source.checkpoint.sha256:
                return "begun"
        given = Path(self.spec.local.ckpt or "")
        known = given.suffix == ".safetensors" and given.is_file()
        if known and record.conversion.source_sha256 != hashlib.sha256(given.read_bytes()).hexdigest():
            return "new" if self.trains else "begun"  # the file is that of another net now
        if set(self.spec.local.T) <= {point.T for point in record.snn}:
            return "recorded"
        return begun if self.trains else "begun"  # a conversion takes its source net once more

    def command(self) -> list[str]:
        """The arguments as they are due now: to begin, or to go on after an interruption."""
        state, arguments = self.state(), self.arguments
        if state != "recorded" and (steps := records.recorded_steps(self.folder / RECORD) - set(self.spec.local.T)):
            # Another sweep has asked for them; it would find them gone.
            arguments = [*arguments, "--T", ",".join(map(str, sorted({*steps, *self.spec.local.T})))]
        if self.trains and state == "begun":
            return [*arguments, "--ckpt", "last"]
        # A record that is not what is asked for now, and nothing to complete it from.
        stale = state != "recorded" and (self.folder / RECORD).exists()
        return [*arguments, "--overwrite"] if stale else arguments


def _words(options: Options) -> list[str]:
    words = []
    for name, value in options.items():
        if name == "T" and isinstance(value, list):
            value = ",".join(map(str, value))
        try:
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {value!r} is not a number, a text or a list of them") from error
    return words


@contextmanager
def _naming(method: str, where: tuple[str, str, int]) -> Iterator[None]:
    """Says which run bad input is for."""
    arch, data, seed = where
    try:
        yield
    except UserError as error:
        raise UserError(f"{method}, {arch}, {data}, seed {seed}: {error}") from error


def _combinations(grid: Options) -> Iterator[Options]:
    for values in itertools.product(
        *(choices if isinstance(choices, list) else [choices] for choices in grid.values())
    ):
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
        self.resolved: dict[str, RunSpec] = {}

    def plan(self) -> list[Job]:
        """All jobs in an order in which they could run one after the other.

        Raises:
            UserError: an unknown name or option; it names the run.
        """
        sweep = self.sweep
        archs = dict.fromkeys(arch for item in sweep.methods for arch in item.archs or sweep.archs)
        for data, arch, seed, item in itertools.product(sweep.data, archs, sweep.seeds, sweep.methods):
            if arch not in (item.archs or sweep.archs):
                continue
            for shared in _combinations(full_names(self.sweep.grid)):
                for own in _combinations(full_names(item.grid)):
                    common = full_names(self.sweep.options) | shared
                    source = full_names(item.source)
                    self._add(item.name, (arch, data, seed), common, full_names(item.options) | own, source)
        return list(self.jobs.values())

    def _add(self, method: str, where: tuple[str, str, int], common: Options, own: Options, net: Options) -> Job:
        entry = lookup("methods", method, METHODS)
        if entry.source is None:
            spec, words = self._resolve(method, where, common | own)
            ckpt = spec.local.ckpt
            folder = spec.folder_of(ckpt, ckpt, [], self.root) if ckpt else spec.folder(self.root)
            return self._file(spec, folder, words)
        shared = {name: value for name, value in common.items() if _for_conversion(name, where[1])}
        spec, words = self._resolve(method, where, shared | own)
        kind = entry.source_for(spec.model)
        if spec.local.ckpt:
            if net:
                raise UserError(f"{method}: ckpt and source exclude each other; the net is that of the checkpoint")
            # Nothing is trained, so nobody else would notice a wrong name among the training options.
            self._resolve(kind, where, {name: value for name, value in common.items() if name not in shared})
            return self._file(spec, spec.folder_of(spec.local.ckpt, spec.local.ckpt, [], self.root), words)
        trained = {name: value for name, value in common.items() if not name.startswith("snn.")}
        source = self._add(kind, where, trained, full_names(self.sweep.sources.get(kind, {})) | net, {})
        source = self.jobs[source.folder] = replace(source, weights=True)
        net_of = source.spec
        with _naming(method, where):
            require_held_out(spec, net_of.data_options["val_split"], f"the {kind} net of this sweep")
        folder = spec.folder_of(net_of.config(), net_of.recipe, list(net_of.overrides), self.root)
        return self._file(spec, folder, words, source.folder)

    def _resolve(self, method: str, where: tuple[str, str, int], options: Options) -> tuple[RunSpec, list[str]]:
        """A run, and the options that ask for it. Seeds share what takes long, which is to check the options."""
        arch, data, seed = where
        recipe = str(options.get("recipe") or "")
        rest = {name: value for name, value in options.items() if name != "recipe"}
        options = {**rest, "recipe": recipe} if recipe else rest
        with _naming(method, where):
            words = _words(options)
            asked = json.dumps([method, arch, data, words])
            if asked not in self.resolved:
                self.resolved[asked] = resolve(Chosen(method, arch, data, recipe), ("options", {**rest, "seed": seed}))
        names = ["--method", method, "--arch", arch, "--data", data, "--seed", str(seed)]
        return self.resolved[asked].model_copy(update={"seed": seed}), [*names, *words]

    def _file(self, spec: RunSpec, folder: Path, base: list[str], source: Path | None = None) -> Job:
        """Merges runs that differ in T alone into one run with all their T."""
        arguments = ["fit", *base, "--out", str(folder)]
        if source is not None:
            arguments += ["--ckpt", str(source / WEIGHTS)]
        job = Job(spec, folder, arguments, source)
        known = self.jobs.setdefault(folder, job)
        if known is job:
            return job
        ours, theirs = _by_name(arguments), _by_name(known.arguments)
        # The same settings can be asked for in other words: a default may be given or not.
        here, there = spec.local, known.spec.local
        differ = differences(there.model_dump(mode="json", exclude={"T"}), here.model_dump(mode="json", exclude={"T"}))
        if differ:
            fields = {entry.partition("=")[0] for entry in differ}
            # If the difference is in the recipes' files, no option names it.
            name = min((name for name in {*ours, *theirs} if name[2:] in fields), default="--recipe")
            raise UserError(
                f"{folder}: asked for twice, and {name} is {theirs.get(name, 'not given')} and "
                f"{ours.get(name, 'not given')}, which does not make them two runs; give both the same"
            )
        if set(here.T) - set(there.T):
            steps = sorted({*here.T, *there.T})
            whole = {**theirs, "--T": ",".join(map(str, steps))}
            local = there.model_copy(update={"T": tuple(steps)})
            known = replace(
                known,
                spec=known.spec.model_copy(update={"local": local}),
                arguments=["fit", *(word for pair in whole.items() for word in pair)],
            )
            self.jobs[folder] = known
        return known


def _for_conversion(option: str, data: str) -> bool:
    """Whether an option means something to a run that does not train: images, read-out, where and on what."""
    group, _, name = option.rpartition(".")
    if group == "snn":
        return True
    if group == "data":
        return name in lookup("--data", data, DATA).load().roles
    if group == "trainer":
        return name not in (*TRAINING, "precision")  # an SNN is evaluated in 32 bits
    return option in ("T", "logger", "overwrite")


def _by_name(arguments: list[str]) -> dict[str, str]:
    """Values by option, in order, of ``fit --option value ...``."""
    return dict(zip(arguments[1::2], arguments[2::2], strict=True))


def plain(job: Job) -> list[str]:
    """The whole command, as a user would type it."""
    return ["python", "-m", "bench", *job.command()]


def executable(job: Job) -> list[str]:
    """The whole command for this Python."""
    return [sys.executable, "-m", "bench", *job.command()]
