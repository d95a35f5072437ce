"""Recipes: the papers' training settings, one YAML file for each method, data set and architecture.

``<method>/<data>_<arch>.yaml`` is what ``bench fit`` takes by default; ``<data>_<arch>.<name>.yaml`` is asked for by
``--recipe <name>``. The comment at the top of each states command, cost and the number to expect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UserError
from bench.registry import nearest

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """Named settings, and the file they are from (``None`` for the classes' defaults)."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None


def read_recipe(path: Path) -> Recipe:
    """Reads one recipe file.

    Raises:
        UserError: unreadable, or without a name.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--recipe {path}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise UserError(f"--recipe {path}: must be a mapping with a name")
    return Recipe(content.pop("name"), content, path)


def all_recipes() -> Iterator[tuple[str, str, Path]]:
    """Yields method, stem of ``<data>_<arch>`` and file of every recipe, sorted."""
    for path in sorted(FOLDER.glob("*/*.yaml")):
        yield path.parent.name, path.name.split(".")[0], path


def find_recipe(wanted: str, method: str, data: str, arch: str) -> Recipe:
    """Finds a recipe by name or file; the empty name is the default one.

    Raises:
        UserError: there is none of that name for this method, data set and architecture.
    """
    if wanted.endswith((".yaml", ".yml")) or "/" in wanted:
        return read_recipe(Path(wanted))
    stem = f"{data}_{arch}".replace("/", "-")
    found = [read_recipe(path) for owner, name, path in all_recipes() if owner == method and name == stem]
    if not wanted:
        defaults = [recipe for recipe in found if recipe.path and recipe.path.name == f"{stem}.yaml"]
        return defaults[0] if defaults else Recipe("default")
    for recipe in found:
        if recipe.name == wanted:
            return recipe
    names = [recipe.name for recipe in found]
    raise UserError(
        f"--recipe {wanted}: {method} has none of that name for {arch} on {data}; "
        f"choose from {', '.join(names) or 'nothing (there is no recipe yet)'}{nearest(wanted, names)}"
    )
