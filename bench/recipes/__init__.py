"""Recipes: training settings, one YAML file for each method and data set, and for a net that needs its own.

``bench fit`` uses ``<method>/<data>_<arch>.yaml``, or ``<method>/<data>.yaml`` for a net without its own file.
``--recipe <name>`` selects ``<data>_<arch>.<name>.yaml``. A net of timm is ``timm_<arch>``. A recipe is named ``paper``
if it has the paper's settings for its net, and ``ours`` otherwise. The comment at the top of each file gives command,
cost and expected accuracy. docs/recipes.md compares the settings of QCFS, from which most others follow, with the paper
and the released codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.errors import UserError, nearest
from bench.files import expand
from bench.records.record import Options
from bench.yaml_files import UNREADABLE, read_yaml, reason

FOLDER = Path(__file__).resolve().parent
# Prefix of a recipe's name if its file is the user's own, or was made for another method, data set or net.
OWN_FILE = "file."


@dataclass(frozen=True)
class Recipe:
    """Named settings, and the file they are from (``None`` for the classes' defaults)."""

    name: str
    settings: Options = field(default_factory=dict)
    path: Path | None = None

    @property
    def own_file(self) -> bool:
        """Whether it is a file of the user's, or one of the suite's that was made for something else."""
        return self.name.startswith(OWN_FILE)


def read_recipe(path: Path) -> Recipe:
    """Reads one recipe file.

    Raises:
        UserError: unreadable, or without a name.
    """
    try:
        content = read_yaml(path)
    except UNREADABLE as error:
        raise UserError(f"--recipe {path}: cannot be read ({reason(error)})") from error
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise UserError(f"--recipe {path}: must be a mapping with a name")
    for reserved in ("method", "arch", "recipe", "config", "ckpt", "out", "seed"):
        if reserved in content:
            raise UserError(f"--recipe {path}: {reserved} is not a recipe's to set; give it as an option")
    if isinstance(content.get("data"), dict) and "name" in content["data"]:
        raise UserError(f"--recipe {path}: data.name is not a recipe's to set; give --data")
    # A file of the user's own must not pass for the paper's recipe.
    name = content.pop("name")
    return Recipe(name if path.is_relative_to(FOLDER) else f"{OWN_FILE}{name}", content, path)


def all_recipes() -> Iterator[tuple[str, str, Path]]:
    """Yields method, stem of ``<data>_<arch>`` and file of every recipe, sorted."""
    for path in sorted(FOLDER.glob("*/*.yaml")):
        yield path.parent.name, path.name.split(".")[0], path


def find_recipe(wanted: str, method: str, data: str, arch: str) -> Recipe:
    """Finds a recipe by name or file; the empty name is the default one.

    Args:
        wanted: name, YAML file, or nothing.
        method: name of the method.
        data: name of the data set.
        arch: short name of the net, or ``timm/<name>``.

    Raises:
        UserError: no recipe of that name was found for this method, data set and architecture.
    """
    stems = (f"{data}_{arch.replace('/', '_')}", data)
    if wanted.endswith((".yaml", ".yml")) or "/" in wanted:
        path = expand(wanted).resolve()
        recipe = read_recipe(path)
        fits = path.parent == FOLDER / method and path.name.split(".")[0] in stems
        # The paper's settings for another net, or of another method, are not the paper's for this one.
        return recipe if fits or recipe.own_file else replace(recipe, name=f"{OWN_FILE}{recipe.name}")
    # The net's own files come before those for any net.
    found = [read_recipe(path) for stem in stems for owner, name, path in all_recipes()
             if owner == method and name == stem]  # fmt: skip
    for recipe in found:
        if wanted == recipe.name or (not wanted and recipe.path and recipe.path.name.count(".") == 1):
            return recipe
    if not wanted:
        return Recipe("default")
    names = sorted({recipe.name for recipe in found})
    raise UserError(
        f"--recipe {wanted}: not found for {method} with {arch} on {data}; "
        f"choose from {', '.join(names) or 'nothing (no recipe exists yet)'}{nearest(wanted, names)}"
    )
