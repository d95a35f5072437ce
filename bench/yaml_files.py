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


class _AsWritten(_UniqueKeys, yaml.BaseLoader):
    """Every scalar as the string that is written; no alias, so that a small file cannot stand for a large one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases are not allowed")
        return super().compose_node(parent, index)


def read_yaml(path: Path, *, as_written: bool = False) -> Any:
    """Reads one file.

    Args:
        path: of the file.
        as_written: leave every scalar the string that it is, so that 95.40 keeps its digits; aliases are refused.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or has a key twice, or an alias that is refused.
        yaml.YAMLError: it is not YAML.
        RecursionError: it is nested too deeply.
    """
    return yaml.load(path.read_text(encoding="utf-8"), _AsWritten if as_written else _Values)  # noqa: S506 - both are safe
