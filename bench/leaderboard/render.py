"""Rows to files: Markdown by template, CSV by the csv module. The same rows give the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import jinja2

from bench.leaderboard.aggregate import ENOUGH_SEEDS, RANK_LATENCY
from bench.leaderboard.curves import MARKER, Picture, pictures
from bench.leaderboard.lines import to_csv
from bench.leaderboard.match import TOLERANCE
from bench.leaderboard.page import page
from bench.leaderboard.payload import payload
from bench.leaderboard.printed import printed_parts
from bench.leaderboard.reported import REPLICATIONS, Paper
from bench.leaderboard.row import Row, measured
from bench.leaderboard.tables import Table, accuracy, comparisons, ledger
from bench.leaderboard.text import Safe, link, markdown
from bench.records.record import PROTOCOL_VERSION
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS

DOCTYPE = "<!doctype html>\n"


def render(rows: Sequence[Row], papers: Sequence[Paper], notes: Collection[str] = ()) -> dict[str, str | Picture]:
    """Makes every generated file: names (without folder) to content.

    Args:
        rows: what was measured, and what is only printed.
        papers: all that is printed.
        notes: data sets that have a hand-written page, ``notes/<data set>.md``.
    """
    names = sorted({row.dataset for paper in papers for row in paper.rows} | {row.dataset for row in rows})
    files: dict[str, str | Picture] = {"README.md": _page("overview.md.j2", **_overview(names, rows, papers))}
    drawn = pictures(rows)
    files |= {picture.file: picture for picture in drawn.values()}
    for name in names:
        here = [row for row in rows if row.dataset == name]
        files[f"{name}.md"] = _page(
            "dataset.md.j2",
            name=name,
            title=DATA[name].title,
            notes=name in notes,
            boards=list(_boards(here, drawn)),
            others=_links(drawn, name),
            parts=printed_parts([row for row in here if not row.records]),
        )
        files[f"{name}.csv"] = to_csv(here)
    files["index.html"] = page(MARKER, payload(names, rows, papers))
    return files


def is_generated(path: Path) -> bool:
    """Whether a file carries the mark of this module, so that one no longer needed can be told from a person's own."""
    header = {".md": MARKER, ".svg": MARKER, ".html": f"{DOCTYPE}{MARKER}", ".csv": to_csv([])}.get(path.suffix, "")
    if not header or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(header.encode())) == header.encode()


def _page(template: str, **values: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        # Every value is escaped for Markdown on its way out, wherever it comes from; only Safe ones are not.
        finalize=markdown,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(template).render(marker=MARKER, **values)
    return text.rstrip("\n") + "\n"


def _overview(names: Sequence[str], rows: Sequence[Row], papers: Sequence[Paper]) -> dict[str, object]:
    head = ["data set", "rows", "runs", "matches", "differs", "ours only", "reported only", "table"]
    datasets = Table(head, [_summary(name, rows) for name in names])
    head = ["data set", "net", "method", "recipe", "n", "T", "latency", "top-1", "marks"]
    best = Table(head, [_leader(row) for row in rows if row.rank == 1 and row.ranked])
    head = ["key", "title", "venue", "year", "links", "printed cells"]
    return {
        "datasets": datasets,
        "best": best,
        "papers": Table(head, [_paper(paper) for paper in papers if paper.key != REPLICATIONS]),
        "replicated": sum(len(row.top1) for paper in papers if paper.key == REPLICATIONS for row in paper.rows),
        "enough": ENOUGH_SEEDS,
        "latency": RANK_LATENCY,
        "tolerance": TOLERANCE,
        "references": {name: entry.reference_ann for name, entry in METHODS.items() if entry.reference_ann},
    }


def _summary(name: str, rows: Sequence[Row]) -> list[object]:
    here = [row for row in rows if row.dataset == name]
    badges, experiments = Counter(row.badge for row in here), measured(here)
    counts = [badges[badge] for badge in ("matches", "differs", "ours only", "reported only")]
    page = Safe(f"[{markdown(DATA[name].title)}]({name}.md)")
    runs = sum(len(cells[0].records) for cells in experiments)
    return [page, len(experiments), runs, *counts, Safe(f"[{name}.csv]({name}.csv)")]


def _leader(row: Row) -> list[object]:
    names = (DATA[row.dataset].title, row.arch, row.method, row.recipe)
    return [*names, row.n, row.T, row.latency, row.shown, "; ".join(row.marks or ())]


def _paper(paper: Paper) -> list[object]:
    links = [link("arXiv", f"https://arxiv.org/abs/{paper.arxiv}")] if paper.arxiv else []
    links += [link("DOI", f"https://doi.org/{paper.doi}")] if paper.doi else []
    links += [link("code", address) for address in paper.code]
    cells = sum(len(row.top1) for row in paper.rows)
    key = Safe(f"[{markdown(paper.key)}](reported/{paper.key}.yaml)")
    return [key, paper.title or "(title not seen)", paper.venue, paper.year, Safe(", ".join(links)), cells]


def _links(drawn: Mapping[tuple[object, ...], Picture], name: str) -> Safe:
    nets = [(place[1], picture.file) for place, picture in drawn.items() if place[0] == name and len(place) == 2]
    return Safe(", ".join(f"[{markdown(net)}]({file})" for net, file in nets))


def _boards(rows: Sequence[Row], drawn: Mapping[tuple[object, ...], Picture]) -> Iterable[dict[str, object]]:
    for place, group in groupby((row for row in rows if row.records), key=lambda row: row.board):
        board = list(group)
        first = board[0]
        earlier = "" if first.protocol == PROTOCOL_VERSION else " (earlier, never ranked)"
        yield {
            "title": f"{first.arch}, protocol {first.protocol}{earlier}",
            "facts": f"{first.parameters:,} parameters, {first.macs:,} multiply-accumulates for one image.",
            "picture": Safe(f"![Accuracy of {markdown(first.arch)} against T]({drawn[place].file})"),
            "accuracy": accuracy(board),
            "comparisons": list(comparisons(board)),
            "ledger": ledger(board),
        }
