"""Reads committed records, and refuses with a reason those that must never be ranked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.errors import UserError
from bench.files import require_folder
from bench.leaderboard.consistency import contradictions
from bench.leaderboard.identity import identity
from bench.leaderboard.text import one_line
from bench.records.record import PROTOCOL_VERSION, Record, part, read_record
from bench.registry.datasets import DATA

MAX_FILE_NAME = 255
# The longest line of an error message, in characters.
LIMIT = 400


def load(results: Path, additions: Sequence[Path] = ()) -> tuple[list[Record], list[Record]]:
    """Reads all records of a results folder, and others to be filed there.

    Args:
        results: the folder.
        additions: ``record.json`` files from anywhere.

    Returns:
        Filed records and additions, both sorted by path.

    Raises:
        UserError: one line for each file that is refused, with the reason.
    """
    refused: list[str] = []
    filed: dict[Path, Record] = {}
    for path, record in _accepted(_files(results, refused), refused):
        filed[path] = record
        if path != results / record.path():
            _refuse(refused, path, f"its content belongs in {record.path()}")
    added: dict[Path, Record] = {}
    for path, record in _accepted(additions, refused):
        if results / record.path() in filed:
            _refuse(refused, path, f"a record is already filed as {record.path()}")
        elif any(other.path() == record.path() for other in added.values()):
            _refuse(refused, path, f"given twice: another addition belongs in {record.path()} too")
        elif len(record.path().name) > MAX_FILE_NAME:
            _refuse(refused, path, "recipe name and overrides are too long for a file name")
        else:
            added[path] = record
    _consistent({**filed, **added}, refused)
    if refused:
        raise UserError("\n".join(sorted(refused)))
    return sorted(filed.values(), key=_place), sorted(added.values(), key=_place)


def reasons(record: Record) -> Iterator[str]:
    """Yields the reasons why a valid record may not be on the leaderboard."""
    if record.limited:
        yield "limited: measured or trained on part of the data, or tuned from a training that was not finished"
    for what, code in (("code", record.code), ("training.code", record.training.code)):
        if code.dirty:
            yield f"{what}.dirty: the code differed from its commit"
        if code.commit == "unknown":
            yield f"{what}.commit is unknown"
    config = record.recipe.config
    # A training that began from another net has its own settings.
    planned = part(config if "trainer" in config else part(config, "source"), "trainer").get("max_epochs")
    if record.training.epochs != planned:
        yield f"training.epochs is {record.training.epochs} of {planned}: the training was not finished"
    if record.protocol.eval_split != "test":
        yield f"protocol.eval_split is {record.protocol.eval_split}, not test"
    if record.protocol.version > PROTOCOL_VERSION:
        yield f"protocol.version {record.protocol.version} is newer than this suite's {PROTOCOL_VERSION}"
    data = DATA.get(record.data.name)
    if data is None:
        yield f"data.name: {record.data.name} has no leaderboard; choose from {', '.join(DATA)}"
    elif record.protocol.num_eval_samples != data.num_test:
        yield f"protocol.num_eval_samples is {record.protocol.num_eval_samples}; the test set has {data.num_test}"


def _files(results: Path, refused: list[str]) -> Iterator[Path]:
    require_folder("--results", results)
    for folder, subfolders, names in os.walk(results, onerror=lambda error: _refuse(refused, results, str(error))):
        subfolders.sort()
        for path in (Path(folder) / name for name in (*subfolders, *sorted(names))):
            # os.walk does not enter linked folders, so their records would be missed without an error.
            if path.is_symlink():
                _refuse(refused, path, "symbolic links are not allowed among records")
            elif path.name.endswith(".json") and path.is_file():
                yield path
            elif path.name.endswith(".json") and not path.is_dir():
                _refuse(refused, path, "not a regular file")


def _refuse(refused: list[str], path: Path, reason: str) -> None:
    """Notes why a file is refused, so that one run names all bad files."""
    refused.append(one_line(f"{path}: {reason}", LIMIT))


def _place(record: Record) -> str:
    return record.path().as_posix()


def _accepted(paths: Iterable[Path], refused: list[str]) -> Iterator[tuple[Path, Record]]:
    for path in paths:
        try:
            record = read_record(path)
        except UserError as error:
            refused.append(one_line(str(error), LIMIT))
            continue
        found = [*reasons(record), *contradictions(record)]
        if found:
            _refuse(refused, path, "; ".join(found))
        else:
            yield path, record


def _consistent(records: dict[Path, Record], refused: list[str]) -> None:
    """Refuses what only a comparison shows: other test sets, one seed twice, one trained net as two seeds."""
    fingerprints: dict[str, tuple[Path, str]] = {}
    nets: dict[tuple[str, ...], Path] = {}
    runs: dict[tuple[object, ...], Path] = {}
    outcomes: dict[tuple[object, ...], Path] = {}
    for path, record in sorted(records.items(), key=lambda item: str(item[0])):
        first, fingerprint = fingerprints.setdefault(record.data.name, (path, record.data.fingerprint))
        if record.data.fingerprint != fingerprint:
            _refuse(refused, path, f"data.fingerprint: another {record.data.name} test set than in {first}")
        net = (str(record.path().parent), record.recipe.label, record.recipe.sha256, record.checkpoint.sha256)
        experiment = identity(record)
        # Rates of single layers agree to the last digit only if nothing depends on the seed.
        outcome = (*experiment, record.ann.model_dump_json(), *(point.model_dump_json() for point in record.snn))
        run = (*experiment, record.seed)
        if runs.setdefault(run, path) != path:
            _refuse(refused, path, f"seed {record.seed} of the same experiment as {runs[run]}: one seed counts once")
        elif record.conversion.retrained and nets.setdefault(net, path) != path:
            _refuse(refused, path, f"checkpoint.sha256: the same trained net as in {nets[net]}, under another seed")
        elif not record.conversion.retrained and outcomes.setdefault(outcome, path) != path:
            _refuse(
                refused,
                path,
                f"seed {record.seed} has exactly the results of {outcomes[outcome]}, so it is not a seed of its own",
            )
