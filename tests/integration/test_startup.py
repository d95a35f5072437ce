"""Commands that do not compute answer at once."""

from __future__ import annotations

import os
import resource
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

from bench.cli.commands import COMMANDS as MAIN

COMMANDS = [("--help",), ("list",), ("leaderboard", "--check"), *((command, "--help") for command in MAIN)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_heavy_is_imported_and_a_second_suffices(command):
    heavy = {"torch", "pytorch_lightning", "wandb", "timm"}
    if command[0] == "leaderboard":  # its pictures included
        heavy |= {"numpy", "pandas", "matplotlib"}
    code = ("import sys; from bench.cli.main import main\n"
            "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as stop:\n    status = stop.code\n"
            "assert status == 0, status\n"
            f"heavy = {heavy} & set(sys.modules)\n"
            "sys.exit(f'imported {heavy}' if heavy else 0)")  # fmt: skip

    def seconds() -> float:
        """Of the processor: what the command needs, not what else the machine does."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 1.0 for _ in range(3))


def test_fit_help_fits_on_a_screen(bench):
    result = bench("fit", "--help")
    assert result.status == 0
    assert len(result.out.splitlines()) <= 30 and max(map(len, result.out.splitlines())) <= 90


def test_windows_is_told_what_the_suite_needs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("bench", run_name="__main__")
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "runs on Linux and macOS" in err and err.count("\n") == 1


def test_a_closed_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, "-m", "bench", "list"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
