"""``python -m bench compare``: shows how two runs differ in settings, environment and results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TypedDict

from pydantic import JsonValue

from bench.errors import UserError, nearest
from bench.leaderboard.text import fixed, one_line, percent
from bench.records.record import Record, read_record

# Parts of a record in the order they are shown. The time and the command of a run do not count as differences.
PARTS = (
    "what", "config", "protocol", "conversion", "environment", "code", "training", "checkpoint", "energy_model",
    "extras",
)  # fmt: skip
ABSENT = "(absent)"
Pairs = dict[str, tuple[JsonValue, JsonValue]]


class Line(TypedDict):
    """Top-1 of both runs at one T, in percent, and their steps before it; the ANN's has no T."""

    T: int | None
    warmup_a: int | None
    warmup_b: int | None
    a: Decimal | None
    b: Decimal | None
    difference: Decimal | None


def run(first: str, second: str, results: Path, as_json: bool) -> int:
    """Compares two records and prints the outcome.

    Args:
        first: path of a record or of a run's folder, or a key: the record's path under ``results`` without ``.json``,
            or a part of that which only one record has.
        second: likewise.
        results: folder of committed records.
        as_json: for programs, in full, instead of tables.

    Returns:
        0, also if the runs differ.

    Raises:
        UserError: a record is not found or not readable, or several match the name.
    """
    paths = [find(name, results) for name in (first, second)]
    a, b = (_read(path) for path in paths)
    different, curve, others = differences(a, b), curves(a, b), other_measurements(a, b)
    if as_json:
        names = dict(zip("ab", map(str, paths), strict=True))
        found = {"different": different, "curve": curve, "other_measurements": others}
        print(json.dumps({**names, **found}, indent=1, default=float))
    else:
        _show(paths, different, curve, others)
    return 0


def find(name: str, results: Path) -> Path:
    """The file that a path or key names.

    Raises:
        UserError: no record matches, or several do.
    """
    if name.endswith(".json"):
        return Path(name)
    try:
        if (Path(name) / "record.json").is_file():
            return Path(name) / "record.json"
    except (OSError, ValueError):
        pass  # not a folder's name, so it is a key
    if not results.is_dir():
        raise UserError(
            one_line(f"{name}: neither a .json file nor the folder of a run, and no committed records in {results}")
        )
    shown = one_line(name, 80)
    keys = {path.relative_to(results).with_suffix("").as_posix(): path for path in sorted(results.rglob("*.json"))}
    # A key matches from the start of a path component: qcfs/quick does not match cs_qcfs/quick.
    found = [name] if name in keys else [key for key in keys if f"/{name}" in f"/{key}"]
    if len(found) == 1:
        return keys[found[0]]
    if not found:
        raise UserError(
            one_line(f"{shown}: not the folder of a run, and no record of that name in {results}{nearest(name, keys)}")
        )
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    raise UserError(one_line(f"{shown}: several records: {', '.join(found[:3])}{more}; give more of the name"))


def _read(path: Path) -> Record:
    try:
        return read_record(path)
    except UserError as error:
        raise UserError(one_line(str(error), 400)) from error


def differences(a: Record, b: Record) -> dict[str, Pairs]:
    """For each part, the dotted names of what differs with both values; parts without a difference are left out."""
    both = [dict(_parts(record)) for record in (a, b)]
    found: dict[str, Pairs] = {}
    for part in PARTS:
        left, right = (dict(_flat(values[part])) for values in both)
        names = sorted(left.keys() | right.keys())
        pairs = {name: (left.get(name, ABSENT), right.get(name, ABSENT)) for name in names}
        # Python takes 1, 1.0 and True for equal, but they are different settings.
        pairs = {name: pair for name, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}
        if pairs:
            found[part] = pairs
    return found


def curves(a: Record, b: Record) -> list[Line]:
    """Top-1 of the ANN (T is null) and at each T of either, in percent, and ``b`` minus ``a`` in points."""
    points = [{None: record.ann} | {point.T: point for point in record.snn} for record in (a, b)]
    lines: list[Line] = []
    for T in [None, *sorted({point.T for record in (a, b) for point in record.snn})]:
        left, right = (None if (point := found.get(T)) is None else percent(point.top1) for found in points)
        before_a, before_b = (getattr(found.get(T), "warmup", None) for found in points)
        difference = None if left is None or right is None else right - left
        lines.append(
            {"T": T, "warmup_a": before_a, "warmup_b": before_b, "a": left, "b": right, "difference": difference}
        )
    return lines


def other_measurements(a: Record, b: Record) -> list[str]:
    """The names of what was measured beside top-1, such as ``synops``, and differs at a T that both have."""
    left, right = ({None: r.ann} | {point.T: point for point in r.snn} for r in (a, b))
    both = ((dict(left[T]), dict(right[T])) for T in left.keys() & right.keys())
    return sorted({name for one, other in both for name in one if name != "top1" and one[name] != other[name]})


def _parts(record: Record) -> Iterator[tuple[str, JsonValue]]:
    data = record.model_dump(mode="json")
    recipe = data["recipe"]
    yield (
        "what",
        {name: data[name] for name in ("method", "arch", "data", "seed", "limited")}
        | {"recipe": {"name": recipe["name"], "overrides": recipe["overrides"]}},
    )
    yield "config", recipe["config"]
    data["training"].pop("seconds")
    for part in PARTS[2:]:
        yield part, data[part]


def _flat(value: JsonValue, name: str = "") -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _show(paths: list[Path], different: dict[str, Pairs], curve: list[Line], others: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)

    def text(value: JsonValue) -> Text:
        # Text takes no markup, and without control characters a record cannot move the cursor.
        return Text(one_line(value if isinstance(value, str) else json.dumps(value), 200), overflow="fold")

    def table(title: str, head: tuple[str, ...]) -> Table:
        made = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
        )
        for index, name in enumerate(head):
            made.add_column(name, overflow="fold", justify="left" if index == 0 or title != "top-1 (%)" else "right")
        return made

    for letter, path in zip("AB", paths, strict=True):
        console.print(Text(f"{letter}  ") + text(str(path)), soft_wrap=True)
    made = table("top-1 (%)", ("T", "warm-up", "A", "B", "B - A"))
    for line in curve:
        T = "ANN" if line["T"] is None else str(line["T"])
        before = dict.fromkeys(str(n) for n in (line["warmup_a"], line["warmup_b"]) if n is not None)
        numbers = [fixed(line["a"]), fixed(line["b"]), fixed(line["difference"], sign=True)]
        made.add_row(T, " and ".join(before), *numbers)
    console.print("", made)
    for part, pairs in different.items():
        made = table(part, (part, "A", "B"))
        for name, (left, right) in pairs.items():
            made.add_row(text(name), text(left), text(right))
        console.print("", made)
    if others:
        console.print(Text(f"\nother measurements that differ: {', '.join(others)}"))
    elif not different and not any(line["a"] != line["b"] for line in curve):
        console.print("\nonly the time and the command of the runs differ")
