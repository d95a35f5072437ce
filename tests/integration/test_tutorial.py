"""The tutorial's code runs in the order given, on few images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

# What makes a command short, by what it begins with; the rest of it is the tutorial's.
SHORT = {
    ("fit",): ("--subset", "32", "--T", "1,8", "--logger", "none"),
    ("fit", "--method", "qcfs"): ("--max_epochs", "1"),
    ("diagnose",): ("--images", "8", "--T", "2,8"),
    ("export",): ("--images", "8", "--T", "1"),
}


def test_the_tutorial_runs(bench, capsys):
    pytest.importorskip("onnxruntime")
    page = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8").replace("snn-T8", "snn-T1")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks].count("bash") > 3
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "tutorial.md", "exec"), {})
            assert 0 <= float(capsys.readouterr().out) <= 1
            continue
        for line in code.splitlines():
            words = shlex.split(line)
            assert words[:3] == ["python", "-m", "bench"], line
            command = words[3:]
            extra = [word for start, more in SHORT.items() if tuple(command[: len(start)]) == start for word in more]
            result = bench(*command, *extra)
            assert result.status == 0, f"{line}: {result.err}"
    written = {path for name in re.findall(r"`(runs/[\w./-]+\.\w+)`", page) for path in [Path(name)]}
    assert written and all(path.exists() for path in written)
