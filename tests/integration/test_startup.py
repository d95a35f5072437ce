"""Commands that do not compute answer at once."""

from __future__ import annotations

import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

COMMANDS = [("--help",), ("fit", "--help"), ("evaluate", "--help"), ("list",), ("leaderboard", "--check"),
            ("diagnose", "--help"), ("export", "--help"), ("sweep", "--help")]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_torch(command):
    code = ("import sys; from bench.cli.main import main\n"
            "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as stop:\n    status = stop.code\n"
            "assert status == 0, status\n"
            "heavy = {'torch', 'pytorch_lightning', 'wandb', 'timm'} & set(sys.modules)\n"
            "sys.exit(f'imported {heavy}' if heavy else 0)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_under_a_second(command):
    def seconds() -> float:
        """Of the processor: what the command needs, not what else the machine does."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "bench", *command], cwd=ROOT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 1.0


def test_list_shows_everything(bench):
    result = bench("list")
    assert result.status == 0
    for word in ("qcfs", "digits", "cifar10", "cifar_resnet20", "cifar_vgg16", "timm/", "quick"):
        assert word in result.out


def test_fit_help_fits_on_a_screen(bench):
    result = bench("fit", "--help")
    assert result.status == 0
    assert len(result.out.splitlines()) <= 30 and max(map(len, result.out.splitlines())) <= 90


def test_full_help_names_the_parts(bench):
    result = bench("fit", "--method", "qcfs", "--data", "digits", "--help")
    assert result.status == 0
    assert "--model.L" in result.out and "--data.batch_size" in result.out and "--trainer.precision" in result.out


def test_windows_is_told_what_the_suite_needs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("bench", run_name="__main__")
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "runs on Linux and macOS" in err and err.count("\n") == 1


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(f"{sys.executable} -m bench list | head -1", shell=True, cwd=Path(ROOT),
                          capture_output=True, text=True)  # fmt: skip
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
