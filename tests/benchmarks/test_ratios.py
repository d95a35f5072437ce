"""The ratios of ``python -m bench speed`` against those committed: a loss of a fifth fails.

Ratios of two rates measured in turn travel between machines of one kind far better than seconds do, but they are not
free of the machine: ``baseline.json`` names the one it was measured on, and on another kind of processor a test is
skipped until ``BENCH_SPEED_UPDATE=1 python -m pytest -m benchmark`` has added it. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from bench.run.provenance import cpuinfo, environment
from bench.speed.command import figures_of

BASELINE = Path(__file__).with_name("baseline.json")
PAIRS, IMAGES, T = 5, 200, 32
LOSS = 0.2
# More is worse.
MEMORY = "memory"


def key(kind: str, name: str, limit: str) -> str:
    """The best batch size is a result, no part of the name."""
    return f"{kind}: {name} / {limit.partition(', batch of')[0]}"


def machine(device: str) -> str:
    """A virtual machine's processor says no more than its maker in its name, so the model's number comes with it."""
    known = environment(torch.device(device), 1, 0)
    parts = [known.device, f"{known.threads} threads"]
    facts = cpuinfo() if device == "cpu" else {}
    parts += [f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts]
    return ", ".join(parts)


def measured(kind: str, device: str) -> dict[str, float]:
    figures = figures_of(kind, "cifar_resnet20", T, IMAGES, PAIRS, device)
    return {key(kind, figure.name, figure.limit): round(figure.ratio, 3) for figure in figures}


def lost(kind: str, ratios: dict[str, float], before: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Those a fifth worse than before, with both."""
    both = {name: (ratio, before[name]) for name, ratio in ratios.items()}
    if kind == MEMORY:
        return {name: (now, then) for name, (now, then) in both.items() if now > then * (1 + LOSS)}
    return {name: (now, then) for name, (now, then) in both.items() if now < then * (1 - LOSS)}


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
# Torch's own, while it compiles an activation in the midst of an eager net.
@pytest.mark.filterwarnings("default:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("kind", ["evaluation", "callback", "memory", "training", "data"])
def test_no_ratio_has_lost_a_fifth(kind: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = machine(device)
    baseline: dict[str, dict[str, float]] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    before = {name: ratio for name, ratio in baseline.get(where, {}).items() if name.startswith(f"{kind}: ")}
    ratios = measured(kind, device)
    if os.environ.get("BENCH_SPEED_UPDATE") == "1":
        others = {name: ratio for name, ratio in baseline.get(where, {}).items() if name not in before}
        baseline[where] = others | ratios
        BASELINE.write_text(json.dumps(baseline, indent=2, sort_keys=True) + "\n")
        return
    if not before:
        pytest.skip(f"no baseline for {where}; BENCH_SPEED_UPDATE=1 adds one")
    without_peers = {name for name in before if "SpikingJelly" not in name}
    assert without_peers <= set(ratios) <= set(before), "other figures than those of the baseline"
    worse = lost(kind, ratios, before)
    if worse:  # a machine that others share has slow minutes; what is lost is lost the second time as well
        again = lost(kind, measured(kind, device), before)
        worse = {name: both for name, both in worse.items() if name in again}
    assert not worse, f"ratio now and committed: {worse}"


def test_a_loss_of_a_fifth_is_seen() -> None:
    before = {"a": 1.0, "b": 0.5}
    assert lost("training", {"a": 0.79, "b": 0.41}, before) == {"a": (0.79, 1.0)}
    assert lost(MEMORY, {"a": 1.21, "b": 0.3}, before) == {"a": (1.21, 1.0)}
