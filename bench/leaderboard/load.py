"""Reads committed records and refuses, with the reason, what must never be ranked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.errors import UserError
from bench.leaderboard.identity import identity
from bench.leaderboard.text import one_line
from bench.records.record import PROTOCOL_VERSION, Record, read_record
from bench.registry.datasets import DATA

MAX_FILE_NAME = 255
# Of a line of an error message, in characters.
LIMIT = 400


class Refusals:
    """Collects everything that is wrong, so that one run names all bad files."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, path: Path, reason: str) -> None:
        """Notes why a file is refused."""
        self.lines.append(one_line(f"{path}: {reason}", LIMIT))

    def raise_any(self) -> None:
        """Raises what was noted.

        Raises:
            UserError: one line for each reason, sorted.
        """
        if self.lines:
            raise UserError("\n".join(sorted(self.lines)))


def load(results: Path, additions: Sequence[Path] = ()) -> tuple[list[Record], list[Record]]:
    """Reads all records of a results folder, and others that are to be filed there.

    Args:
        results: the folder; one that does not exist holds no records.
        additions: ``record.json`` files from anywhere.

    Returns:
        Filed records and additions, both sorted by their path.

    Raises:
        UserError: one line for each file that is refused, with the reason.
    """
    refusals = Refusals()
    filed: dict[Path, Record] = {}
    for path in _files(results, refusals):
        record = _accepted(path, refusals)
        if record is None:
            continue
        filed[path] = record
        if path != results / record.path():
            refusals.add(path, f"its content belongs in {record.path()}")
    added: dict[Path, Record] = {}
    for path in additions:
        record = _accepted(path, refusals)
        if record is None:
            continue
        target = results / record.path()
        if target in filed:
            refusals.add(path, f"a record is already filed as {record.path()}")
        elif any(other.path() == record.path() for other in added.values()):
            refusals.add(path, f"given twice: another addition belongs in {record.path()} too")
        elif len(record.path().name) > MAX_FILE_NAME:
            refusals.add(path, "recipe name and overrides are too long for a file name")
        else:
            added[path] = record
    _consistent({**filed, **added}, refusals)
    refusals.raise_any()
    return sorted(filed.values(), key=_place), sorted(added.values(), key=_place)


def reasons(record: Record) -> Iterator[str]:
    """Why a valid record may not be on the leaderboard; nothing where it may."""
    if record.limited:
        yield "limited: measured or trained on part of the data"
    for what, code in (("code", record.code), ("training.code", record.training.code)):
        if code.dirty:
            yield f"{what}.dirty: the code differed from its commit"
        if code.commit == "unknown":
            yield f"{what}.commit is unknown"
    config = record.recipe.config
    trainer = (config["source"] if isinstance(config.get("source"), dict) else config).get("trainer")
    planned = trainer.get("max_epochs") if isinstance(trainer, dict) else None
    if record.training.epochs != planned:
        yield f"training.epochs is {record.training.epochs} of {planned}: the training was not finished"
    if record.protocol.eval_split != "test":
        yield f"protocol.eval_split is {record.protocol.eval_split}, not test"
    if record.protocol.version > PROTOCOL_VERSION:
        yield f"protocol.version {record.protocol.version} is newer than this suite's {PROTOCOL_VERSION}"
    data = DATA.get(record.data.name)
    if data is None:
        yield f"data.name: no leaderboard for {record.data.name}; there is one for {', '.join(DATA)}"
    elif record.protocol.num_eval_samples != data.num_test:
        yield f"protocol.num_eval_samples is {record.protocol.num_eval_samples}; the test set has {data.num_test}"


def _files(results: Path, refusals: Refusals) -> Iterator[Path]:
    if not results.exists():
        return
    if not results.is_dir():
        refusals.add(results, "not a folder")
        return
    for folder, subfolders, names in os.walk(results, onerror=lambda error: refusals.add(results, str(error))):
        subfolders.sort()
        # os.walk does not enter linked folders, so their records would be missed in silence.
        for name in subfolders:
            if (Path(folder) / name).is_symlink():
                refusals.add(Path(folder) / name, "symbolic links are not allowed among records")
        for name in sorted(names):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                refusals.add(path, "symbolic links are not allowed among records")
            elif name.endswith(".json") and stat.S_ISREG(mode):
                yield path
            elif name.endswith(".json"):
                refusals.add(path, "not a regular file")


def _place(record: Record) -> str:
    return record.path().as_posix()


def _accepted(path: Path, refusals: Refusals) -> Record | None:
    try:
        record = read_record(path)
    except UserError as error:
        refusals.lines.append(one_line(str(error), LIMIT))
        return None
    found = list(reasons(record))
    for reason in found:
        refusals.add(path, reason)
    return None if found else record


def _consistent(records: dict[Path, Record], refusals: Refusals) -> None:
    """Refuses what only shows across records: another test set, one seed twice, one trained net as two seeds."""
    fingerprints: dict[str, tuple[Path, str]] = {}
    nets: dict[tuple[str, ...], Path] = {}
    runs: dict[tuple[object, ...], Path] = {}
    outcomes: dict[tuple[object, ...], Path] = {}
    for path, record in sorted(records.items(), key=lambda item: str(item[0])):
        first, fingerprint = fingerprints.setdefault(record.data.name, (path, record.data.fingerprint))
        if record.data.fingerprint != fingerprint:
            refusals.add(path, f"data.fingerprint: another {record.data.name} test set than in {first}")
        net = (str(record.path().parent), record.recipe.label, record.recipe.sha256, record.checkpoint.sha256)
        experiment = identity(record)
        # Rates of single layers agree to the last digit only where nothing was drawn by the seed.
        outcome = (*experiment, record.ann.model_dump_json(), *(point.model_dump_json() for point in record.snn))
        run = (*experiment, record.seed)
        if runs.setdefault(run, path) != path:
            refusals.add(path, f"seed {record.seed} of the same experiment as {runs[run]}: one seed counts once")
        elif record.conversion.retrained and nets.setdefault(net, path) != path:
            refusals.add(path, f"checkpoint.sha256: the same trained net as in {nets[net]}, under another seed")
        elif not record.conversion.retrained and outcomes.setdefault(outcome, path) != path:
            refusals.add(path, f"seed {record.seed} has the very numbers of {outcomes[outcome]}: no seed of its own")
