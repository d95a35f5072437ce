"""Counts what the house is built of: ``python docs/house.py [ROOT]``.

Prints files at the top of ``bench/``, arrows between packages and circles of imports, code lines (without blank lines,
comments and docstrings) of each part, and how often types are given up (``Any``, ``type: ignore``).
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PARTS = ("bench", "methods", "datamodules", "tests")
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
           tokenize.ENDMARKER}  # fmt: skip


def docstrings(tree: ast.Module) -> set[int]:
    """Line numbers that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def code_lines(source: str) -> int:
    """Lines that hold code."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIPPED:
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found - docstrings(ast.parse(source)))


def module_name(path: Path, root: Path) -> str:
    """``bench/snn/cost.py`` to ``bench.snn.cost``."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, known: set[str]) -> Iterator[str]:
    """Modules of ours that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name


def room(module: str) -> str:
    """The package that a module belongs to: two parts of its name in ``bench``, else one."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "bench" else parts[0]


def main(root: Path) -> None:
    """Prints the counts."""
    files = {part: sorted((root / part).rglob("*.py")) for part in PARTS}
    modules = {module_name(path, root): path for part in PARTS[:3] for path in files[part]}
    top = sorted(path.name for path in (root / "bench").glob("*.py"))
    print(f"files at the top of bench/: {len(top)} ({', '.join(top)})")
    graph = {name: {other for other in imports(path, set(modules)) if other != name} for name, path in modules.items()}
    arrows = {(room(a), room(b)) for a, others in graph.items() for b in others if room(a) != room(b)}
    print(f"arrows between modules: {sum(map(len, graph.values()))}, between packages: {len(arrows)}")
    for what, edges in (("modules", graph), ("packages", {a: {y for x, y in arrows if x == a} for a, _ in arrows})):
        # A package imports nothing by holding its modules, so an __init__ that imports them is no circle.
        try:
            list(TopologicalSorter(edges).static_order())
            print(f"circles of {what}: none")
        except CycleError as error:
            print(f"circles of {what}: {' -> '.join(error.args[1])}")
    for part in PARTS:
        sources = [path.read_text() for path in files[part]]
        print(f"code lines of {part}: {sum(map(code_lines, sources))} in {len(sources)} files")
    if "-v" in sys.argv:
        sizes = Counter[str]()
        for name, path in modules.items():
            sizes[room(name)] += code_lines(path.read_text())
        print("\n".join(f"  {count:5} {name}" for name, count in sizes.most_common()))
    ours = "\n".join(path.read_text() for part in PARTS[:3] for path in files[part])
    print(f"Any: {len(re.findall(r'(?<![A-Za-z_.])Any(?![A-Za-z_])', ours))} (imports included), "
          f"type: ignore: {ours.count('type: ignore')}")  # fmt: skip


if __name__ == "__main__":
    main(Path(next((a for a in sys.argv[1:] if not a.startswith("-")), Path(__file__).resolve().parents[1])))
