"""What a registry line holds, and how a name is looked up.

Nothing here imports torch, so ``bench list``, ``bench --help`` and the leaderboard answer at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import JsonValue

from bench.errors import UserError, nearest
from bench.registry.papers import PAPERS, PaperEntry

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One registry line of a class.

    Attributes:
        target: ``module:Class``.
        summary: one line for ``bench list``.
        title: how the papers write its name.
        younger: options that are younger than its first records, with what runs did before there was a choice. An
            option that is added where there are records belongs here, or its new records make a second row.
    """

    target: str
    summary: str
    title: str = field(kw_only=True)
    younger: Mapping[str, JsonValue] = field(default_factory=dict, kw_only=True)

    def load(self) -> Any:
        """Imports and returns the class."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class DataEntry(Entry):
    """A registry line of a data set.

    Attributes:
        num_classes: of its labels.
        num_test: images of its test set; a record that evaluated another number did not evaluate the test set.
        younger: by default the younger options of all data sets.
    """

    num_classes: int
    num_test: int
    younger: Mapping[str, JsonValue] = field(
        default_factory=lambda: {"val_augment": False, "last_batch": "drop", "mean": None, "std": None}
    )


@dataclass(frozen=True, kw_only=True)
class MethodEntry(Entry):
    """A registry line of a method.

    Attributes:
        paper: key of the paper in ``leaderboards/reported`` and in the registry of papers.
        source: name of the method whose checkpoint it converts; ``None`` where it trains its own net. Where the
            method's option ``source`` chooses, a mapping from its values to names.
        begins_from: names of the methods whose nets a training may begin from (``--ckpt``), to tune their conversion.
        source_only: trains nets for others to convert, so it has no ranked row of its own.
        per_T: the conversion depends on T and is done once for each.
        warmup: has steps before the first counted one.
        reference_ann: the extra classifier of the record whose accuracy the paper prints as that of its ANN; ``None``
            where that is the ANN itself.
        importable: a net that others have trained by it can be read from their file: its layers, and if it has them
            one threshold for each activation or channel.
    """

    paper: str
    source: str | Mapping[str, str] | None = None
    begins_from: tuple[str, ...] = ()
    source_only: bool = False
    per_T: bool = False
    warmup: bool = False
    reference_ann: str | None = None
    importable: bool = False

    def source_for(self, options: Mapping[str, object]) -> str:
        """The method whose checkpoint it converts under these options (``--model.*``)."""
        assert self.source is not None
        return self.source if isinstance(self.source, str) else self.source[str(options["source"])]

    @property
    def sources(self) -> list[str]:
        """All methods whose checkpoints it may convert, by its options."""
        if self.source is None:
            return []
        return [self.source] if isinstance(self.source, str) else list(self.source.values())

    @property
    def origin(self) -> str:
        """Where its network comes from, for ``bench list``."""
        if self.sources:
            return f"converts a {' or '.join(self.sources)} net"
        return f"trains, or tunes a {' or '.join(self.begins_from)} net" if self.begins_from else "trains"

    @property
    def published(self) -> PaperEntry:
        """Where its paper came out."""
        return PAPERS[self.paper]

    @property
    def display(self) -> str:
        """Its name with its origin: ``QCFS (ICLR 2022)``."""
        return f"{self.title} ({self.published.venue} {self.published.year})"


@dataclass(frozen=True, kw_only=True)
class NetEntry:
    """A registry line of a net.

    Attributes:
        shape: what sets it apart, for ``bench list``.
        title: how the papers write its name.
        activations: number of ReLU modules.
        weights: in millions, with ten classes.
        imagenet: it is the papers' net for ImageNet as well.
    """

    shape: str
    title: str
    activations: int
    weights: float
    imagenet: bool = False

    @property
    def summary(self) -> str:
        """One line for ``bench list``."""
        return f"{self.shape}, {self.activations} activations, {self.weights} M weights"


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
