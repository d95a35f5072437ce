"""YAML as all files of the suite are read: plain values, and no key twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# What reading may end in.
UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys, so that what was written first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise ValueError(f"line {node.start_mark.line + 1}: the key {twice} is there twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Reads one file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or has a key twice.
        yaml.YAMLError: it is not YAML.
        RecursionError: it is nested too deeply.
    """
    return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506 - a SafeLoader
