"""A benchmark of ANN-to-SNN conversion: the machine, which knows no method and no data set by name.

``from bench import convert, simulate`` is the suite as a library (``bench/library.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.library import convert as convert
    from bench.library import simulate as simulate

__all__ = ["convert", "simulate"]


def __getattr__(name: str) -> object:
    # Imported when asked for: the command line answers --help without torch.
    if name in __all__:
        from bench import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
