"""Reads all YAML files of the suite: refuses duplicate keys, and returns plain values or the text as written.

PyYAML has no option that refuses equal keys, hence the subclass. ruamel.yaml refuses them, but reads 1e-4 and "on" by
other rules than the PyYAML of Lightning and jsonargparse, and needs a subclass to leave 95.40 as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path

import yaml

# Errors that reading can raise.
UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)
# Levels of a file that is read as written; those of the papers' numbers have 4.
MAX_DEPTH = 8
# Numbers that YAML 1.1 reads in another base than people do: 010 is 8, 1:30 is 90; 1.2 reads 0o10 as 8, and 010 as 10.
OTHER_BASE = re.compile(r"[-+]?(0[0-9_]+|0o[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


class _UniqueKeys(yaml.constructor.BaseConstructor):
    """Refuses duplicate keys. PyYAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise ValueError(f"line {node.start_mark.line + 1}: the key {twice} is there twice")
        return super().construct_mapping(node, deep)


class _Values(_UniqueKeys, yaml.SafeLoader):
    """Plain values; a number that is not written in decimal is refused if versions of YAML or people may disagree."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        # A quoted scalar has a style, and every version of YAML reads it as text.
        if isinstance(node, yaml.ScalarNode) and node.style is None and OTHER_BASE.fullmatch(node.value):
            raise ValueError(
                f"line {node.start_mark.line + 1}: YAML reads {node.value} as another number, or as none; write it in "
                "decimal without leading zeros, or in quotes if it is a text"
            )
        return super().construct_scalar(node)


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


def reason(error: Exception) -> str:
    """Why a file cannot be read, in one line, with the line of the file if there is one.

    Args:
        error: one of :data:`UNREADABLE`, from :func:`read_yaml`.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).partition("\n")[0]


def read_yaml(path: Path, *, as_written: bool = False) -> object:
    """Reads one file.

    Args:
        path: of the file.
        as_written: leave every scalar the string that it is, so that 95.40 keeps its digits; aliases and more than
            ``MAX_DEPTH`` levels are refused.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, has a key twice, a number in another base than ten, or what ``as_written`` refuses.
        yaml.YAMLError: it is not YAML.
        RecursionError: it is nested too deeply.
    """
    text = path.read_text(encoding="utf-8")
    if as_written:
        _require_flat(text)
    return yaml.load(text, _AsWritten if as_written else _Values)  # noqa: S506 - both make plain values only
