"""YAML as all files of the suite are read: no key twice, and values either plain or as they are written.

PyYAML has no option that refuses equal keys, hence the subclass. ruamel.yaml refuses them, but reads 1e-4 and "on" by
other rules than the PyYAML of Lightning and jsonargparse, and needs a subclass to leave 95.40 as it is written.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

# What reading may end in.
UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)
# Levels of a file that is read as written; those of the papers' numbers have 4.
MAX_DEPTH = 8


class _UniqueKeys(yaml.constructor.BaseConstructor):
    """PyYAML takes the last of two equal keys, so that what was written first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise ValueError(f"line {node.start_mark.line + 1}: the key {twice} is there twice")
        return super().construct_mapping(node, deep)


class _Values(_UniqueKeys, yaml.SafeLoader):
    """Plain values."""


class _AsWritten(_UniqueKeys, yaml.CBaseLoader):
    """Every scalar as the string that is written; many files of it are read at once, hence by the parser in C."""


def _require_flat(text: str) -> None:
    # Events come one by one, so hostile nesting ends here instead of in the C parser's stack.
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CBaseLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else "?"
            raise ValueError(f"line {line}: aliases and deep nesting are not allowed")


def read_yaml(path: Path, *, as_written: bool = False) -> Any:
    """Reads one file.

    Args:
        path: of the file.
        as_written: leave every scalar the string that it is, so that 95.40 keeps its digits; aliases and more than
            ``MAX_DEPTH`` levels are refused.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or has a key twice, or what ``as_written`` refuses.
        yaml.YAMLError: it is not YAML.
        RecursionError: it is nested too deeply.
    """
    text = path.read_text(encoding="utf-8")
    if as_written:
        _require_flat(text)
    return yaml.load(text, _AsWritten if as_written else _Values)  # noqa: S506 - both make plain values only
