"""Group neurons and multi-threshold neurons: members and thresholds one by one, and what they say in T steps."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LinearNet, named_model, refused, relu_net
from running import logits_of, outputs, run
from test_dcgs import iterated
from torch import Tensor, nn

from bench.snn.neurons import Clock, IFNode
from methods.burst import BurstIFNode
from methods.gaussian import channel_moments
from methods.group import Group
from methods.hmt import HMT
from methods.qcfs import QCFS
from methods.relu import ReLU

THETA = 2.0
# Multiples of 1/16 keep sums exact, so that equality with a threshold really happens.
currents = st.lists(st.integers(-40, 90).map(lambda k: k / 16), min_size=1, max_size=10)
checked = settings(deadline=None, max_examples=100, derandomize=True)


def sent(neuron: BurstIFNode, inputs: list[float]) -> list[float]:
    neuron.reset()
    neuron.clock = Clock(T=len(inputs), batch=1)
    return neuron(torch.tensor(inputs, dtype=torch.float64).view(-1, 1, 1)).flatten().tolist()


def theta() -> Tensor:
    return torch.tensor(THETA, dtype=torch.float64)


@checked
@given(currents, st.sampled_from([1, 2, 4, 8]))
def test_as_many_members_fire_as_have_been_reached(inputs: list[float], m: int) -> None:
    v, expected = THETA / (2 * m), []
    for current in inputs:
        v += current
        n = sum(v >= i * THETA / m for i in range(1, m + 1))
        expected.append(n * THETA / m)
        v -= expected[-1]
    neuron = BurstIFNode(theta() / m, m, 0.5)
    assert sent(neuron, inputs) == expected
    assert neuron.spike_counts.tolist() == [round(out * m / THETA) for out in expected]


@pytest.mark.parametrize("name", ["linear", "resnet20"])
def test_one_step_is_the_quantised_ann_of_as_many_levels(name: str) -> None:
    model, x = named_model(name, L=6)
    snn = Group(model.net, members=6).convert(1, [])
    with torch.no_grad():
        assert torch.allclose(logits_of(snn, x, 1)[0], model.net(x), atol=1e-12)
    assert {(n.alphabet, n.levels_per_step) for n in snn.neurons.values()} == {("multi", 6)}


def test_one_member_is_the_plain_neuron() -> None:
    model, x = named_model("resnet20")
    plain, group = model.convert(8, []), Group(model.net, members=1).convert(8, [])
    assert torch.equal(logits_of(group, x, 8), logits_of(plain, x, 8))


@checked
@given(st.integers(-8, 40).map(lambda k: k / 16), st.sampled_from([1, 2, 4]), st.integers(1, 9))
def test_a_constant_current_is_told_in_m_T_levels(z: float, m: int, T: int) -> None:
    total = sum(sent(BurstIFNode(theta() / m, m, 0.5), [z] * T))
    levels = np.clip(np.floor(z * T * m / THETA + 0.5), 0, m * T)
    assert total == levels * THETA / m


# ------------------------------------------------------------------------------------------------------------- H-MT


@checked
@given(currents, st.integers(1, 4))
def test_thresholds_are_compared_from_the_largest_down(inputs: list[float], bits: int) -> None:
    v, expected, spikes = THETA / 2, [], []
    for current in inputs:
        v += current
        out, fired = 0.0, 0
        for i in reversed(range(bits)):
            if v >= 2**i * THETA:
                v -= 2**i * THETA
                out += 2**i * THETA
                fired += 1
        expected.append(out)
        spikes.append(fired)
    neuron = BurstIFNode(theta(), 2**bits - 1, 0.5, binary=True)
    assert sent(neuron, inputs) == expected
    assert neuron.spike_counts.tolist() == spikes, "a spike for each digit"


@pytest.mark.parametrize(("bits", "T"), [(3, 1), (2, 4)])
def test_thresholds_are_literal_iterations_with_T_times_the_levels(bits: int, T: int) -> None:
    net, x = relu_net(), tiny.normal(20, 3, 8, 8)
    snn = HMT(net, bits=bits, calibration_images=20).convert(T, tiny.batches(x, (20,)))
    levels = 2**bits - 1
    for name, (mean, deviation) in channel_moments(net, tiny.batches(x, (20,))).items():
        for c, found in enumerate(snn.neurons[name].threshold.flatten().tolist()):
            ceiling = iterated(mean.flatten()[c].item(), deviation.flatten()[c].item(), levels * T, 1500, float(levels))
            assert found == pytest.approx(ceiling / levels, rel=1e-5)
    assert snn.only_T == T


@pytest.mark.parametrize(("rule", "factor"), [("q999", 1), ("q999x2", 2)])
def test_thresholds_by_percentile(rule: str, factor: int) -> None:
    net, x = relu_net(), tiny.normal(20, 3, 8, 8)
    snn = HMT(net, 3, rule, 20).convert(2, tiny.batches(x, (20,)))  # type: ignore[arg-type]
    first, _ = tiny.activations(net, x.numpy())  # type: ignore[arg-type]
    expected = np.percentile(first.transpose(1, 0, 2, 3).reshape(4, -1), 99.9, axis=1) * factor / 7
    assert snn.neurons["act1"].threshold.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_more_bits_come_nearer_to_the_ann_and_cost_fewer_spikes_than_levels() -> None:
    net, x = relu_net(nn.MaxPool2d(2)), tiny.normal(20, 3, 8, 8)
    with torch.no_grad():
        ann = net(x)
    errors = []
    for bits in (1, 2, 4, 6):
        snn = HMT(net, bits, calibration_images=20).convert(2, tiny.batches(x, (20,)))
        with outputs(snn.net, BurstIFNode) as out:
            logits, spikes = run(snn, x, 2)
        errors.append(float((logits.mean(0) - ann).abs().mean()))
        units = sum(float((out[name] / n.threshold).sum()) for name, n in snn.neurons.items())
        assert spikes.sum() == pytest.approx(units) if bits == 1 else spikes.sum() < 0.95 * units
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03 * ann.abs().mean()


@pytest.mark.parametrize(("option", "value"), [("bits", 0), ("bits", 9), ("bits", -1), ("calibration_images", 0)])
def test_hmt_refuses_options_out_of_range(option: str, value: int) -> None:
    with refused(f"--model.{option} {value}"):
        HMT(ReLU(LinearNet()).net, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("members", [0, -1, 1001])
def test_group_refuses_members_out_of_range(members: int) -> None:
    with refused(f"--model.members {members}"):
        Group(QCFS(LinearNet()).net, members)


def test_a_plain_neuron_stays_what_it_was() -> None:
    """The most levels of a neuron do not decide what its spikes cost."""
    for neuron in (IFNode(theta()), BurstIFNode(theta(), 3, binary=True), BurstIFNode(theta(), 3)):
        neuron.clock = Clock(T=1, batch=1)
        neuron(torch.tensor([[7.0]], dtype=torch.float64))
        expected = {"IFNode": 1, "BurstIFNode": 2 if getattr(neuron, "binary", False) else 3}[type(neuron).__name__]
        assert neuron.spike_counts.tolist() == [expected]
