"""TTFS: one spike at most, whose time is the quantised activation, exact at any depth."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import NETS, images_for, refused, trained
from running import run
from torch import Tensor, nn

from bench.snn.activations import Activation, ReLUActivation
from bench.snn.diagnosis import diagnose
from bench.snn.neurons import Clock
from bench.snn.simulate import simulate
from methods.ttfs import TTFS, TTFSNode


def spike_time(z: float, theta: float, T: int, v_init: float) -> int | None:
    """The paper's: the first step at which the sum of a window reaches a threshold that falls to theta / T."""
    v = Fraction(v_init) * Fraction(theta) / T + Fraction(z)
    return next((t for t in range(T) if v >= Fraction(theta) * (1 - Fraction(t, T))), None)


@given(
    z=st.lists(st.integers(-64, 192).map(lambda n: n / 64), min_size=1, max_size=20),
    theta=st.sampled_from([0.5, 1.0, 2.0]),
    T=st.sampled_from([1, 2, 4, 8, 16]),
    v_init=st.sampled_from([0.0, 0.5]),
)
@settings(deadline=None, max_examples=80, derandomize=True)
def test_the_time_of_the_spike_is_the_activation(z: list[float], theta: float, T: int, v_init: float) -> None:
    """Powers of two, so that ties count."""
    node = TTFSNode(torch.tensor(theta, dtype=torch.float64), T, v_init)
    out = node.run(torch.tensor([z], dtype=torch.float64).expand(T, 1, len(z)))[:, 0]
    for index, current in enumerate(z):
        steps = out[:, index].nonzero().flatten().tolist()
        time = spike_time(current, theta, T, v_init)
        assert steps == ([] if time is None else [time])
        rate = 0.0 if time is None else theta * (1 - time / T)
        assert out[:, index].mean().item() == rate
        assert rate == theta * min(max(math.floor(current * T / theta + v_init), 0), T) / T


@pytest.mark.parametrize("net", ["resnet20", "vgg", "linear"])
@pytest.mark.parametrize("T", [1, 4, 6])
def test_it_is_the_qcfs_net_of_as_many_levels(net: str, T: int) -> None:
    x = images_for(net)
    source = trained(NETS[net](), x, L=T)
    method = TTFS(source.net, source="qcfs").double().eval()
    snn = method.convert(T, [], x.shape[1:])
    [(logits, counts)] = simulate(snn, x, T, 10**6)
    with torch.no_grad():
        assert torch.allclose(logits.mean(0), source(x), atol=1e-9)
    sizes = torch.tensor([neuron.size for neuron in snn.neurons.values()])
    sent = counts.spikes.sum(1)
    assert (sent <= len(x) * sizes).all() and (sent > 0).any()
    for neuron in snn.neurons.values():
        assert neuron.v is None, "nothing is left behind"


@pytest.mark.parametrize("v_init", [0.0, 0.5])
def test_a_relu_net_becomes_its_quantised_net(v_init: float) -> None:
    net, x, T = tiny.Layers((6, 8, 7, 4)), tiny.normal(20, 6), 5
    method = TTFS(net, percentile=90.0, v_init=v_init).double()
    snn = method.convert(T, tiny.batches(x, (20,)))
    logits, spikes = run(snn, x, T)
    expected, number = x.numpy(), 0
    for (weight, bias), neuron in zip(net.arrays(), [*snn.neurons.values(), None], strict=True):
        expected = expected @ weight.T + bias
        if neuron is not None:
            theta = neuron.threshold.item()
            levels = (expected * T / theta + v_init) // 1
            expected = levels.clip(0, T) * theta / T
            number += int((levels > 0).sum())
    assert torch.allclose(logits.mean(0), torch.from_numpy(expected), atol=1e-6)
    assert spikes.sum() == number, "one for each activation above 0"


def test_its_ledger_says_that_layers_wait_and_pay_once() -> None:
    net, x, T = tiny.Layers((6, 8, 7, 4)), tiny.normal(9, 6), 4
    snn = TTFS(net, v_init=0.0).double().convert(T, tiny.batches(x, (9,)))
    [(_, counts)] = simulate(snn, x, T, 10**6)
    assert snn.lookahead == T, "which is what makes it not causal in the record"
    operations = counts.spikes[0].sum() * 7 + counts.spikes[1].sum() * 4
    macs = int((x != 0).sum()) * 8 * T
    assert snn.paid(counts, T).tolist() == [operations, macs]
    assert snn.membrane_updates(T) == (8 + 7) * T
    with refused("converted for T = 4"):
        list(simulate(snn, x, 8))


def test_diagnosis_finds_no_unevenness() -> None:
    net, x, T = tiny.Layers((6, 8, 7, 4)), tiny.normal(9, 6), 4
    snn = TTFS(net).double().convert(T, tiny.batches(x, (9,)))
    found = diagnose(net, snn, tiny.batches(x, (9,)), T)
    for layer in found["layers"]:
        for view in ("end_to_end", "same_input"):
            assert layer[view]["unevenness"]["rms"] < 1e-6  # thresholds are in single precision
        assert layer["offset_share"] == 0
        assert layer["firing_rate"] <= 1 / T


def test_a_part_of_a_window_is_refused() -> None:
    node = TTFSNode(torch.tensor(1.0), 4)
    node.clock = Clock(3, 2)
    with refused("a window of 4 steps and got 3"):
        node(torch.zeros(2, 5))


class Other(Activation):
    """Neither of the two."""

    def forward(self, z: Tensor) -> Tensor:
        return z


def test_what_it_cannot_take_is_refused() -> None:
    with refused("ReLU net, and act is a Other"):
        TTFS(tiny.Wire(3, Other()))
    with refused("QCFS net, and act is a ReLU"):
        TTFS(tiny.Wire(3, ReLUActivation()), source="qcfs")
    with refused("--model.percentile 50.0: has no effect with --model.source qcfs"):
        TTFS(tiny.Wire(3, nn.Identity()), source="qcfs", percentile=50.0)
    with refused("--model.calibration_images 0"):
        TTFS(tiny.Wire(3, ReLUActivation()), calibration_images=0)
    for v_init in (-0.1, 1.0):
        with refused("--model.v_init"):
            TTFS(tiny.Wire(3, ReLUActivation()), v_init=v_init)
