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
