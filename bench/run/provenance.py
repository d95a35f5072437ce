"""Which code, on which machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from bench.records.header import Header
from bench.records.record import Arithmetic, Code, Environment

ROOT = Path(__file__).resolve().parents[2]
# What decides a result; documents and committed results do not.
CODE_PATHS = ("bench", "methods", "datamodules", "pyproject.toml")


@functools.cache
def code_state() -> Code:
    """Commit of the checkout this package runs from, and whether its code differs from it.

    Cached at the first call, because commits and edits during a run do not change the running code.
    """
    commit, top = _git("rev-parse", "HEAD"), _git("rev-parse", "--show-toplevel")
    # If the package is installed inside another checkout, the commit of that checkout does not describe this code.
    if commit is None or top is None or Path(top).resolve() != ROOT:
        return Code(commit="unknown", dirty=True)
    changed = _git("status", "--porcelain", "--untracked-files=all", "--", *CODE_PATHS)
    listed = _git("ls-files", "-v", "--", *CODE_PATHS)
    if changed is None or listed is None:  # git has not answered: nothing says that the code is the commit's
        return Code(commit=commit, dirty=True)
    # Small letters and S are files that git was told not to look at.
    hidden = any(line[:1].islower() or line[:1] == "S" for line in listed.splitlines())
    return Code(commit=commit, dirty=bool(changed) or hidden)


def same_code(one: str, other: str) -> bool:
    """Whether two commits have the same code, whatever else differs; false if git cannot tell."""
    return one == other or _git("diff", "--no-ext-diff", "--quiet", one, other, "--", *CODE_PATHS) is not None


def _git(*arguments: str) -> str | None:
    try:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git or no checkout: recorded as "unknown", which the leaderboard refuses
    return done.stdout.strip()


def environment(device: torch.device, world_size: int, workers: int) -> Environment:
    """Versions and device of this process."""
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=version("torchvision"),
        lightning=version("pytorch-lightning"),
        timm=version("timm"),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        threads=torch.get_num_threads(),
        world_size=world_size,
        workers=workers,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def arithmetic(device: torch.device, world_size: int, compiled: bool, precision: str) -> Arithmetic:
    """What decides how sums are rounded in this process."""
    facts = environment(device, world_size, 0)
    return Arithmetic(
        torch=facts.torch,
        device=facts.device,
        threads=facts.threads,
        world_size=world_size,
        compiled=compiled,
        precision=precision,
    )


def trained_by(before: Header, now: Code, max_epochs: int) -> Code:
    """The code of a whole training that goes on: that which began, changed if other code trains the rest.

    Args:
        before: header of the checkpoint that is resumed from.
        now: this process's code.
        max_epochs: of the training.
    """
    began = before.code
    if before.epochs >= max_epochs:
        return began
    dirty = began.dirty or now.dirty or not same_code(began.commit, now.commit)
    if began.dirty:
        print(
            "note: this training, or the net that it began from, used uncommitted or mixed code, so its record will "
            "never be ranked; commit all code and start again, a tuning from a net that was trained with committed code"
        )
    elif dirty:
        first = began.commit[:10]
        print(
            f"note: this training began with commit {first} and continues with {now.commit[:10]}, so its record will "
            f"never be ranked; continue in a clean checkout of {first}, or restart with --overwrite instead of --ckpt"
        )
    return Code(commit=began.commit, dirty=dirty)


def trained_on(before: Header | None, here: Arithmetic, max_epochs: int) -> Arithmetic | None:
    """The arithmetic of a whole training; ``None`` if it is unknown or changed during the training.

    Args:
        before: header of the checkpoint that is resumed from.
        here: this process's.
        max_epochs: of the training.
    """
    if before is None or before.epochs == 0:
        return here
    earlier = before.arithmetic
    return earlier if earlier == here or before.epochs >= max_epochs else None


def cpuinfo() -> dict[str, str]:
    """What Linux says of a processor by the names in ``/proc/cpuinfo``; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _processor() -> str:
    """Name, cores, and the instructions that torch uses: one name stands for machines with AVX-512 and without."""
    name = cpuinfo().get("model name") or platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()})"
