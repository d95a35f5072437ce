"""The entries of the registries, and the look-up of names.

Nothing here imports torch, so ``bench list``, ``bench --help`` and the leaderboard answer at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import JsonValue

from bench.errors import UserError, nearest
from bench.registry.papers import PAPERS, PaperEntry

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A registry entry of a class.

    Attributes:
        target: ``module:Class``.
        summary: one line for ``bench list``.
        title: its name as the papers write it.
        younger: options that are newer than its first records, with the value that earlier runs used. If an option is
            added to a class that has records, list it here; otherwise new records make a second row.
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
    """A registry entry of a data set.

    Attributes:
        num_classes: number of classes.
        num_test: number of test images; a record with another number did not evaluate the whole test set.
        younger: by default the younger options of all data sets.
    """

    num_classes: int
    num_test: int
    younger: Mapping[str, JsonValue] = field(
        default_factory=lambda: {"val_augment": False, "last_batch": "drop", "mean": None, "std": None}
    )


@dataclass(frozen=True, kw_only=True)
class MethodEntry(Entry):
    """A registry entry of a method.

    Attributes:
        paper: key of the paper in ``leaderboards/reported`` and in the registry of papers.
        source: name of the method whose checkpoint it converts; ``None`` if it trains its own net. If the method's
            option ``source`` decides, a mapping from its values to names.
        begins_from: names of the methods whose nets a training may begin from (``--ckpt``), to tune their conversion.
        source_only: it trains nets for other methods to convert, so it has no ranked row.
        per_T: the conversion depends on T and is done once for each, as its class says as well.
        warmup: it has steps before the first counted one.
        waits: a layer must see several steps of its input before it sends, so that latency grows with depth.
        delays: its paper delays the read-out, so that ``--snn.delay`` gives the paper's numbers.
        exact: a layer's output is its quantised activation, so that the SNN equals its quantised twin.
        reference_ann: the extra classifier in the record whose accuracy the paper prints as that of its ANN; ``None``
            if that is the ANN itself.
        importable: nets trained elsewhere with this method can be imported: their layers, and their thresholds if it
            has any, one for each activation or channel.
    """

    paper: str
    source: str | Mapping[str, str] | None = None
    begins_from: tuple[str, ...] = ()
    source_only: bool = False
    per_T: bool = False
    warmup: bool = False
    waits: bool = False
    delays: bool = False
    exact: bool = False
    reference_ann: str | None = None
    importable: bool = False

    def source_for(self, options: Mapping[str, object]) -> str:
        """Returns the method whose checkpoint it converts with these options (``--model.*``)."""
        assert self.source is not None
        return self.source if isinstance(self.source, str) else self.source[str(options["source"])]

    @property
    def sources(self) -> list[str]:
        """All methods whose checkpoints it can convert, depending on its options."""
        if self.source is None:
            return []
        return [self.source] if isinstance(self.source, str) else list(self.source.values())

    def option_for(self, kind: str) -> str:
        """The option for converting a net of ``kind``, one of :attr:`sources`; empty if none is needed."""
        if self.source is None or isinstance(self.source, str):
            return ""
        return next(f"--model.source {option}" for option, method in self.source.items() if method == kind)

    @property
    def origin(self) -> str:
        """Where its network comes from, for ``bench list``."""
        if self.sources:
            return f"converts a {either(self.sources)} net"
        return f"trains, or tunes a {either(self.begins_from)} net" if self.begins_from else "trains"

    @property
    def published(self) -> PaperEntry:
        """Where and when its paper was published."""
        return PAPERS[self.paper]

    @property
    def display(self) -> str:
        """Its name with venue and year: ``QCFS (ICLR 2022)``."""
        return f"{self.title} ({self.published.venue} {self.published.year})"


@dataclass(frozen=True, kw_only=True)
class NetEntry:
    """A registry entry of a net.

    Attributes:
        shape: what distinguishes it, for ``bench list``.
        title: its name as the papers write it.
        activations: number of ReLU modules.
        weights: number of weights in millions, with ten classes.
        imagenet: whether the papers use it for ImageNet as well.
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


def either(names: Sequence[str]) -> str:
    """Joins names for a sentence: ``relu``, ``relu or tcl``, ``relu, tcl or nq``."""
    *before, last = names
    return f"{', '.join(before)} or {last}" if before else last


def lookup(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """Finds ``name`` in a registry.

    Args:
        kind: the option that named it, for the message (``--method``).
        name: what the user typed.
        registry: the choices.

    Raises:
        UserError: the name is unknown; the message lists the choices and the most similar one.
    """
    if name not in registry:
        raise UserError(f"{kind} {name}: unknown; choose from {', '.join(registry)}{nearest(name, registry)}")
    return registry[name]
