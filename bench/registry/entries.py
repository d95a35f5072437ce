"""Names to classes without importing them: what a registry line holds, and how a name is looked up.

Nothing here imports torch, so ``bench list`` and ``bench --help`` answer at once.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from bench.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One registry line.

    Attributes:
        target: ``module:Class``.
        summary: one line for ``bench list``.
    """

    target: str
    summary: str

    def load(self) -> Any:
        """Imports and returns the class."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class MethodEntry(Entry):
    """A registry line of a method.

    Attributes:
        paper: key of the paper in ``leaderboards/reported``.
        source: name of the method whose checkpoint it converts; ``None`` where it trains its own net. Where the
            method's option ``source`` chooses, a mapping from its values to names.
        per_T: the conversion depends on T and is done once for each.
        warmup: has steps before the first counted one.
        source_only: trained for others to convert; converted by itself, its numbers are those of another method's row.
    """

    paper: str
    source: str | Mapping[str, str] | None = None
    per_T: bool = False
    warmup: bool = False
    source_only: bool = False

    def source_for(self, options: Mapping[str, Any]) -> str:
        """The method whose checkpoint it converts under these options (``--model.*``)."""
        assert self.source is not None
        return self.source if isinstance(self.source, str) else self.source[options["source"]]

    @property
    def sources(self) -> list[str]:
        """All methods whose checkpoints it may convert, by its options."""
        if self.source is None:
            return []
        return [self.source] if isinstance(self.source, str) else list(self.source.values())

    @property
    def origin(self) -> str:
        """Where its network comes from, for ``bench list``."""
        return f"converts a {' or '.join(self.sources)} net" if self.sources else "trains"


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns `` (did you mean X?)``, or nothing where no choice is near."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def lookup(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """Finds ``name`` in a registry.

    Args:
        kind: the option that named it, for the message (``--method``).
        name: what the user typed.
        registry: the choices.

    Raises:
        UserError: it is not there; the message lists the choices and the nearest one.
    """
    if name not in registry:
        raise UserError(f"{kind} {name}: unknown; choose from {', '.join(registry)}{nearest(name, registry)}")
    return registry[name]
