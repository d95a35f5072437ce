"""Threads of the test processes."""

from __future__ import annotations

import os

# Before torch is loaded, and for every process that a test starts: workers that share the cores must not each use all.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
