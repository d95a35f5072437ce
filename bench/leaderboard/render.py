"""Renders rows as files: Markdown from templates, CSV with the csv module. The same rows give the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

import jinja2

from bench.leaderboard.aggregate import ENOUGH_SEEDS, RANK_LATENCY
from bench.leaderboard.curves import MARKER, Picture, pictures
from bench.leaderboard.lines import to_csv
from bench.leaderboard.match import TOLERANCE
from bench.leaderboard.page import environment, page
from bench.leaderboard.payload import payload
from bench.leaderboard.reported import KINDS, REPLICATIONS, Paper, ReportedRow
from bench.leaderboard.row import Row, measured, printed
from bench.leaderboard.text import Safe, fixed, link, markdown, percent
from bench.records.energy import ENERGY_MODEL
from bench.records.record import PROTOCOL_VERSION
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS, display

DOCTYPE = "<!doctype html>\n"
# Steps that have their own column in tables of printed numbers.
COMMON = (1, 2, 4, 8, 16, 32)


def render(rows: Sequence[Row], papers: Sequence[Paper], notes: Collection[str] = ()) -> dict[str, str | Picture]:
    """Makes every generated file; returns their content by name (without folder).

    Args:
        rows: measured rows, and numbers that are only printed.
        papers: all printed numbers.
        notes: data sets that have a hand-written page, ``notes/<data set>.md``.
    """
    names = sorted({row.dataset for paper in papers for row in paper.rows} | {row.dataset for row in rows})
    here = {name: [row for row in rows if row.dataset == name] for name in names}
    drawn = pictures(rows)
    files: dict[str, str | Picture] = {picture.file: picture for picture in drawn.values()}
    files["README.md"] = _page(
        "overview.md.j2",
        datasets=[(name, measured(here[name]), Counter(row.badge for row in here[name])) for name in names],
        best=[row for row in rows if row.rank == 1 and row.ranked],
        papers=[paper for paper in papers if paper.key != REPLICATIONS],
        replicated=sum(len(row.top1) for paper in papers if paper.key == REPLICATIONS for row in paper.rows),
        enough=ENOUGH_SEEDS,
        latency=RANK_LATENCY,
        tolerance=TOLERANCE,
        references={name: entry.reference_ann for name, entry in METHODS.items() if entry.reference_ann},
    )
    for name in names:
        ours = (row for row in here[name] if row.records)
        boards = [(list(board), Safe(drawn[place].file)) for place, board in groupby(ours, key=lambda row: row.board)]
        files[f"{name}.md"] = _page(
            "dataset.md.j2",
            name=name,
            title=DATA[name].title,
            notes=name in notes,
            boards=boards,
            others=[(net[1], Safe(p.file)) for net, p in drawn.items() if net[0] == name and len(net) == 2],
            parts=_parts(printed(here[name])),
            newest=PROTOCOL_VERSION,
            latency=RANK_LATENCY,
            common=COMMON,
        )
        files[f"{name}.csv"] = to_csv(here[name])
    files["index.html"] = page(MARKER, payload(names, rows, papers))
    return files


def is_generated(path: Path) -> bool:
    """Whether a file has the marker of this module, so that surplus files can be told from hand-written ones."""
    header = {".md": MARKER, ".svg": MARKER, ".html": f"{DOCTYPE}{MARKER}", ".csv": to_csv([])}.get(path.suffix, "")
    if not header or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(header.encode())) == header.encode()


@cache
def _templates() -> jinja2.Environment:
    # Every value is escaped for Markdown, wherever it comes from; only Safe values are not.
    templates = environment(finalize=markdown)
    templates.filters |= {"stated": lambda fraction: "" if fraction is None else fixed(percent(fraction))}
    templates.filters |= {
        "display": display,
        "fixed": fixed,
        "dense_microjoules": lambda macs: f"{ENERGY_MODEL.joules(macs, 0) * 1e6:.1f}",
        "signed": lambda value: fixed(value, sign=True),
        "note": _note,
    }
    templates.globals |= {
        "data": DATA,
        "measured": measured,
        "imports": _imports,
        "comparisons": _comparisons,
        "matching": _matching,
    }
    templates.globals |= {"headed": lambda steps: [f"T={T}" for T in steps], "links": _links, "marker": MARKER}
    return templates


def _page(template: str, **values: object) -> str:
    return _templates().get_template(template).render(values).rstrip("\n") + "\n"


def _links(paper: Paper) -> Safe:
    links = [link("arXiv", f"https://arxiv.org/abs/{paper.arxiv}")] if paper.arxiv else []
    links += [link("DOI", f"https://doi.org/{paper.doi}")] if paper.doi else []
    return Safe(", ".join([*links, *(link("code", address) for address in paper.code)]))


def _imports(board: Sequence[Row]) -> list[Row]:
    """Returns one row for each file that weights were imported from."""
    return list({row.weights_of_others: row for row in reversed(board)}.values())[::-1]


def _comparisons(board: Sequence[Row]) -> Iterator[tuple[str, list[Row], str, list[str]]]:
    """Yields title and rows of each table, and the column heads in which the tables differ."""
    yield "Against the papers", [row for row in board if row.printed is not None], "paper", ["kind", "printed in"]
    again = [other for row in board for other in row.replications]
    yield "Against replications by others", again, "theirs", ["by", "source"]


def _matching(rows: Sequence[Row]) -> str:
    """Says how many rows match, and how many of those with a paper's recipe."""
    badges = [row.badge for row in rows]
    full = [row.badge for row in rows if row.recipe == "paper"]
    return (
        f"{badges.count('matches')} of {len(badges)} within {TOLERANCE} points or two standard deviations; "
        f"of the papers' own recipes {full.count('matches')} of {len(full)}"
    )


def _parts(lines: Sequence[Sequence[Row]]) -> Iterator[Mapping[str, object]]:
    """Yields printed numbers that are not compared with ours: the papers' own, and replications, by net."""
    lines = sorted(lines, key=_order)
    own = (
        "Numbers printed in papers that no result here is compared with: none has the same method, net, L, T and "
        "warm-up, as far as is known, or it is compared with another number printed for them."
    )
    again = "Replications by others. They are never used as the paper's own number."
    for title, intro, origin in (("Reported only", own, "paper"), ("Measured again by others", again, "by")):
        chosen = [line for line in lines if (line[0].printed_by == REPLICATIONS) is (intro is again)]
        nets = [(net, list(group)) for net, group in groupby(chosen, key=lambda line: _of(line).arch)]
        yield {"title": title, "intro": intro, "origin": origin, "groups": [_group(*net) for net in nets]}


def _of(line: Sequence[Row]) -> ReportedRow:
    assert line[0].printed is not None
    return line[0].printed


def _order(line: Sequence[Row]) -> tuple[object, ...]:
    # The sort is stable, so rows with equal keys stay in the order of the file.
    row = _of(line)
    names = (row.method.lower(), row.method, line[0].printed_by)
    return (row.arch is None, row.arch or "", *names, KINDS.index(row.kind))


def _group(net: str | None, lines: Sequence[Sequence[Row]]) -> dict[str, object]:
    """Returns one net's lines and their numbered notes."""
    notes = list(dict.fromkeys(note for line in lines if (note := _note(_of(line)))))
    rare = any(cell.steps < 64 and cell.T not in COMMON for line in lines for cell in line)
    return {"title": net or "net not stated", "lines": lines, "rare": rare, "notes": notes}


def _note(row: ReportedRow) -> str:
    also = f"also {', '.join(row.also)}" if row.also else None
    return "; ".join(dict.fromkeys(part for part in (row.table, row.source, also, row.note) if part))
