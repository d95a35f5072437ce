"""A benchmark of ANN-to-SNN conversion: the framework, which is independent of any method and data set.

``from bench import convert, simulate`` gives you the suite as a library (``bench/library.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.library import convert as convert
    from bench.library import simulate as simulate

__all__ = ["convert", "simulate"]


def __getattr__(name: str) -> object:
    # Imported on demand, so that the command line answers --help without torch.
    if name in __all__:
        from bench import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
