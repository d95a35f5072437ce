"""The code that a record names is the code that ran."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import provenance


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
