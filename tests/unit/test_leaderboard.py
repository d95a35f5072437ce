"""The leaderboard over synthetic records: numbers, badges, ranks, refusals, escaping, and the same bytes every time."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from record_factory import file_record, make_record, point, record_dict, sha

from bench.cli import main as cli
from bench.errors import UserError
from bench.leaderboard import run
from bench.leaderboard.aggregate import aggregate, place
from bench.leaderboard.consistency import contradictions
from bench.leaderboard.curves import Picture
from bench.leaderboard.load import load, reasons
from bench.leaderboard.match import badge, cells, compared
from bench.leaderboard.render import render
from bench.leaderboard.reported import Paper, load_reported, read_paper
from bench.leaderboard.row import Row, measured
from bench.leaderboard.text import csv_text, fixed, link, markdown, one_line, percent
from bench.records.record import Record, read_record

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "leaderboards" / "reported"

PAPER = """\
key: bu2022qcfs
title: A title
rows:
  - method: QCFS
    dataset: CIFAR-10
    arch: ResNet-20
    same_as: {method: qcfs, arch: cifar_resnet20}
    L: 4
    kind: own
    table: Table 1
    ann_top1: 91.77
    top1: {2: 73.20, 4: 83.75, 8: 89.50, 512+: 92.412}
"""


def write_papers(folder: Path, *texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for text in texts:
        key = text.splitlines()[0].removeprefix("key: ")
        (folder / f"{key}.yaml").write_text(text)
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    return write_papers(tmp_path / "reported", PAPER)


@pytest.fixture
def papers(reported: Path) -> tuple[Paper, ...]:
    return load_reported(reported)


def pages(records: list[Record], papers: tuple[Paper, ...]) -> dict[str, str]:
    files = render(aggregate(records, papers), papers)
    return {name: repr(file) if isinstance(file, Picture) else file for name, file in files.items()}


def experiments(records: list[Record], papers: tuple[Paper, ...] = ()) -> list[list[Row]]:
    return measured(aggregate(records, papers))


def refusal(results: Path, additions: tuple[Path, ...] = ()) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(results, additions)
    return str(caught.value).splitlines()


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_mean_and_sample_deviation_agree_with_an_independent_computation() -> None:
    accuracies = [0.8311, 0.8379, 0.8402, 0.8333]
    anns = [0.91, 0.92, 0.93, 0.9177]
    records = [
        make_record(k, [point(4, a)], ann__top1=b) for k, (a, b) in enumerate(zip(accuracies, anns, strict=True))
    ]
    (row,) = aggregate(records, ())
    mean = math.fsum(100 * a for a in accuracies) / 4
    std = math.sqrt(math.fsum((100 * a - mean) ** 2 for a in accuracies) / 3)
    found = [float(value or 0) for value in (row.top1, row.std, row.ann_top1)]
    assert found == pytest.approx([mean, std, 100 * sum(anns) / 4], abs=1e-10)


def test_each_T_counts_only_the_seeds_that_have_it(papers: tuple[Paper, ...]) -> None:
    records = [
        make_record(0, [point(2, 0.70), point(4, 0.80)]),
        make_record(1, [point(4, 0.82), point(8, 0.90)]),
        make_record(2, [point(4, 0.84)]),
    ]
    assert [(row.T, row.n_T, row.top1, row.std) for row in aggregate(records, ())] == [
        (2, 1, Decimal(70), None),
        (4, 3, Decimal(82), Decimal(2)),
        (8, 1, Decimal(90), None),
    ]
    assert "| 70.00 (n=1) | 82.00 ± 2.00 | 90.00 (n=1) |" in pages(records, papers)["cifar10.md"]


def test_different_experiments_never_merge() -> None:
    changes: dict[str, Any] = {"arch__parameters": 1, "arch__macs": 1, "data__name": "cifar100", "method__name": "srp"}
    changes |= {"recipe__overrides": ["a=1"], "config": {"other": 1}, "protocol__num_train_samples": 45_000}
    changes |= {"conversion__causal": False, "method__options": {"L": 4, "v_init": 0}}
    for change in changes.items():
        assert len(experiments([make_record(0), make_record(1, **dict([change]))])) == 2, change


def converted(seed: int, **changes: Any) -> Record:
    """Of a source net of its own, as a post-training method's record says it."""
    settings = {"model": {"L": 4}, "data": {"val_split": 0}, "trainer": {"max_epochs": 300}}
    source = {**settings, "sha256": sha(str(seed)), **changes}
    config = {"model": {"rho": 4}, "source": source}
    return make_record(seed, [point(8, 0.9 + seed / 1000)], method__name="cos", config=config)


def test_seeds_with_their_own_source_nets_are_one_experiment_and_other_settings_another() -> None:
    assert [rows[0].n for rows in experiments([converted(k) for k in range(3)])] == [3]
    # L is that of the source net.
    assert [rows[0].L for rows in experiments([converted(0), converted(1, model={"L": 8})])] == [8, 4]


@pytest.mark.parametrize(("pool", "merge"), [("average", True), ("keep", False)])
def test_a_record_from_before_an_option_is_of_the_same_experiment_as_its_former_value(pool: str, merge: bool) -> None:
    """Its own option or its source net's; what options there are is the registry's, see test_registry.py."""
    configs = [{"method": "qcfs", "model": {"L": 4, **more}} for more in ({}, {"max_pool": pool})]
    own = [make_record(k, config=config, method__options=config["model"]) for k, config in enumerate(configs)]
    source = [make_record(k, config={"model": {}, "source": config}) for k, config in enumerate(configs)]
    assert [len(experiments(records)) for records in (own, source)] == [2 - merge] * 2


def test_display_rounds_half_up_with_fixed_decimals_and_percent_is_exact() -> None:
    shown = {"91.185": "91.19", "-0.004": "0.00", "0.125": "0.13", "1e300": "1" + "0" * 300 + ".00", "7": "7.00"}
    assert {value: fixed(Decimal(value)) for value in shown} == shown
    assert (fixed(Decimal("0.4"), sign=True), fixed(None)) == ("+0.40", "")
    assert 0.5507 * 100 != 55.07 and percent(0.5507) == Decimal("55.07")


# --- badges and matches ----------------------------------------------------------------------------------------------


def test_badge_edges() -> None:
    for std, most in ((None, "0.50"), ("0.1", "0.50"), ("0.5", "1.00")):
        for sign in (1, -1):
            edge = sign * Decimal(most)
            assert badge(edge, std and Decimal(std)) == "matches"
            assert badge(edge * Decimal("1.0000001"), std and Decimal(std)) == "differs"


def test_edge_of_half_a_point_survives_the_floats_of_a_record(papers: tuple[Paper, ...]) -> None:
    # 83.75 is printed; 0.8425 is exactly half a point above, 0.8426 is not.
    for top1, expected in ((0.8425, "matches"), (0.8325, "matches"), (0.8426, "differs"), (0.8324, "differs")):
        assert aggregate([make_record(0, [point(4, top1)])], papers)[0].badge == expected, top1


def test_ours_only_and_reported_only(papers: tuple[Paper, ...]) -> None:
    """A column printed as at least 512 is compared with nothing."""
    rows = aggregate([make_record(0, [point(4, 0.84), point(16, 0.9), point(512, 0.9241)])], papers)
    assert str(papers[0].rows[0].top1["8"]) == "89.50", "as printed"
    assert [(row.T, row.badge) for row in rows] == [
        *((4, "matches"), (16, "ours only"), (512, "ours only")),
        *((T, "reported only") for T in (2, 8, "512+")),
    ]


def match_of(papers: tuple[Paper, ...], overrides: tuple[str, ...] = (), **changes: Any) -> tuple[str, str] | None:
    """Kind and remark of what a row at T = 4 is set beside."""
    (row,) = aggregate([make_record(0, [point(4, 0.8375)], recipe__overrides=list(overrides))], ())
    found = compared(replace(row, **changes), cells(papers))
    return None if found.printed is None else (found.printed.kind, found.remark or "")


def test_only_the_same_experiment_is_compared(papers: tuple[Paper, ...]) -> None:
    assert match_of(papers) == ("own", "")
    assert match_of(papers, L=None) == ("own", "the record states no L (paper 4)")
    other = {"L": 8, "warmup": 4, "T": 16, "arch": "cifar_resnet18", "method": "srp", "dataset": "cifar100"}
    for change in other.items():
        assert match_of(papers, **dict([change])) is None, change


def test_options_that_the_paper_s_row_does_not_have_are_named(papers: tuple[Paper, ...]) -> None:
    """What was changed of the method against its recipe, but for L, which decides what is compared."""
    overrides = ("model.percentile=50", "model.L=4", "trainer.max_epochs=16")
    assert match_of(papers, overrides) == ("own", "ours with percentile=50")
    assert match_of(papers, overrides[1:]) == ("own", "")
    assert match_of(papers, ("snn.draws=1",)) == ("own", "")
    for other in ("snn.permute=True", "snn.delay=auto"):
        assert match_of(papers, (other,)) is None, "papers print these as methods of their own"


def test_the_authors_own_number_is_preferred_and_replications_are_never_used(tmp_path: Path) -> None:
    row = "  - {{method: QCFS, dataset: CIFAR-10, {arch}kind: {kind}, {more}top1: {{4: {top1}}}}}\n"
    same = "same_as: {method: qcfs, arch: cifar_resnet20}, "
    secondary = row.format(arch=same, kind="secondary", more="L: 4, ", top1="80.00")
    own = row.format(arch=same, kind="own", more="note: a note, ", top1="81.00")
    exact = row.format(arch=same, kind="own", more="L: 4, ", top1="82.00")
    other_net = row.format(arch="arch: ResNet-20, ", kind="own", more="L: 4, ", top1="83.00")
    again = row.format(arch=same, kind="replication", more="who: them, L: 4, ", top1="84.00")
    write_papers(tmp_path, "key: replications\nrows:\n" + again)
    assert match_of(load_reported(tmp_path)) is None
    write_papers(tmp_path, "key: a\nrows:\n" + secondary + other_net)
    assert match_of(load_reported(tmp_path)) == ("secondary", "")
    write_papers(tmp_path, "key: b\nrows:\n" + own)
    assert match_of(load_reported(tmp_path)) == ("own", "the paper states no L (ours 4); a note")
    chosen = match_of(load_reported(tmp_path), ("model.L=4",))
    assert chosen == ("secondary", ""), "of a series over L it may be any"
    write_papers(tmp_path, "key: c\nrows:\n" + exact)
    assert match_of(load_reported(tmp_path)) == ("own", "")


def test_others_who_measured_the_same_are_shown_and_counted(tmp_path: Path) -> None:
    others = PAPER.replace("kind: own", "kind: replication\n    who: them")
    papers = load_reported(write_papers(tmp_path, others.replace("key: bu2022qcfs", "key: replications")))
    text = pages([make_record(0, [point(4, 0.84), point(8, 0.91)])], papers)["cifar10.md"]
    assert "Against replications by others: 1 of 2 within 0.5 points" in text
    assert "Against the papers" not in text
    assert "of the papers' own recipes 1 of 2." in text
    assert "| QCFS (ICLR 2022) | paper | 4 | 4 | 84.00 | 83.75 | +0.25 | -7.77 | -8.02 | matches | them |" in text


def test_the_ann_that_a_paper_prints_is_shown_and_counted_from(tmp_path: Path) -> None:
    """Of a method whose registry line names another classifier of the record; other extras are no reference."""
    papers = load_reported(write_papers(tmp_path, PAPER.replace("method: qcfs", "method: nq")))
    records = [named(method, point(4, 0.84), extras={"ann_noisy": 0.83}) for method in ("nq", "qcfs")]
    written = pages(records, papers)
    assert written["cifar10.md"].count("| 91.77 (noisy: 83.00) |") == 1
    lines = [line for line in csv.DictReader(io.StringIO(written["cifar10.csv"])) if line["recipe"]]
    assert {line["method"]: line["ann_noisy_top1"] for line in lines} == {"nq": "83.00", "qcfs": ""}
    (nq,) = [row for row in aggregate(records, papers) if row.printed and row.records]
    assert nq.gaps == (Decimal(1), Decimal("-8.02"))


def test_what_conversion_loses_is_set_beside_what_the_paper_s_loses(tmp_path: Path) -> None:
    """Unknown where no ANN is printed, or where some seeds lack the T."""

    def gaps(records: list[Record], text: str = PAPER) -> list[str]:
        rows = aggregate(records, load_reported(write_papers(tmp_path, text)))
        return [" ".join(fixed(gap, sign=True) for gap in row.gaps) for row in rows if row.records]

    record = make_record(0, [point(4, 0.84), point(8, 0.91)], ann={"top1": 0.90, "top5": 0.99})
    assert gaps([record]) == ["-6.00 -8.02", "+1.00 -2.27"]
    assert gaps([record], PAPER.replace("    ann_top1: 91.77\n", "")) == ["-6.00 ", "+1.00 "]
    second = make_record(1, [point(4, 0.84)], ann={"top1": 0.80, "top5": 0.99})
    assert gaps([record, second]) == ["-1.00 -8.02", " -2.27"]


@pytest.mark.parametrize(("written", "arch"), [("cifar_resnet34", "cifar_resnet34"), ("timm/resnet34", "resnet34")])
def test_nets_for_imagenet_are_compared_by_the_names_of_records(tmp_path: Path, written: str, arch: str) -> None:
    text = PAPER.replace("dataset: CIFAR-10", "dataset: ImageNet").replace("cifar_resnet20", written)
    papers = load_reported(write_papers(tmp_path, text))
    for name, verdict in ((arch, "matches"), ("resnet50", "ours only")):
        record = make_record(0, [point(4, 0.8375)], data__name="imagenet", arch__name=name)
        assert aggregate([record], papers)[0].badge == verdict


def test_warm_up_is_compared_and_counted(tmp_path: Path) -> None:
    papers = load_reported(write_papers(tmp_path, PAPER.replace("    L: 4\n", "    warmup: 4\n")))
    (rows,) = experiments([make_record(0, [point(4, 0.8375, warmup=4), point(8, 0.9, warmup=0)])], papers)
    assert [(row.latency, row.badge) for row in rows] == [(8, "matches"), (8, "ours only")]


# --- ranks -----------------------------------------------------------------------------------------------------------


def named(method: str, *points: dict[str, Any], **changes: Any) -> Record:
    return make_record(0, points, method__name=method, **changes)


def ranks(records: list[Record]) -> list[tuple[str, int | None]]:
    return [(rows[0].method, rows[0].rank) for rows in experiments(records)]


def test_rank_is_by_the_run_of_eight_steps_of_latency() -> None:
    records = [
        named("slow", point(4, 0.70), point(8, 0.80), point(64, 0.99)),
        named("warm", point(4, 0.75, warmup=4), point(8, 0.95, warmup=4)),
        named("tied", point(8, 0.80)),
        named("only_long", point(16, 0.99)),
        named("leaves_out", point(6, 0.98)),
    ]
    assert ranks(records) == [("slow", 1), ("tied", 1), ("warm", 3), ("leaves_out", None), ("only_long", None)]
    (row,) = aggregate([records[-1]], ())
    assert "no result at a latency of 8, not ranked" in (row.marks or ())


def test_a_rank_never_rests_on_some_of_the_seeds() -> None:
    """A row is not ranked by what a single seed has."""
    records = [
        make_record(0, [point(4, 0.7), point(8, 0.95)], method__name="few"),
        make_record(1, [point(4, 0.7)], method__name="few"),
        *(make_record(seed, [point(4, 0.6), point(8, 0.8)], method__name="all") for seed in (0, 1)),
    ]
    assert ranks(records) == [("all", 1), ("few", None)]
    few = aggregate(records[:2], ())[0]
    assert "not all seeds have a result at a latency of 8, not ranked" in (few.marks or ())


def test_a_source_net_is_a_row_only_where_its_own_conversion_has_none_and_is_not_ranked() -> None:
    """The conversion of the very net by the method of the same paper is the row; that of another paper is another."""
    source = named("relu", point(8, 0.9), checkpoint__sha256=sha("a net"))
    own = named("max_norm", point(8, 0.9), conversion__source_sha256=sha("a net"))
    other = named("opi", point(8, 0.95), conversion__source_sha256=sha("a net"))
    of_another_net = named("max_norm", point(8, 0.9))
    assert ranks([source, own, other]) == [("opi", 1), ("max_norm", 2)]
    assert ranks([source, other]) == [("opi", 1), ("relu", None)]
    assert ranks([source, of_another_net]) == [("max_norm", 1), ("relu", None)]
    assert "source net of other methods, not ranked" in (aggregate([source], ())[0].marks or ())


@pytest.mark.parametrize(("method", "marked"), [("pascal", True), ("tpp", False)])
def test_a_row_that_is_its_twin_by_construction_is_marked(method: str, marked: bool) -> None:
    [row] = aggregate([named(method, point(8, 0.9))], ())
    assert ("equals its quantised twin" in (row.marks or ())) == marked


def test_a_printed_row_is_drawn_however_many_rows_of_ours_are_better(papers: tuple[Paper, ...]) -> None:
    """The picture has the best eight of ours, and every printed row of the net."""
    better = [named(f"method{k}", point(4, 0.9), point(8, 0.99 - k / 1000)) for k in range(9)]
    (net,) = [text for name, text in pages([*better, make_record()], papers).items() if name.endswith(".svg")]
    assert "qcfs, paper (n = 1)" not in net
    assert "QCFS (ICLR 2022), L = 4, bu2022qcfs (own)" in net


def test_the_overview_names_the_first_of_each_net(papers: tuple[Paper, ...]) -> None:
    text = pages([named("qcfs", point(8, 0.9)), named("second", point(8, 0.8))], papers)["README.md"]
    first = "| CIFAR-10 | cifar_resnet20 | full recipes | QCFS (ICLR 2022) | paper | 1 | 8 | 8 | 90.00 | n &#60; 3 |"
    assert first in text
    assert "second" not in text.split("## How to read it")[0]
    assert "n &#60; 3" not in pages([make_record(k) for k in range(3)], papers)["README.md"]
    assert "| [CIFAR-10](cifar10.md) | 2 | 2 | 1 | 0 | 1 | 3 |" in text


def test_best_test_is_shown_marked_and_never_ranked() -> None:
    chosen = named("chosen", point(8, 0.99), protocol__checkpoint_selection="best_test")
    assert ranks([chosen, named("honest", point(8, 0.80))]) == [("honest", 1), ("chosen", None)]
    assert "epoch chosen on the test set, not ranked" in (aggregate([chosen], ())[0].marks or ())


def test_an_older_protocol_is_apart_and_never_ranked(
    monkeypatch: pytest.MonkeyPatch, papers: tuple[Paper, ...]
) -> None:
    for module in ("aggregate", "render", "load"):
        monkeypatch.setattr(f"bench.leaderboard.{module}.PROTOCOL_VERSION", 2)
    records = [named("old", point(8, 0.99)), named("new", point(8, 0.80), protocol__version=2)]
    assert ranks(records) == [("new", 1), ("old", None)]
    new, old = pages(records, papers)["cifar10.md"].split("protocol 1 (earlier, never ranked)")
    assert "| new |" in new and "| old |" not in new
    assert "| old |" in old


# --- the same bytes --------------------------------------------------------------------------------------------------


def many_records() -> list[Record]:
    records = []
    for seed in range(3):
        for method, top1 in (("qcfs", 0.8371), ("srp", 0.8371), ("cos", 0.9)):
            for data in ("cifar10", "digits"):
                top = top1 + seed / 1000
                records.append(make_record(seed, [point(4, top), point(8, top)], method__name=method, data__name=data))
        records.append(make_record(seed, arch__parameters=1))
        records.append(make_record(seed, method__options={"L": 8}))
        records.append(make_record(seed, protocol__checkpoint_selection="best_test"))
    return records


def test_the_order_of_records_does_not_matter_and_rows_sort_totally() -> None:
    papers = load_reported(COMMITTED)
    records = many_records()
    expected = pages(records, papers)
    for shuffle in range(3):
        random.Random(shuffle).shuffle(records)
        assert pages(records, papers) == expected
    assert set(expected) >= {"README.md", "index.html", "cifar10.md", "cifar10.csv", "digits.md", "digits.csv"}
    # Another net of that name, and one whose rows are all printed.
    assert set(expected) >= {f"curves/cifar10-cifar_{net}.svg" for net in ("resnet20", "resnet20~2", "vgg16")}
    places = [place(rows) for rows in experiments(records)]
    assert len(set(places)) == len(places)
    assert places == sorted(places)


def test_pages_have_line_feeds_fixed_decimals_and_no_trailing_blanks(papers: tuple[Paper, ...]) -> None:
    for name, text in pages([make_record(k) for k in range(3)], papers).items():
        if name.endswith(".svg"):
            continue
        assert "\r" not in text, name
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        assert all(line == line.rstrip() for line in text.splitlines()), name


def test_csv_has_one_line_for_each_T_and_reported_cells_after_them(papers: tuple[Paper, ...]) -> None:
    lines = list(csv.DictReader(io.StringIO(pages([make_record(k) for k in range(3)], papers)["cifar10.csv"])))
    assert [line["T"] for line in lines] == ["2", "4", "8", "512+"]
    assert (lines[3]["badge"], lines[3]["reported_top1"]) == ("reported only", "92.412"), "as printed"
    third = lines[2]
    wanted = {"top1": "89.55", "std": "0.00", "n": "3", "seeds": "0 1 2", "reported_top1": "89.50", "causal": "true"}
    wanted |= {"difference": "+0.05", "quantised_top1": "90.00", "firing_rate": "0.1250", "latency": "8", "L": "4"}
    wanted |= {"protocol": "1", "alphabet": "binary", "train_samples": "50000", "precision": "fp32"}
    assert {key: third[key] for key in wanted} == wanted


# --- hostile text ----------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>|x`y`\n# h [a](javascript:x) <img src=x onerror=1> ![i](http://e.org) www.e.org _z_"


def assert_inert(page: str) -> None:
    """Parses a page as a reader's browser would get it: no HTML of its own, and links only where we put them."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough").parse(page)
    inline = [child for token in tokens for child in token.children or []]
    assert [t.content.startswith("<!-- Generated") for t in tokens if t.type == "html_block"] == [True]
    assert not [t for t in inline if t.type == "html_inline"]
    images = [str(t.attrs["src"]) for t in inline if t.type == "image"]
    assert all(re.fullmatch(r"curves/[A-Za-z0-9_.+=,~-]+\.svg", source) for source in images)
    targets = [str(t.attrs["href"]) for t in inline if t.type == "link_open"]
    assert all(
        target.split(":")[0] == "https" or target.endswith((".md", ".csv", ".yaml", ".svg", "index.html"))
        for target in targets
    )
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_hostile_strings_of_records_and_reported_files_are_inert(tmp_path: Path) -> None:
    text = json.dumps(HOSTILE.replace("\n", " "))
    hostile = f"""\
key: evil
title: {text}
venue: {text}
doi: {text}
code: [{text}, "javascript:alert(1)", "https://e.org/)[x](y"]
rows:
  - method: {text}
    dataset: CIFAR-10
    arch: {text}
    kind: own
    table: "=HYPERLINK(1)"
    source: {text}
    note: {text}
    top1: {{4: 80.00, 5: 81.00, 512+: 82.00}}
"""
    record = make_record(0, recipe__overrides=[HOSTILE, "=1+1"], run__argv=[HOSTILE], environment__device=HOSTILE)
    files = pages([record], load_reported(write_papers(tmp_path, hostile)))
    for name, content in files.items():
        if name.endswith(".md"):
            assert_inert(content)
    *_, line = csv.DictReader(io.StringIO(files["cifar10.csv"]))
    assert line["reported_in"] == "'=HYPERLINK(1)"


@settings(max_examples=150, deadline=None)
@given(
    st.text(
        alphabet=st.sampled_from("<>&|`*_[]()!\\~#$@:/.w-+ =\n\r\t\x00\u202e\"'aA1é") | st.characters(), max_size=40
    )
)
@pytest.mark.parametrize("edge", ["", "x"])
def test_any_text_is_one_inert_cell(edge: str, text: str) -> None:
    page = f"| a | b |\n| --- | --- |\n| {edge}{markdown(text)}{edge} | y |\n"
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough").parse(page)
    cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open"]
    assert len(cells) == 2
    assert {child.type for cell in cells for child in cell.children or []} <= {"text", "text_special"}
    shown = "".join(child.content for child in cells[0].children or [])
    assert " ".join(shown.split()) == " ".join(f"{edge}{one_line(text)}{edge}".split())


def test_emphasis_and_addresses_are_broken_names_are_left_alone_and_links_go_to_http_only() -> None:
    assert markdown("cifar_resnet20 +0.38") == "cifar_resnet20 +0.38"
    assert markdown("_z_ a_ _b") == "&#95;z&#95; a&#95; &#95;b"
    assert markdown("https://e.org www.e.org a@e.org") == "https&#58;//e.org www&#46;e.org a&#64;e.org"

    assert link("code", "https://e.org/a_b") == "[code](https://e.org/a_b)"
    for address in ("javascript:alert(1)", "https://e.org/) [x](y", "https://e.org/\n", 'https://e.org/"x'):
        assert "](" not in link("code", address)
    assert csv_text("@x\ny") == "'@x y"


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"limited": True}, "limited"),
        ({"code__dirty": True}, "code.dirty"),
        ({"training__code": {"commit": "a" * 40, "dirty": True}}, "training.code.dirty"),
        ({"code__commit": "unknown"}, "code.commit is unknown"),
        ({"training__epochs": 120}, "training.epochs is 120 of 300: the training was not finished"),
        (
            {"method__name": "cos", "config": {"source": {"trainer": {"max_epochs": 400}}}},
            "training.epochs is 300 of 400",
        ),
        ({"protocol__eval_split": "val"}, "eval_split is val"),
        ({"protocol__version": 99}, "protocol.version 99 is newer"),
        ({"protocol__num_eval_samples": 20_000}, "num_eval_samples is 20000; the test set has 10000"),
        ({"data__name": "imagenet", "protocol__num_eval_samples": 10_000}, "the test set has 50000"),
        ({"data__name": "mnist"}, "mnist has no leaderboard"),
    ],
)
def test_each_reason_to_refuse_and_every_bad_file_are_named(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    file_record(tmp_path, make_record(7))
    bad = [file_record(tmp_path, make_record(seed, **change)) for seed in range(2)]
    lines = refusal(tmp_path)
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in bad]
    assert all(reason in line for line in lines)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"method": "srp"}}, "method.name is qcfs"),
        ({"method__name": "zaphod"}, "unknown method zaphod"),
        ({"method__paper": "hao2023srp"}, "method.paper is hao2023srp"),
        ({"config": {"arch": "cifar_vgg16"}}, "arch.name is cifar_resnet20"),
        ({"config": {"data": {"name": "cifar100"}}}, "data.name is cifar10"),
        ({"method__options": {"L": 8}, "config": {"model": {"L": 4}}}, "method.options: L=8"),
        ({"method__options": {}, "config": {"model": {"L": 4}}}, "method.options: L=None"),
        ({"data__num_classes": 7}, "data.num_classes is 7"),
        ({"arch__parameters": 1}, "arch.parameters is 1"),
        ({"seed": 2**40}, "seed is 1099511627776"),
        ({"energy_model": "mine"}, "energy_model is mine"),
        ({"ann__top1": 0.999}, "ann: top1 0.999 is above top5 0.99"),
        ({"snn": [point(8, 0.9, top5=0.8)]}, "snn T=8: top1 0.9 is above top5 0.8"),
        ({"snn": [point(8, 0.123456789)]}, "top1 0.123456789 is not a whole number of 10000 images"),
        ({"ann__top5": 0.99999}, "top5 0.99999 is not a whole number of 10000 images"),
        ({"snn": [point(8, 0.9, quantised_top1=1 / 3)]}, "quantised_top1"),
        ({"conversion__retrained": False}, "conversion.retrained is False"),
        ({"method__name": "cos", "conversion__retrained": True}, "conversion.retrained is True"),
        (
            {"method__name": "cos", "conversion__source_sha256": None, "config": {"source": {"sha256": None}}},
            "conversion.source_sha256: cos converts a qcfs net",
        ),
        (
            {"method__name": "cos", "conversion__source_sha256": sha("a"), "config": {"source": {"sha256": sha("b")}}},
            "is not that of recipe.config.source",
        ),
        ({"conversion__source_sha256": sha("any")}, "is not that of recipe.config.source"),
    ],
)
def test_a_record_whose_parts_contradict_each_other_is_not_filed(
    tmp_path: Path,
    results: Path,
    reported: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    reason: str,
) -> None:
    """The same record without the contradiction is."""
    paths = {"--results": results, "--reported": reported, "--out": tmp_path / "out", "--add": tmp_path / "record.json"}
    command = ["leaderboard", *(str(word) for pair in paths.items() for word in pair)]
    make_record(**change).write(tmp_path / "record.json")
    before = snapshot(tmp_path)
    assert cli.main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(reason in line for line in lines), lines
    assert snapshot(tmp_path) == before
    make_record(method__name=change.get("method__name", "qcfs").replace("zaphod", "qcfs")).write(paths["--add"])
    assert cli.main(command) == 0


def broken(**changes: Any) -> str:
    return json.dumps(record_dict(**changes))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (broken(schema_version=2), "of a newer version of this suite (schema_version 2)"),
        (broken(schema_version=0), "schema_version: Input"),
        (broken().replace('"limited": false', '"limited": false, "limited": false'), "duplicate key 'limited'"),
        (broken().replace("0.732", "NaN"), "NaN"),
        (broken().replace("0.732", '"0.732"'), "snn.0.top1"),
        (broken().replace('"limited": false', '"limited": false, "more": 1'), "more: unknown key"),
        (broken().replace('"limited"', '"limitd"'), "limitd: unknown key (did you mean limited?)"),
        (broken(config={"a": 1}).replace('"a": 1', '"a": 2'), "recipe.sha256"),
        (broken(config={"a": 2.5}).replace("2.5", "1e999"), "finite number"),
        (broken(config={"a": json.loads("[" * 300 + "]" * 300)}), "nested more than 20 levels"),
        (broken(config={"data": "x"}), "data is not a mapping"),
        (broken(config={"source": {"model": {"L": 4}, "data": 1}}), "config.source: data is not a mapping"),
        (broken(arch__name="../evil"), "arch.name"),
        ("[" * 100_000, "not a readable record"),
        (broken(arch__parameters=10**19), "arch.parameters"),
        (" " * 20_000_001, "larger than 20 MB"),
        ('"\ud800"', ""),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_unreadable_records_are_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "cifar10" / "a\nerror: forged\x1b[31m.json"
    path.parent.mkdir()
    path.write_bytes(text.encode(errors="surrogatepass"))
    (line,) = refusal(tmp_path)
    assert line.startswith(str(path.parent)) and "\x1b" not in line
    assert reason in line
    assert len(line) <= 400


def test_symbolic_links_and_odd_files_are_refused(tmp_path: Path, results: Path) -> None:
    outside = tmp_path / "outside"
    path = file_record(outside, make_record())
    (results / "linked").symlink_to(outside)
    target = results / "cifar100" / "x.json"
    target.parent.mkdir()
    target.symlink_to(path)
    os.mkfifo(results / "pipe.json")
    assert [(Path(line.split(": ")[0]).name, line.split(": ")[1]) for line in refusal(results)] == [
        ("x.json", "symbolic links are not allowed among records"),
        ("linked", "symbolic links are not allowed among records"),
        ("pipe.json", "not a regular file"),
    ]


def test_what_only_shows_across_records_is_refused(tmp_path: Path) -> None:
    """A record in another's place, one trained net as two seeds, two test sets under one name."""
    make_record().write(tmp_path / "0" / "cifar10" / "moved.json")
    assert refusal(tmp_path / "0")[0].endswith(f": its content belongs in {make_record().path()}")
    for changes, reason in (
        (
            {"checkpoint__sha256": sha("one net")},
            "checkpoint.sha256: the same trained net as in {}, under another seed",
        ),
        ({"data__fingerprint": sha("another")}, "data.fingerprint: another cifar10 test set than in {}"),
    ):
        folder = tmp_path / next(iter(changes))
        kept = changes if "checkpoint__sha256" in changes else {}
        first, second = file_record(folder, make_record(0, **kept)), file_record(folder, make_record(1, **changes))
        assert refusal(folder) == [f"{second}: {reason.format(first)}"]


def test_one_seed_counts_once_however_often_its_source_net_was_trained(tmp_path: Path) -> None:
    for name in ("trained", "trained again"):
        file_record(tmp_path, converted(0, sha256=sha(name)))
    assert [line.partition(": ")[2].partition(" of")[0] for line in refusal(tmp_path)] == ["seed 0"]
    for seed in range(2):
        file_record(tmp_path / "other", converted(seed))
    assert len(load(tmp_path / "other")[0]) == 2


def test_conversions_of_one_source_net_are_seeds_where_they_differ(tmp_path: Path) -> None:
    """Thresholds may start at random; a seed that nothing was drawn by gives the very same numbers."""
    one = {"checkpoint__sha256": sha("one"), "method__name": "cos"}
    for seed, rate in enumerate((0.125, 0.25)):
        file_record(tmp_path, make_record(seed, [point(8, 0.9, firing_rate=rate)], **one))
    assert len(load(tmp_path)[0]) == 2
    third = file_record(tmp_path, make_record(2, [point(8, 0.9, firing_rate=0.25)], **one))
    (line,) = refusal(tmp_path)
    assert line.startswith(f"{third}: seed 2 has exactly the results of ")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("key: bu2022qcfs", "key: other", "rename it to other.yaml"),
        ("title: A title", "titel: A title", "titel: unknown key (did you mean title?)"),
        ("    L: 4", "    l4: 4", "rows.0.l4: unknown key"),
        ("title: A title", "title: [A", "line 3: did not find expected"),
        ("title: A title", "title: A title\ntitle: B", "the key title is there twice"),
        ("4: 83.75", "4: 83.75, 4: 83.76", "the key 4 is there twice"),
        ("83.75", "83", "as printed"),
        ("4: 83.75", "0: 83.75", "top1"),
        ("cifar_resnet20", "cifar_resnet21", "same_as"),
        ("dataset: CIFAR-10", "dataset: MNIST", "dataset"),
        ("dataset: CIFAR-10", "dataset: cifar10", "CIFAR-10"),
        ("dataset: CIFAR-10", "dataset: ImageNet", "only cifar_resnet34 is for ImageNet"),
        ("kind: own", "kind: replication", "who"),
        ("kind: own", "kind: replication\n    who: me", "replications"),
        ("title: A title", "title: &a A title\nvenue: *a", "aliases"),
        ("title: A title", "title: " + "[" * 50_000, "nesting"),
        ("title: A title", "title: " + "x" * 2_000_000, "larger than 1 MB"),
    ],
)
def test_bad_reported_files_are_refused_in_one_line(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in PAPER
    path = tmp_path / "bu2022qcfs.yaml"
    path.write_text(PAPER.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        read_paper(path)
    (line,) = str(caught.value).splitlines()
    assert reason in line


# --- the command -----------------------------------------------------------------------------------------------------


MADE = ["README.md", "cifar10.csv", "cifar10.md", "curves/cifar10-cifar_resnet20.svg", "index.html"]


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def test_no_records_at_all(tmp_path: Path, results: Path, reported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(results, reported, tmp_path / "out", False, True, []) == 0
    assert not (tmp_path / "out").exists()
    assert [row["badge"] for row in json.loads(capsys.readouterr().out)] == ["reported only"] * 4
    assert run(results, reported, tmp_path / "out", False, False, []) == 0
    assert files_in(tmp_path / "out") == MADE
    assert "No results yet." in (tmp_path / "out" / "cifar10.md").read_text()


def test_check_writes_nothing_and_names_stale_missing_and_surplus_files(
    tmp_path: Path, results: Path, reported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(results, reported, out, True, False, []) == 1
    assert not out.exists()
    run(results, reported, out, False, False, [])
    assert run(results, reported, out, True, False, []) == 0
    (out / "notes.md").write_text("a person's own file")
    (out / "curves" / "own.svg").write_text("<svg/>")
    for name in ("digits.md", "digits.csv"):
        (out / name).write_bytes((out / f"cifar10{Path(name).suffix}").read_bytes())
    curve = out / "curves" / "cifar10-cifar_resnet20.svg"
    (out / "curves" / "digits-x.svg").write_bytes(curve.read_bytes())
    (out / "README.md").write_text("edited")
    (out / "index.html").write_text((out / "index.html").read_text().replace("73.2", "93.2"))
    curve.write_text(curve.read_text().replace("QCFS", "qcfs").replace("own", "OWN"))
    (out / "cifar10.csv").unlink()
    before = snapshot(out)
    capsys.readouterr()
    assert run(results, reported, out, True, False, []) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/{name}"
        for name in (
            *("README.md: stale", "cifar10.csv: missing", "curves/cifar10-cifar_resnet20.svg: stale"),
            *("curves/digits-x.svg: surplus", "digits.csv: surplus", "digits.md: surplus", "index.html: stale"),
        )
    ]
    assert snapshot(out) == before
    assert run(results, reported, out, False, False, []) == 0
    assert run(results, reported, out, True, False, []) == 0
    assert files_in(out) == sorted([*MADE, "curves/own.svg", "notes.md"])


def test_unchanged_files_are_not_rewritten_and_notes_are_linked(tmp_path: Path, results: Path, reported: Path) -> None:
    out = tmp_path / "out"
    run(results, reported, out, False, False, [])
    before = {name: (out / name).stat() for name in files_in(out)}
    file_record(results, make_record(0, [point(8, 0.75)], data__name="digits", ann__top1=0.75, ann__top5=1.0))
    run(results, reported, out, False, False, [])
    same = {"cifar10.md", "cifar10.csv", "curves/cifar10-cifar_resnet20.svg"}
    assert {name for name in before if before[name].st_ino == (out / name).stat().st_ino} == same
    assert "notes" not in (out / "cifar10.md").read_text()
    (out / "notes").mkdir()
    (out / "notes" / "cifar10.md").write_text("by hand")
    run(results, reported, out, False, False, [])
    assert "[notes/cifar10.md](notes/cifar10.md)" in (out / "cifar10.md").read_text()
    assert (out / "notes" / "cifar10.md").read_text() == "by hand"


def test_add_files_a_record_and_regenerates(
    tmp_path: Path, results: Path, reported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, record = tmp_path / "out", make_record()
    record.write(tmp_path / "run" / "record.json")
    assert run(results, reported, out, False, True, [tmp_path / "run" / "record.json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)[0]["top1"] == 73.2
    assert f"filed {results / record.path()}" in printed.err
    assert (results / record.path()).read_text() == record.dumps()
    assert run(results, reported, out, True, False, []) == 0
    assert "73.20" in (out / "cifar10.md").read_text()
    with pytest.raises(UserError, match="already filed"):
        run(results, reported, out, False, False, [tmp_path / "run" / "record.json"])


def test_a_reader_that_goes_away_leaves_no_stale_page(tmp_path: Path, results: Path, reported: Path) -> None:
    out = tmp_path / "out"
    file_record(results, make_record())
    words = [str(results), str(reported), str(out)]
    command = f"from pathlib import Path; from bench.leaderboard import run; run(*map(Path, {words}), False, False, [])"
    read, write = os.pipe()
    os.close(read)
    subprocess.run([sys.executable, "-c", command], stdout=write, stderr=subprocess.DEVNULL, check=False)
    os.close(write)
    assert run(results, reported, out, True, False, []) == 0


@pytest.mark.parametrize(
    ("changes", "reason", "broken"),
    [
        ([{}, {}], "given twice", ""),
        ([{}, {"limited": True}], "limited", ""),
        ([{"recipe__overrides": ["x" * 300]}], "too long", ""),
        ([{}], "not drawn", "render.to_csv"),
        ([{}], "not drawn", "curves.Picture.svg"),
    ],
)
def test_nothing_is_written_where_an_addition_is_refused_or_rendering_fails(
    tmp_path: Path,
    results: Path,
    reported: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: list[dict[str, Any]],
    reason: str,
    broken: str,
) -> None:
    paths = [tmp_path / f"run{index}" / "record.json" for index in range(len(changes))]
    for path, change in zip(paths, changes, strict=True):
        make_record(**change).write(path)
    if broken:
        monkeypatch.setattr(f"bench.leaderboard.{broken}", Mock(side_effect=UserError("not drawn")))
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=reason):
        run(results, reported, tmp_path / "out", False, False, paths)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("option", "check"),
    [
        ("--results", []),
        ("--results", ["--check"]),
        ("--reported", []),
        ("--reported", ["--check"]),
        ("--wandb-dir", []),
    ],
)
def test_an_absent_folder_is_refused_in_one_line(
    tmp_path: Path, results: Path, reported: Path, capsys: pytest.CaptureFixture[str], option: str, check: list[str]
) -> None:
    """A mistyped folder of results would make empty pages."""
    folders = {"--results": results, "--reported": reported, "--out": tmp_path / "out", option: tmp_path / "absent"}
    assert cli.main(["leaderboard", *(str(word) for pair in folders.items() for word in pair), *check]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option in line and f"{tmp_path / 'absent'}: folder not found" in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "absent").exists()
    with pytest.raises(UserError, match="folder not found"):
        run(tmp_path / "absent", reported, tmp_path / "out", False, False, [])


def test_the_command_line_refuses_with_status_2(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["leaderboard", "--results", str(results), "--out", str(tmp_path / "o")]
    assert cli.main([*arguments, "--check", "--add", str(tmp_path / "record.json")]) == 2
    assert "--check" in capsys.readouterr().err
    assert cli.main([*arguments, "--reported", str(COMMITTED), "--check"]) == 1


def test_only_downloads_need_a_temporary_folder(
    tmp_path: Path, results: Path, reported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", Mock(side_effect=OSError(28, "No space left on device")))
    arguments = ["leaderboard", "--results", str(results), "--reported", str(reported), "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--check"]) == 0
    assert cli.main([*arguments, "--wandb-dir", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and "a temporary file" in line


def test_short_recipes_are_below_and_in_no_rank_with_full_ones() -> None:
    """However good they are; a full recipe that was shortened is short."""
    records = [
        make_record(snn=[point(8, 0.9)], recipe__name="quick"),
        make_record(snn=[point(8, 0.8)], recipe__name="paper", recipe__overrides=["trainer.max_epochs=8"]),
        make_record(snn=[point(8, 0.5)], recipe__name="paper"),
    ]
    rows = aggregate(records, [])
    found = [(row.recipe, row.standing, row.rank) for row in rows]
    short = "short recipes of ours"
    assert found == [
        ("paper", "full recipes", 1), ("quick", short, 1), ("paper+trainer.max_epochs=8", short, 2)
    ]  # fmt: skip
    page = render(rows, [])[f"{records[0].data.name}.md"]
    assert page.index("full recipes, protocol") < page.index(f"{short}, protocol")


def test_a_conversion_that_is_not_causal_has_layers_that_wait() -> None:
    """Records of COS before November 2026 said nothing of it, so that their latency was too small."""
    early, now = (
        make_record(method__name="cos", conversion__causal=False, snn=[point(4, 0.5, warmup=4, wait=wait)])
        for wait in (0, 72)
    )
    assert any("no layer waits" in reason for reason in contradictions(early))
    assert not any("no layer waits" in reason for reason in contradictions(now))


def test_what_first_records_claimed_of_others_training_is_taken_back(tmp_path: Path) -> None:
    imported = {"file": "a.pth", "sha256": sha("a")}
    early = record_dict(training={**record_dict()["training"], "epochs": 0, "imported": imported})
    ours = record_dict()
    for name, data in (("early", early), ("ours", ours)):
        assert data["protocol"]["checkpoint_selection"] == "last" and data["protocol"]["num_train_samples"]
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    protocol = read_record(tmp_path / "early.json").protocol
    assert (protocol.checkpoint_selection, protocol.num_train_samples) == ("unknown", None)
    assert read_record(tmp_path / "ours.json").protocol.model_dump() == ours["protocol"]


def test_weights_of_others_have_a_table_of_their_own_and_no_rank(tmp_path: Path) -> None:
    """Beside a worse net of ours, which is ranked first; two files are two rows, the better first, not two seeds."""

    def theirs(name: str, top1: float) -> Record:
        imported = {"file": f"{name}.pth", "sha256": sha(name), "repository": "some|body/nets", "stated_top1": 0.926}
        source = {"trainer": {"max_epochs": 0}, "imported": sha(name), "sha256": sha(f"source {name}")}
        training = {**record_dict()["training"], "epochs": 0, "imported": imported}
        said = {"method__name": "opi", "training": training, "recipe__name": f"imported.{name}"}
        return make_record(snn=[point(8, top1)], config={"source": source}, **said)

    ours = make_record(snn=[point(8, 0.5)], recipe__name="paper")
    records = [theirs("a", 0.9), theirs("b", 0.95), ours]
    assert not [reason for record in records for reason in (*reasons(record), *contradictions(record))]
    rows = aggregate(records, [])
    assert [(row.weights_of_others, row.rank) for row in rows] == [(None, 1), (sha("b"), None), (sha("a"), None)]
    assert all("weights of others, not ranked" in row.marks for row in rows[1:])
    papers = load_reported(write_papers(tmp_path, PAPER.replace("method: qcfs", "method: opi")))
    badges = {row.badge for row in aggregate(records, papers) if row.weights_of_others}
    assert badges == {"ours only"}, "their training is nobody's that is printed"
    page = render(rows, [])[f"{ours.data.name}.md"]
    assert page.count("weights of others, protocol") == 1
    for name in ("a", "b"):
        assert re.search(
            rf"\| imported.{name} \| {name}.pth \| some&#124;body/nets \| .* \| 92.60 \| .*{sha(name)}", page
        )
    forged = theirs("a", 0.9).model_copy(update={"training": ours.training.model_copy(update={"epochs": 0})})
    assert any("training.imported" in reason for reason in contradictions(forged))
