"""Exceptions that the command line turns into one line and an exit status."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydantic import ValidationError

# The type of pydantic's error for a key that the classes of ``bench.records.record`` refuse; its context has ``key``.
UNKNOWN_KEY: Literal["unknown_key"] = "unknown_key"
# What pydantic adds to the place of an error in a value that may have several types.
TYPES = {"float", "int", "str", "bool", "list", "dict"}
# Similarity from which on a name is suggested, that of difflib.get_close_matches.
CUTOFF = 0.6


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do, in one line. Exit status 2."""


class BusyError(UserError):
    """Another process is using the folder; the same command may succeed later. Exit status 75 (EX_TEMPFAIL)."""


class ConversionWarning(UserWarning):
    """A conversion did something that a user should know: it left out a softmax, or raised the precision."""


class Interrupted(Exception):  # noqa: N818 - a signal is no error
    """SIGINT or SIGTERM ended the work; ``status`` is the shell's for that signal."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def first_error(error: ValidationError, show_input: bool = False) -> str:
    """Returns the first error that pydantic found: where it is, the input if ``show_input``, and the reason."""
    first = error.errors(include_url=False)[0]
    unknown = [first["ctx"]["key"]] if first["type"] == UNKNOWN_KEY else []
    where = ".".join(str(part) for part in (*first["loc"], *unknown) if part not in TYPES) or "the whole"
    shown = f" {str(first['input'])[:80]!r}" if show_input and not unknown else ""
    return f"{where}:{shown} {first['msg']}"


def first_line(error: BaseException, most: int = 150) -> str:
    """Returns the first line of an exception's message, cut at ``most`` characters; its name if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def in_one_line(error: BaseException, most: int = 200) -> str:
    """Returns an exception's message in one line, cut at ``most`` characters; its name if it has no message."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns `` (did you mean X?)``, or an empty string if no choice is similar."""

    def similarity(choice: str) -> tuple[float, int]:
        # resnet20 and resnet32 are equally similar to resnet21, but it starts as resnet20 does.
        start = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(choice, name, strict=False))
        return difflib.SequenceMatcher(None, choice, name).ratio(), len(list(start))

    best = max(choices, key=similarity, default="")
    return f" (did you mean {best}?)" if best and similarity(best)[0] >= CUTOFF else ""
