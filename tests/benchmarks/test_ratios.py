"""The ratios of ``python -m bench speed`` against those committed: a loss of a fifth fails.

Ratios of two rates measured in turn travel between machines of one kind far better than seconds do, but they are not
free of the machine: ``baseline.json`` names the one it was measured on, and on another kind of processor a test is
skipped until ``BENCH_SPEED_UPDATE=1 python -m pytest -m benchmark`` has added it. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.provenance import environment
from bench.speed.command import figures_of

BASELINE = Path(__file__).with_name("baseline.json")
PAIRS, IMAGES, T = 5, 200, 32
LOSS = 0.2
# More is worse.
MEMORY = "memory"


def key(kind: str, name: str, limit: str) -> str:
    """The share of changed spikes in a name is a result, not a name."""
    return f"{kind}: {name.split(' (')[0]} / {limit}"


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["evaluation", "callback", "memory", "training", "data"])
def test_no_ratio_has_lost_a_fifth(kind: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = environment(torch.device(device), 1, 0)
    where = f"{machine.device}, {machine.threads} threads"
    baseline: dict[str, dict[str, Any]] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    figures = figures_of(kind, "cifar_resnet20", T, IMAGES, PAIRS, device)
    ratios = {key(kind, figure.name, figure.limit): round(figure.ratio, 3) for figure in figures}
    if os.environ.get("BENCH_SPEED_UPDATE") == "1":
        baseline.setdefault(where, {}).update(ratios)
        BASELINE.write_text(json.dumps(baseline, indent=2, sort_keys=True) + "\n")
        return
    if where not in baseline:
        pytest.skip(f"no baseline for {where}; BENCH_SPEED_UPDATE=1 adds one")
    worse = {
        name: (ratio, before)
        for name, ratio in ratios.items()
        if (before := baseline[where].get(name)) is not None
        and (ratio > before * (1 + LOSS) if kind == MEMORY else ratio < before * (1 - LOSS))
    }
    assert not worse, f"ratio now and committed: {worse}"
