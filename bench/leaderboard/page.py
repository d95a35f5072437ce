"""Builds ``index.html``: one file that works from disk, offline, and runs only its own script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

FOLDER = Path(__file__).with_name("templates")
# Joined in this order into one strict function, so that they share names and define none outside.
SCRIPTS = ("state.js", "plot.js", "table.js", "detail.js", "main.js")


def environment(finalize: Callable[[object], object] | None = None) -> jinja2.Environment:
    """Returns the templates' environment, which escapes every value: for HTML, or with ``finalize``."""
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
    """Returns the text of the page.

    Args:
        marker: comment that says that the file is generated.
        data: from :func:`bench.leaderboard.payload.payload`.
    """
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    parts = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{parts}}})();\n'
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            # Our own files, and data that is escaped for its place.
            marker=Markup(marker),  # noqa: S704
            tolerance=data["tolerance"],
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            data=Markup(embedded(data)),  # noqa: S704
            # The browser runs and applies only what these hashes name, nothing injected through a record.
            style_hash=_hash(style),
            script_hash=_hash(script),
        )
    )


def embedded(data: object) -> str:
    """Returns JSON that no HTML parser takes for markup: ASCII, without ``<``, ``>`` and ``&``."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
