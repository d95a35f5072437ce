"""The workflows that comment on pull requests: their text, and that no secret reaches a fork's code."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"


@pytest.fixture
def changes() -> Any:
    spec = importlib.util.spec_from_file_location("changes", GITHUB / "scripts" / "changes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.changes


def row(**values: Any) -> dict[str, Any]:
    base = {"dataset": "cifar10", "arch": "cifar_resnet20", "parameters": 1, "macs": 1, "method": "qcfs"}
    base |= {"recipe": "paper", "recipe_sha256": "a", "protocol": 1, "seeds": "0", "n": 1, "T": 4, "warmup": 0}
    return {**base, "top1": 83.0, "reported_top1": 83.75, "reported_in": "Table 1", "badge": "differs", **values}


def test_old_new_and_printed_numbers(changes: Any) -> None:
    new = [
        row(top1=83.5, seeds="0 1", n=2, badge="matches"),
        row(T=8, top1=90.0, reported_top1=None, badge="ours only"),
    ]
    text = changes([row(), row(T=2)], new)
    assert text.startswith("3 numbers of the leaderboard change")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| cifar10")]
    assert [line[4:] for line in lines] == [
        ["1", "2", "0", "83.00", "", "", "83.75", "", "removed"],
        ["2", "4", "0", "83.00", "83.50", "+0.50", "83.75", "-0.25", "matches"],
        ["1", "8", "0", "", "90.00", "", "", "", "ours only"],
    ]

    assert changes([row()], [row()]) == "The numbers of the leaderboard stay as they are.\n"
    old = row(top1=None, badge="reported only", n=None)
    assert "| 84.00 |" in changes([old], [{**old, "reported_top1": 84.0}])


def test_hostile_cells_stay_in_their_line_and_many_changes_in_a_comment(changes: Any) -> None:
    text = changes([], [row(recipe="a|b\nc" + "x" * 1000)])
    assert "a/b cxx" in text
    assert max(map(len, text.splitlines())) < 400
    text = changes([], [row(T=T) for T in range(1, 1000)])
    assert "and 849 more." in text
    assert len(text) < 60_000


def test_the_script_is_run_on_what_the_command_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "leaderboard", "--json"]
    new = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (tmp_path / "old.json").write_text("[]")
    (tmp_path / "new.json").write_text(new)
    script = [sys.executable, str(GITHUB / "scripts" / "changes.py"), "old.json", "new.json"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(json.loads(new)) > 150
    assert "more." in done.stdout


def workflow(name: str) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load((GITHUB / "workflows" / name).read_text())
    return loaded


def test_what_runs_a_forks_code_can_only_read() -> None:
    for path in (GITHUB / "workflows").glob("*.yml"):
        loaded = workflow(path.name)
        # YAML 1.1 reads the key "on" as true.
        if "pull_request" in loaded[True]:
            assert loaded["permissions"] == {"contents": "read"}, path.name
            assert "secrets." not in path.read_text()
            assert all("permissions" not in job for job in loaded["jobs"].values())
        assert "pull_request_target" not in loaded[True], path.name


def test_what_may_write_runs_nothing_of_a_fork() -> None:
    loaded = workflow("leaderboard-comment.yml")
    assert loaded[True] == {
        "workflow_run": {"workflows": [workflow("leaderboard.yml")["name"]], "types": ["completed"]}
    }
    assert loaded["permissions"] == {}
    [job] = loaded["jobs"].values()
    assert job["permissions"] == {"actions": "read", "pull-requests": "write"}
    assert [step.get("run") for step in job["steps"]] == [None, None]
    assert [step["uses"].split("@")[0] for step in job["steps"]] == [
        "actions/download-artifact",
        "actions/github-script",
    ]
    assert "${{" not in job["steps"][1]["with"]["script"]
