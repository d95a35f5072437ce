"""Formats numbers and strings for the leaderboard: fixed decimals, and no active content in strings."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal, localcontext

from markupsafe import Markup

# Characters with a meaning in GitHub's Markdown or in HTML, wherever they stand.
_SPECIAL = re.compile(r"[&<>|`*\[\]\\~#$@]")
# Underscores inside a word are inert, as in cifar_resnet20; at its edge they would start emphasis.
_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# GitHub turns bare addresses into links.
_ADDRESS = re.compile(r"(?i)(?<=[a-z])(:)(?=//)|(?<=www)(\.)")
# Line ends, other control characters, and characters that reverse or hide text.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]+")
# What a spreadsheet would run as a formula.
_FORMULA = ("=", "+", "-", "@")


class Safe(Markup):
    """Text that is Markdown already and is not escaped again."""

    __slots__ = ()


def percent(fraction: float) -> Decimal:
    """Converts a record's fraction to an exact percentage: the shortest decimal that reads back as the same float."""
    return Decimal(repr(fraction)).scaleb(2)


def fixed(value: Decimal | None, places: int = 2, *, sign: bool = False) -> str:
    """Rounds half up to a fixed number of decimals. ``None`` gives an empty string; ``-0.00`` never appears."""
    if value is None:
        return ""
    with localcontext(prec=400):
        rounded = value.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP)
    if rounded.is_zero():
        rounded = abs(rounded)
    return f"{rounded:+f}" if sign else f"{rounded:f}"


def spread(mean: Decimal | None, std: Decimal | None) -> str:
    """Mean ± standard deviation."""
    return fixed(mean) if std is None else f"{fixed(mean)} ± {fixed(std)}"


def one_line(text: str, limit: int = 2000) -> str:
    """Removes line ends and other invisible characters from a text, and cuts it at ``limit``."""
    line = _UNSEEN.sub(" ", text).strip()
    return line if len(line) <= limit else line[: limit - 3] + "..."


def markdown(value: object) -> Safe:
    """Escapes any value for one cell of a Markdown table; :class:`Safe` passes, ``None`` is empty."""
    if value is None:
        return Safe("")
    if isinstance(value, Safe):
        return value
    text = _SPECIAL.sub(_entity, one_line(str(value)))
    text = _UNDERSCORE.sub(_entity, text)
    return Safe(_ADDRESS.sub(_entity, text))


def csv_text(value: str) -> str:
    """Makes a CSV cell of a string: one line that no spreadsheet takes for a formula."""
    line = one_line(value)
    return f"'{line}" if line.startswith(_FORMULA) else line


def link(label: str, address: str) -> Safe:
    """Makes a Markdown link to an http address; any other address is shown as text."""
    if not re.fullmatch(r"https?://[A-Za-z0-9./?=_%~+#-]+", address):
        return markdown(f"{label} {address}")
    return Safe(f"[{markdown(label)}]({address})")


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match.group(0))};"
