"""``index.html``: one file that works from disk, without a network, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

FOLDER = Path(__file__).with_name("templates")
# In this order; together they are one strict function, so that they share names and leave none outside.
SCRIPTS = ("state.js", "plot.js", "table.js", "detail.js", "main.js")


def environment(finalize: Callable[[object], object] | None = None) -> jinja2.Environment:
    """The templates, with every value escaped: for HTML, or by what ``finalize`` makes of it."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        finalize=finalize,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def page(marker: str, data: Mapping[str, object]) -> str:
    """The page's text.

    Args:
        marker: comment that says that the file is generated.
        data: what :func:`bench.leaderboard.payload.payload` makes.
    """
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    parts = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{parts}}})();\n'
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            # Our own files, and data that is escaped for where it stands.
            marker=Markup(marker),  # noqa: S704
            tolerance=data["tolerance"],
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            data=Markup(embedded(data)),  # noqa: S704
            # The browser runs and applies what these name, and nothing that a record smuggled in.
            style_hash=_hash(style),
            script_hash=_hash(script),
        )
    )


def embedded(data: object) -> str:
    """JSON that no HTML parser can take for markup: ASCII, and neither ``<``, ``>`` nor ``&``."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
