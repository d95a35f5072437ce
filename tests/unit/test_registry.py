"""The registry and the classes it names: what the side without torch is told is what they are."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.leaderboard.reported import load_reported
from bench.registry.datasets import DATA
from bench.registry.entries import Entry
from bench.registry.methods import METHODS
from bench.registry.papers import PAPERS
from bench.registry.younger import completed

ROOT = Path(__file__).parents[2]


def options(kind: type) -> set[str]:
    """Names of a constructor's arguments, those of its bases included where it hands them on."""
    found: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            found |= set(parameters)
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return found


@pytest.mark.parametrize("entry", [*METHODS.values(), *DATA.values()], ids=[*METHODS, *DATA])
def test_younger_options_are_options(entry: Entry) -> None:
    assert set(entry.younger) <= options(entry.load())


@pytest.mark.parametrize("name", DATA)
def test_a_data_module_is_what_the_registry_says(name: str) -> None:
    kind = DATA[name].load()
    assert (kind.name, kind.num_test) == (name, DATA[name].num_test)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_what_the_registry_says(name: str) -> None:
    entry = METHODS[name]
    assert entry.reference_ann in (None, *getattr(entry.load(), "extras", ()))
    assert set(entry.sources) <= set(METHODS)
    assert all(METHODS[source].source is None for source in entry.sources)
    assert entry.per_T == entry.load().per_T
    assert not (entry.source_only and entry.sources)
    # Options of training are younger than some nets, whoever converts them.
    assert ("init" in options(entry.load())) == (entry.source is None)


def test_papers_are_those_of_the_reported_files() -> None:
    files = {paper.key: paper for paper in load_reported(ROOT / "leaderboards/reported")}
    assert {entry.paper for entry in METHODS.values()} == set(PAPERS) <= set(files)
    for key, paper in PAPERS.items():
        assert paper.year == files[key].year and paper.venue in str(files[key].venue), key
        address = files[key].arxiv or files[key].doi or "".join(files[key].code[:1])
        assert paper.link and address and paper.link.endswith(address), key


def test_settings_of_earlier_runs_get_what_they_are_too_old_to_have() -> None:
    old: dict[str, Any] = {"method": "rts", "data": {"name": "digits"}, "model": {"max_pool": "keep"}}
    today = completed({**old, "trainer": {"max_epochs": 1, "precision": "bf16-mixed"}})
    assert today["model"] == {"init": "kaiming_normal", "max_pool": "keep", "v_init": 0.0}
    assert today["data"] == {
        **{"name": "digits", "val_augment": False, "last_batch": "drop"},
        **{"mean": None, "std": None},
    }
    assert today["trainer"] == {"max_epochs": 1}
    assert completed({"method": "cos", "model": {"rho": 4}, "source": old}) == {
        **{"method": "cos", "model": {"rho": 4}, "data": {}},
        "source": {"method": "rts", "model": today["model"], "data": today["data"]},
    }
    assert completed(today) == today


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, bench.registry.younger, bench.registry.nets\n"
        "sys.exit(sorted({'torch', 'numpy', 'pytorch_lightning', 'timm'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
