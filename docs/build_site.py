"""Builds the site: ``python docs/build_site.py [--out site]``. A warning is an error.

The pages are those of ``docs/``, ``leaderboards/`` and CONTRIBUTING.md, and some that are made from the registries, the
parsers and the board: methods, command line, data sets. These are nowhere committed, so they cannot be stale.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import posixpath
import re
import shutil
import sys
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import generate
import jsonargparse
import pages  # makes the suite importable
from sphinx.application import Sphinx

from bench.cli import main as command_lines
from bench.leaderboard.row import measured
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS
from bench.run.options import Parser, second_stage

ROOT = pages.HERE.parent
# Where a file of the repository is on the site, if that is not at the same place or, from docs/, one folder higher.
PLACES = {"README.md": "methods/index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
          "leaderboards/index.html": "leaderboards/board.html"}  # fmt: skip
MADE = ("CONTRIBUTING.md", "CHANGELOG.md", *(f"leaderboards/{kind}" for kind in ("*.md", "notes/*.md", "curves/*.svg")),
        "docs/*.md", "docs/speed/README.md", "docs/*.svg")  # fmt: skip
# Not pages, but what pages and the board lead to.
FILES = ("leaderboards/*.csv", "leaderboards/reported/*.yaml", "leaderboards/results/**/*.json")
# The order of the pages, under the captions of the sidebar; with a title if the page's own is too long.
CONTENTS = {
    "Guide": ("tutorial", "Import weights <bring_your_own>", "networks", "running",
              "Many runs and clusters <scale>", "data_sets"),
    "Methods": ("All methods <methods/index>",),
    "Leaderboard": ("Read the board <leaderboards/README>", "leaderboards/cifar10",
                    "Notes on CIFAR-10 <leaderboards/notes/cifar10>", "leaderboards/cifar100",
                    "Notes on CIFAR-100 <leaderboards/notes/cifar100>", "leaderboards/imagenet",
                    "depth"),
    "Reference": ("command_line", "reference", "records", "The QCFS recipes <recipes>",
                  "Performance <performance>", "speed/README"),
    "Project": ("architecture", "contributing", "changelog"),
}  # fmt: skip
SETTINGS = {
    "project": "ann2snn-bench",
    "extensions": [
        "myst_parser",
        "sphinx.ext.autodoc",
        "sphinx.ext.napoleon",
        "sphinx_copybutton",
        "sphinxcontrib.mermaid",
    ],
    "smartquotes": False,  # they would turn the -- of an option into a dash
    "html_theme": "furo",
    "html_title": "ann2snn-bench",
    "html_show_copyright": False,
    "html_static_path": [str(pages.HERE / "site.css")],
    "html_css_files": ["site.css"],
    "myst_heading_anchors": 3,
    "myst_fence_as_directive": ["mermaid"],
    "autodoc_typehints": "signature",
    "autodoc_member_order": "bysource",
    "python_maximum_signature_line_length": 80,
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
STEPS = (1, 2, 4, 8, 16, 32, 64)


def write_pages(folder: Path) -> None:
    """Writes all pages as Markdown into an empty folder."""
    for pattern in (*MADE, *FILES):
        for path in sorted(ROOT.glob(pattern)):
            target = folder / place(path.relative_to(ROOT).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    origins = {place(path.relative_to(ROOT).as_posix()): path for pattern in MADE for path in ROOT.glob(pattern)}
    # The page's way back to the text that explains it.
    page = (ROOT / "leaderboards/index.html").read_text(encoding="utf-8").replace('"README.md"', '"README.html"')
    (folder / place("leaderboards/index.html")).write_text(page, encoding="utf-8")
    (folder / "methods").mkdir()
    made = {"command_line.md": command_line(), "methods/index.md": method_list()}
    made |= {f"methods/{name}.md": method_page(name) for name in METHODS}
    for name, content in made.items():
        (folder / name).write_text(content, encoding="utf-8")
    with (folder / "data_sets.md").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(data_sets()))
    with (folder / "index.md").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(contents(CONTENTS)))
    for path in sorted(folder.rglob("*.md")):
        name = path.relative_to(folder).as_posix()
        origin = origins.get(name, pages.HERE / name).relative_to(ROOT).as_posix()
        path.write_text(relinked(path.read_text(encoding="utf-8"), name, origin, folder), encoding="utf-8")


def place(path: str) -> str:
    """Returns the place of a repository file on the site."""
    return PLACES.get(path, path.removeprefix("docs/"))


def relinked(text: str, name: str, origin: str, folder: Path) -> str:
    """Rewrites links between files of the repository to the pages made from them.

    Args:
        text: the page.
        name: its place on the site.
        origin: its place in the repository, which its links start from.
        folder: the site's pages.
    """

    def led(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match.group()
        path, hash_sign, anchor = target.partition("#")
        there = place(posixpath.normpath(posixpath.join(posixpath.dirname(origin), path)))
        if not (folder / there).is_file():
            return label  # source code, which the site does not have
        way = posixpath.relpath(there, posixpath.dirname(name) or ".")
        if not there.endswith((".md", ".svg")):  # Sphinx would move it away from what it leads to itself
            return f'<a href="{way}">{label}</a>'
        return f"{image}[{label}]({way}{hash_sign}{anchor})"

    return LINK.sub(led, text)


def contents(sections: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Makes the sidebar, which the start page declares."""
    for caption, names in sections.items():
        yield from ("```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", "")


def build(out: Path) -> int:
    """Builds the site into a folder, which holds nothing else.

    Returns:
        0, or 1 if anything is amiss.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pages"
        source.mkdir()
        write_pages(source)
        files = Path(folder) / "files"
        for pattern in (*FILES, "leaderboards/board.html"):
            for path in source.glob(pattern):
                target = files / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        settings = {**SETTINGS, "html_extra_path": [str(files)]}
        app = Sphinx(source, None, out, Path(folder) / "trees", "html", settings, warningiserror=True, status=None)
        app.build()
        return app.statuscode


def method_list() -> str:
    """Makes the page with all methods in a table, and their results on the README's network."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    advice = text.partition("## Which method should I use?")[2].partition("\n## ")[0]
    lines = ["# Methods", "", "Each page has the equations, the options and the results of one method.", ""]
    lines += [*generate.methods(METHODS), "", "## Which method should I use?", advice]
    return "\n".join([*lines, "```{toctree}", ":hidden:", "", *METHODS, "```", ""])


def method_page(name: str) -> str:
    """Makes the page of one method: header of its file, registry entry, options, results and code."""
    entry = METHODS[name]
    kind = entry.load()
    path = Path(inspect.getfile(kind))
    heading, _, body = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "").partition("\n")
    facts = {
        "command": f"`python -m bench fit --method {name}`",
        "what it changes": entry.summary,
        "paper": f"[{entry.display}]({entry.published.link})" if entry.published.link else entry.display,
        "network": entry.origin,
        "conversion": "once for each T" if entry.per_T else "once, read at every T",
        "warm-up": "steps before the first counted one" if entry.warmup else "none",
        "waiting": "each layer, for several steps of its input" if entry.waits else "none",
        "file": f"`methods/{path.name}`",
    }
    lines = [f"# {entry.title}", "", f"**{heading}**", body, ""]
    lines += [*pages.table(["", ""]), *(pages.line([key, value]) for key, value in facts.items()), ""]
    lines += ["## Options", "", *method_options(kind), "", "## Results here", "", *results(name), ""]
    lines += ["## Printed in papers", "", *printed(name), "", "## Code", ""]
    lines += details(f"methods/{path.name}", ["```python", *path.read_text(encoding="utf-8").splitlines(), "```"])
    return "\n".join(lines)


def details(summary: str, lines: Iterable[str]) -> Iterator[str]:
    """Makes a Markdown section that opens on a click."""
    yield from (f"<details><summary>{summary}</summary>", "", *lines, "", "</details>", "")


def method_options(kind: type) -> Iterator[str]:
    """Makes the table of a method's ``--model.*`` options."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "model", skip={"net", "image"})
    yield from options(parser, "--model.")


def options(parser: argparse.ArgumentParser, prefix: str = "-") -> Iterator[str]:
    """Makes a table of the options with a prefix; of all arguments without one."""
    actions = [
        action
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS
        if any(option.startswith(prefix) for option in action.option_strings) or (prefix == "-" and action.metavar)
        if not any(option.endswith(".help") for option in action.option_strings)
    ]
    if not actions:
        yield "None."
        return
    yield from pages.table(["option", "default", "what it does"])
    for action in actions:
        names = " ".join(f"`{option}`" for option in action.option_strings if option[-1] != "+")
        names = names or f"`{action.metavar}`"
        values = " or ".join(f"`{choice}`" for choice in action.choices or ()) or kind_of(action)
        text = cell(" ".join(str(action.help or "").split()).replace("%%", "%").removesuffix("."))
        default = "" if action.default in (None, argparse.SUPPRESS) else f"`{cell(action.default)}`"
        default = "required" if getattr(action, "required", False) and action.option_strings else default
        yield pages.line([names, default, f"{text} ({values})" if text and values else text or values])


def kind_of(action: argparse.Action) -> str:
    """Returns the type of an option's value in readable form."""
    hint = getattr(action, "_typehint", None) or action.type

    def words(hint: object) -> Iterator[str]:
        if typing.get_origin(hint) is typing.Literal:
            yield from (f"`{value}`" for value in typing.get_args(hint))
        elif typing.get_origin(hint) in (typing.Union, types.UnionType):
            for part in typing.get_args(hint):
                yield from words(part)
        elif hint is not type(None) and isinstance(hint, type) and hint.__module__ == "builtins":
            yield {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(
                hint.__name__, hint.__name__
            )

    return " or ".join(dict.fromkeys(words(hint)))


def cell(value: object) -> str:
    """Escapes text for a table."""
    return str(value).replace("|", "\\|").replace("<", "&lt;")


def results(name: str) -> Iterator[str]:
    """Makes the table of a method's results on the leaderboard."""
    rows, _ = generate.board()
    experiments = [cells for cells in measured(rows) if cells[0].method == name]
    if not experiments:
        yield "Not run yet."
        return
    yield "Top-1 in percent on the whole test set. [Read the board](../leaderboards/README.md) explains the columns."
    yield ""
    steps = [f"T = {T}" for T in STEPS]
    yield from pages.table(["data set", "network", "n", "ANN", "warm-up", "layers wait", *steps, "recipe"])
    for cells in experiments:
        first = cells[0]
        place = [DATA[first.dataset].title, generate.title(first.arch)]
        facts = [*place, str(first.n), first.ann_shown, str(first.warmup), "yes" if first.wait else "no"]
        yield pages.line([*facts, *generate.accuracies(cells, STEPS), f"`{first.recipe}`"])


def printed(name: str) -> Iterator[str]:
    """Makes the table of the numbers that papers print for a method, for networks of the suite."""
    _, papers = generate.board()
    found = [(paper, row) for paper in papers for row in paper.rows if row.same_as.method == name and row.same_as.arch]
    if not found:
        yield "No paper's numbers for a network of this suite are on file."
        return
    yield from pages.table(["data set", "network", "printed by", "kind", "L", "ANN", *(f"T = {T}" for T in STEPS)])
    for paper, row in found:
        place = [DATA[row.dataset].title, generate.title(str(row.same_as.arch))]
        source = row.who or f"[{paper.key}](../leaderboards/reported/{paper.key}.yaml)"
        top1 = [f"{row.top1[str(T)]:f}" if str(T) in row.top1 else "" for T in STEPS]
        facts = [*place, cell(source), row.kind.replace("_", " "), str(row.L or ""), f"{row.ann_top1 or ''}"]
        yield pages.line([*facts, *top1])


def data_sets() -> Iterator[str]:
    """Makes a section for each data set: the docstring of its class, and its options."""
    for name, entry in DATA.items():
        kind = entry.load()
        yield from (f"## {entry.title}", "", f"`--data {name}`: {entry.summary}.", "")
        yield from (inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:")[0], "")
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(kind, "data")
        yield from details(f"Options of {entry.title}", options(parser, "--data."))


class Asked(Exception):  # noqa: N818 - nothing is wrong: it brings the parser out of its command
    """Carries the parser that a command would have used."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser


def parser_of(command: str) -> Parser:
    """Returns the parser that a command makes for its arguments."""

    def parse(self: Parser, *_: object, **__: object) -> typing.NoReturn:
        raise Asked(self)

    with mock.patch.multiple(Parser, parse_args=parse, parse_known_args=parse):
        try:
            command_lines.main([command])
        except Asked as asked:
            return asked.parser
    raise RuntimeError(f"{command} parses no arguments")


def command_line() -> str:
    """Makes the page of all commands with their options."""
    lines = [
        "# Command line",
        "",
        "`python -m bench COMMAND [options]`. `--help` explains each command, too.",
        "",
    ]
    lines += [*pages.table(["command", "what it does"])]
    lines += [pages.line([f"[`{name}`](#{name})", cell(text)]) for name, text in command_lines.COMMANDS.items()]
    for name, text in command_lines.COMMANDS.items():
        lines += ["", f"## {name}", "", f"{text[0].upper()}{text[1:]}.", ""]
        lines += fit_options() if name == "fit" else list(options(parser_of(name)))
    return "\n".join(lines)


def fit_options() -> Sequence[str]:
    """Makes the section of ``fit``: its short help, and the options that all methods and data sets share."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        command_lines.main(["fit", "--help"])
    parser = second_stage(METHODS["qcfs"].load(), DATA["digits"].load())
    return [
        "```text",
        shown.getvalue().rstrip(),
        "```",
        "",
        "The options `--model.*` are on the page of each [method](methods/index.md), and `--data.*` on the page of the "
        "[data sets](data_sets.md). The Trainer's options are Lightning's:",
        "",
        *options(parser, "--trainer."),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the site [site]")
    sys.exit(build(parser.parse_args().out))
