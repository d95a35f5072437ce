"""Freed memory stays with the process, so that activations are not paged in anew in every layer."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from bench.cli.main import keep_freed_memory

# Ten times eight blocks of 4 MB that come and go; prints how many pages the kernel had to bring.
CODE = """
import resource, sys
import numpy
from bench.cli.main import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def work():
    for _ in range(10):
        blocks = [numpy.ones(2**19) for _ in range(8)]
        del blocks
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set is glibc's")
def test_blocks_of_activations_are_paged_in_once() -> None:
    assert faults("kept") < 100
    assert faults("by default") > 1000, "or there would be nothing to set"


def test_it_says_whether_it_could() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
