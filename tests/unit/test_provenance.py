"""The code that a record names is the code that ran."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.records.header import Header, RecipeHeader
from bench.records.record import Code
from bench.run import provenance


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    provenance.code_state.cache_clear()
    yield
    provenance.code_state.cache_clear()


def test_what_is_committed_while_a_run_goes_on_is_not_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse HEAD": "a" * 40, "rev-parse --show-toplevel": str(provenance.ROOT)}
    monkeypatch.setattr(provenance, "_git", lambda *words: answers.get(" ".join(words), ""))
    first = provenance.code_state()
    assert (first.commit, first.dirty) == ("a" * 40, False)
    answers["rev-parse HEAD"] = "b" * 40
    assert provenance.code_state() == first


@pytest.mark.parametrize(
    ("status", "files", "dirty"),
    [
        ("", "H bench/run.py", False),
        (" M bench/run.py", "H bench/run.py", True),
        (None, "H bench/run.py", True),
        ("", None, True),
        ("", "H bench/cli.py\nh bench/run.py", True),
        ("", "S bench/run.py", True),
    ],
)
def test_code_is_that_of_the_commit_only_where_git_says_so(
    monkeypatch: pytest.MonkeyPatch, status: str | None, files: str | None, dirty: bool
) -> None:
    """A damaged index, a time-out, and files that git was told to pass over (h, S) prove nothing."""
    answers = {"status": status, "ls-files": files, "rev-parse": str(provenance.ROOT)}

    def git(*words: str) -> str | None:
        return "a" * 40 if words[-1] == "HEAD" else answers[words[0]]

    monkeypatch.setattr(provenance, "_git", git)
    assert provenance.code_state().dirty is dirty


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """One with a first commit, one that changes a document, and one that changes code."""
    root = tmp_path_factory.mktemp("repository")
    (root / "bench").mkdir()
    found = {}

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *identity, *words], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    for name, file in (("first", "bench/run.py"), ("document", "README.md"), ("code", "bench/run.py")):
        (root / file).write_text(name)
        git("add", ".")
        git("commit", "--quiet", "-m", name)
        found[name] = git("rev-parse", "HEAD")
    return root, {**found, "elsewhere": "f" * 40}


@pytest.mark.parametrize(
    ("epochs", "began", "now", "changed", "expected"),
    [
        (1, "first", "first", False, False),
        (1, "first", "document", False, False),
        (1, "first", "code", False, True),
        (1, "first", "document", True, True),
        (1, "first", "elsewhere", False, True),
        (1, "elsewhere", "first", False, True),
        (2, "first", "code", True, False),
        (2, "elsewhere", "code", False, False),
    ],
)
def test_a_training_is_of_one_commit_as_long_as_no_other_code_trains(
    repository: tuple[Path, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    began: str,
    now: str,
    changed: bool,
    expected: bool,
) -> None:
    """Documents do not train, nor does anything after the last epoch; a commit that git does not know may."""
    root, commits = repository
    monkeypatch.setattr(provenance, "ROOT", root)

    def before(dirty: bool) -> Header:
        recipe = RecipeHeader(name="r", overrides=[], config={"model": {}, "data": {}})
        code = Code(commit=commits[began], dirty=dirty)
        names = {"method": "m", "arch": "a", "data": "d"}
        return Header(version=1, **names, seed=0, recipe=recipe, code=code, epochs=epochs)

    found = provenance.trained_by(before(False), Code(commit=commits[now], dirty=changed), 2)
    assert found == Code(commit=commits[began], dirty=expected)
    assert provenance.trained_by(before(True), Code(commit=commits[began], dirty=False), 2).dirty
