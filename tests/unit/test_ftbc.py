"""Forward temporal bias correction against scalar loops, and what its passes do to the errors."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import tiny
import torch
from reference import LinearNet, named_model, refused, relu_net
from running import logits_of, outputs
from torch import Tensor, nn

from bench.snn.diagnosis import diagnose
from bench.snn.neurons import SpikingNeuron
from methods.ftbc import FTBC, CorrectedIFNode
from methods.qcfs import QCFS

Array = np.ndarray


def sent_by_hand(z_TBF: Array, theta: float, b_TF: Array, a_BF: Array | None = None, alpha: float = 0.0) -> Array:
    """Spikes ``[T, B, F]`` of one linear layer, one neuron after the other; with ``a_BF``, corrects ``b_TF`` first."""
    T, B, F = z_TBF.shape
    spikes = np.zeros_like(z_TBF)
    for f in range(F):
        v = [theta / 2] * B
        for t in range(T):
            u = [v[i] + z_TBF[t, i, f] for i in range(B)]
            if a_BF is not None:
                s = [theta if value - b_TF[t, f] >= theta else 0.0 for value in u]
                b_TF[t, f] += alpha * sum(s[i] - a_BF[i, f] for i in range(B)) / B
            for i in range(B):
                spikes[t, i, f] = theta if u[i] - b_TF[t, f] >= theta else 0.0
                v[i] = u[i] - b_TF[t, f] - spikes[t, i, f]
    return spikes


@pytest.mark.parametrize(("passes", "alpha"), [(1, 0.5), (3, 0.2)])
def test_corrections_are_those_of_scalar_loops(passes: int, alpha: float) -> None:
    model, T, x = tiny.Layers(), 5, tiny.normal(7, 6)
    rule = FTBC(model, "relu", calibration_images=7, batch=4, passes=passes, alpha=alpha, percentile=90.0)
    snn = rule.convert(T, tiny.batches(x, (5, 2)))
    layers = list(zip(("act1", "act2"), model.arrays(), strict=False))
    found = {name: np.zeros((T, len(bias))) for name, (_, bias) in layers}
    sent = np.zeros(0)
    for rows, step in [(slice(0, 4), alpha), (slice(4, 7), alpha)] * passes + [(slice(0, 7), 0.0)]:
        sent, a = np.repeat(x.numpy()[None, rows], T, 0), x.numpy()[rows]
        for name, (weight, bias) in layers:
            a = np.maximum(a @ weight.T + bias, 0)
            theta = float(snn.neurons[name].threshold)
            sent = sent_by_hand(sent @ weight.T + bias, theta, found[name], a if step else None, step)
    for name, b in found.items():
        neuron = snn.neurons[name]
        assert isinstance(neuron, CorrectedIFNode) and np.abs(neuron.corrections.numpy() - b).max() < 1e-12
    with outputs(snn.net, SpikingNeuron) as out:
        logits_of(snn, x, T, 10**6)
    assert np.array_equal(out["act2"].view(T, 7, -1).numpy() > 0, sent > 0)


def channel_errors(rule: FTBC, batches: list[tuple[Tensor, Tensor]], x: Tensor, T: int, name: str) -> float:
    """Mean over channels and steps of the error of the mean output, on images ``x``."""
    snn = rule.convert(T, batches)
    with outputs(rule.net, nn.Module) as ann:
        rule.net(x)
    with outputs(snn.net, SpikingNeuron) as out:
        logits_of(snn, x, T, 10**6)
    sent = out[name].unflatten(0, (T, len(x))).mean(1)
    return float((sent.flatten(2).mean(2) - ann[name].mean(0).flatten(1).mean(1)).abs().mean())


@pytest.mark.parametrize("name", ["act1", "act2"])
def test_each_pass_lowers_the_error_and_most_of_that_holds_on_other_images(name: str) -> None:
    """Of the mean output of each channel at each step: on its own images by more than half, on others by a third."""
    net, T = relu_net(), 4
    seen, unseen = tiny.normal(40, 3, 8, 8), tiny.normal(40, 3, 8, 8, seed=1)
    errors: dict[str, list[float]] = {"seen": [], "unseen": []}
    for passes in (1, 2, 4):
        rule = FTBC(net, "relu", calibration_images=40, batch=40, passes=passes)
        for key, x in (("seen", seen), ("unseen", unseen)):
            errors[key].append(channel_errors(rule, tiny.batches(seen, (40,)), x, T, name))
    off = FTBC(net, "relu", calibration_images=40, batch=40, passes=1, alpha=1e-9)
    plain = {
        key: channel_errors(off, tiny.batches(seen, (40,)), x, T, name)
        for key, x in (("seen", seen), ("unseen", unseen))
    }
    assert [plain["seen"], *errors["seen"]] == sorted([plain["seen"], *errors["seen"]], reverse=True)
    assert errors["seen"][-1] < 0.5 * plain["seen"]
    assert errors["unseen"][-1] < 0.67 * plain["unseen"]


@pytest.mark.parametrize("name", ["linear", "preactivation"])
def test_a_short_schedule_is_the_beginning_of_a_long_one_bit_for_bit(name: str) -> None:
    model, x = named_model(name)
    model, x = model.float(), x.float()
    short, long = (
        FTBC(model.net, calibration_images=3, batch=3, passes=2).convert(T, tiny.batches(x, (3,))) for T in (3, 8)
    )
    assert len(short.neurons) > 1
    for name, neuron in short.neurons.items():
        other = long.neurons[name]
        assert isinstance(neuron, CorrectedIFNode) and isinstance(other, CorrectedIFNode)
        assert neuron.corrections.shape[0] == 3
        assert torch.equal(neuron.corrections, other.corrections[:3]), name
        assert neuron.corrections.abs().max() > 0
    assert torch.equal(logits_of(short, x, 3, 3), logits_of(long, x, 8, 3)[:3])


def test_passes_of_any_length_take_the_correction_of_their_step() -> None:
    model, x = named_model("linear")
    snn = FTBC(model.net, calibration_images=3, batch=3).convert(8, tiny.batches(x, (3,)))
    whole = logits_of(snn, x, 8, 10**6)
    assert (logits_of(snn, x, 8, 1) - whole).abs().max() < 1e-12
    assert (snn.only_T, snn.lookahead, snn.warmup) == (None, 0, 0)
    with refused("at most 8 steps"):
        logits_of(snn, x, 9)
    found = diagnose(model.net, snn, tiny.batches(x, (3,)), 4)
    assert len(found["layers"]) == 2


@pytest.mark.parametrize(
    "options",
    [{"calibration_images": 0}, {"calibration_images": 199}, {"batch": 0}, {"passes": 0}, {"passes": -1},
     {"alpha": 0.0}, {"alpha": -0.5}, {"alpha": math.nan}, {"percentile": 0.0}, {"percentile": 99.0}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with refused(f"--model.{next(iter(options))}"):
        FTBC(QCFS(LinearNet()).net, **options)  # type: ignore[arg-type]


def test_it_needs_T_and_images() -> None:
    model, x = named_model("linear")
    with refused("T="):
        FTBC(model.net).convert(sys.maxsize, tiny.batches(x, (3,)))
    with refused("calibration images and got none"):
        FTBC(model.net).convert(4, [])
