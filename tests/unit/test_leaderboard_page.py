"""The interactive page and the curves without a browser: inert data, the same bytes, size, and time."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import make_record, point, record_dict

from bench.errors import UserError
from bench.leaderboard.aggregate import aggregate
from bench.leaderboard.curves import Picture
from bench.leaderboard.page import embedded
from bench.leaderboard.render import render
from bench.leaderboard.reported import load_reported
from bench.records.record import Record, read_record

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "leaderboards" / "reported"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u2028<!--\"'&amp;\\"


def drawn_files(records: list[Record]) -> dict[str, str | Picture]:
    papers = load_reported(COMMITTED)
    return render(aggregate(records, papers), papers)


def files(records: list[Record]) -> dict[str, str]:
    return {name: file for name, file in drawn_files(records).items() if isinstance(file, str)}


class Elements(HTMLParser):
    """Counts elements, and keeps the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.names: list[str] = []
        self.inner: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag in ("script", "style"):
            self.inner.append((tag, dict(attrs), ""))
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        if self.inner and self.get_starttag_text() and self.cdata_elem:
            tag, attrs, text = self.inner[-1]
            self.inner[-1] = (tag, attrs, text + data)


def data_of(page: str) -> Any:
    [text] = [text for _, attrs, text in Elements(page).inner if attrs.get("id") == "data"]
    return json.loads(text)


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner) | st.lists(inner)))
def test_embedded_data_is_inert_and_whole(data: Any) -> None:
    text = embedded(data)
    assert text.isascii()
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == data
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded({"a": float("nan")})


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a record holds strings."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, inner in enumerate(value) for leaf in leaves(inner, (*path, index))]
    return [path] if isinstance(value, str) else []


def poisoned(data: Any, path: tuple[Any, ...]) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = HOSTILE


def test_every_string_of_a_record_is_refused_or_inert(tmp_path: Path) -> None:
    accepted, refusals = [], []
    paths = leaves(record_dict(recipe__overrides=["a=1"]))
    assert len(paths) >= 30
    for path in paths:
        data = record_dict(recipe__overrides=["a=1"])
        poisoned(data, path)
        file = tmp_path / "record.json"
        file.write_text(json.dumps(data))
        try:
            read_record(file)
        except UserError as error:
            refusals.append(str(error))
        else:
            accepted.append(path)
    assert not [line for line in refusals if "\n" in line]
    shown = record_dict(recipe__overrides=["a=1"])
    for path in accepted:
        poisoned(shown, path)
    # What is free text: all else is refused for its form.
    assert {path[0] for path in accepted} == {"recipe", "environment", "run"}
    page = files([Record.model_validate(shown, strict=True)])["index.html"]
    assert Elements(page).names == Elements(files([make_record()])["index.html"]).names
    assert "<script>alert" not in page
    [row] = data_of(page)["rows"]
    assert HOSTILE.replace("\u2028", " ") in shlex.split(data_of(page)["texts"][row["runs"][0]["command"]])


def test_the_browser_is_told_to_run_nothing_but_the_pages_own_script() -> None:
    page = files([])["index.html"]
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; ")
    for tag in ("script", "style"):
        [text] = [text for name, attrs, text in Elements(page).inner if name == tag and "type" not in attrs]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "innerHTML" not in text
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_row_holds_what_repeats_it() -> None:
    argv = ["python", "-m", "bench", "fit", "--model.x", "a b"]
    records = [make_record(seed, run__argv=argv) for seed in range(3)]
    data = data_of(files(records)["index.html"])
    [row] = data["rows"]
    assert row["ann"] == [91.77, 0.0, 3]
    assert [cell["difference"] for cell in row["cells"]] == [0.0, 0.0, 0.0]
    assert [run["seed"] for run in row["runs"]] == [0, 1, 2]
    first, record = row["runs"][0], records[0]
    said = data["texts"]
    assert said[first["command"]] == "python -m bench fit --model.x 'a b'"
    assert f"{row['dataset']}/{row['arch']}/{row['method']}/{first['file']}" == record.path().as_posix()
    wanted = (record.code.commit, record.training.code.commit, record.checkpoint.sha256)
    assert (said[first["commit"]], said[first["trained"]], first["weights"]) == wanted


def test_every_row_has_a_name_of_its_own() -> None:
    records = [make_record(k, conversion__causal=causal) for k, causal in enumerate((True, False))]
    data = data_of(files(records)["index.html"])
    keys = [row["key"] for row in data["rows"] + data["printed"]]
    assert len(keys) == len(set(keys))
    assert len(data["rows"]) == 2


def test_long_texts_are_cut_so_that_one_record_cannot_swell_the_page() -> None:
    plain = len(files([make_record()])["index.html"])
    record = make_record(run__argv=["x" * 2000] * 400, method__options={"a": "y" * 500_000})
    assert len(files([record])["index.html"]) < plain + 20_000


# --- curves ----------------------------------------------------------------------------------------------------------


def picture(name: str, records: list[Record]) -> Picture:
    drawn = drawn_files(records)[f"curves/{name}.svg"]
    assert isinstance(drawn, Picture)
    return drawn


def test_a_curve_shows_ours_the_papers_numbers_in_its_ink_and_the_ann() -> None:
    # 73.20 is printed for T = 2 of this net.
    records = [make_record(seed, [point(2, 0.70 + seed / 100), point(4, 0.80)]) for seed in range(2)]
    ours, theirs, *_ = picture("cifar10-cifar_resnet20", records).panels[0].series
    assert (ours.label, ours.points) == ("QCFS (ICLR 2022), paper (n = 2)", ((2, Decimal("70.5")), (4, Decimal(80))))
    assert ours.spread[1] == 0 and ours.spread[0] and ours.ann == Decimal("91.77")
    assert theirs.ink == ours.ink and not theirs.spread
    assert (2, Decimal("73.20")) in theirs.points


def test_a_net_with_many_rows_shows_its_best_and_says_so() -> None:
    records = [make_record(0, [point(8, 0.5 + k / 100)], config={"model": {"L": k}}) for k in range(12)]
    drawn = picture("cifar10-cifar_resnet20", records)
    [panel] = drawn.panels
    assert [f"{series.points[0][1]:.0f}" for series in panel.series if series.spread] == [str(61 - k) for k in range(8)]
    assert "4 more rows are in the table" in drawn.svg()


def test_a_drawn_curve_is_xml_with_its_texts_and_the_same_bytes_on_another_machine(tmp_path: Path) -> None:
    """Whatever settings a person has for matplotlib; and it is fresh until what is drawn, or the file, is changed."""
    records = [make_record(0, [point(T, 0.5) for T in (1, 2, 4, 8)], recipe__overrides=["$x^2$", "a<b&c"])]
    drawn = picture("cifar10-cifar_resnet20", records)
    text = drawn.svg()
    (tmp_path / "matplotlibrc").write_text("font.family: monospace\nlines.linewidth: 7\nsvg.fonttype: path\n")
    code = "import pickle, sys; sys.stdout.write(pickle.load(sys.stdin.buffer).svg())"
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONHASHSEED": "7"}
    again = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(drawn), env=environment, capture_output=True, cwd=ROOT
    )
    assert again.stdout.decode() == text, again.stderr.decode()
    words = {node.text for node in ElementTree.fromstring(text).iter() if node.tag.endswith("}text")}
    assert {"CIFAR-10, cifar_resnet20: top-1 accuracy against T", "T (time-steps)", "1", "8"} <= words
    assert all(line == line.rstrip() for line in text.splitlines())
    assert drawn.is_in(text)
    [panel] = drawn.panels
    empty = replace(drawn, panels=(replace(panel, series=()),))
    assert empty.svg(), "of a net with nothing but 512+, which is no single T"
    assert not drawn.is_in(text.replace("time-steps", "minutes"))
    assert not replace(drawn, panels=(replace(panel, title="another"),)).is_in(text)


# --- size ------------------------------------------------------------------------------------------------------------


def thousand() -> list[Record]:
    nets, methods = ("cifar_resnet18", "cifar_resnet20", "cifar_vgg16"), ("qcfs", "srp", "cos", "nq", "rts", "tcl")
    records = []
    for k in range(1000):
        seed, place = k % 3, k // 3
        curve = [
            point(T, min(1.0, 0.5 + 0.05 * i + place / 5000), synops=1e6 * T + place)
            for i, T in enumerate((1, 2, 4, 8, 16, 32))
        ]
        changes = {
            "data__name": ("cifar10", "cifar100")[place % 2],
            "arch__name": nets[place % 3],
            "method__name": methods[place % 6],
            "config": {"model": {"L": 4, "lr": place}},
            "checkpoint__sha256": hashlib.sha256(str(k).encode()).hexdigest(),
        }
        records.append(make_record(seed, curve, **changes))
    return records


def test_a_thousand_records_are_a_small_page() -> None:
    assert len(files(thousand())["index.html"]) < 1_000_000
