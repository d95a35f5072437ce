"""The fast mode changes few spikes, says how many, and leaves the network it was made from alone."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from reference import named_model, randomise
from torch import nn

from bench.snn.neurons import IFNode
from bench.snn.reduced import Bfloat16, changed_spikes, reduced
from bench.snn.simulate import SpikingNetwork, simulate
from methods.relu import ReLU
from methods.snnc_lp import SNNCLight


@pytest.fixture(scope="module")
def net() -> tuple[SpikingNetwork, torch.Tensor]:
    model, images = named_model("resnet20")
    return copy.deepcopy(model).float().convert(8, []), images.float()


def test_few_spikes_change_and_some_do(net: tuple[SpikingNetwork, torch.Tensor]) -> None:
    snn, x = net
    state = {name: value.clone() for name, value in snn.state_dict().items()}
    fast = reduced(snn, x)
    change = changed_spikes(snn, fast, x, 8)
    assert 0 < change.spikes < 0.1
    [(exact, _)], [(near, _)] = (list(simulate(network, x, 8, 10**9)) for network in (snn, fast))
    assert not torch.equal(exact, near)
    assert (exact.sum(0) - near.sum(0)).abs().mean() < 0.1 * exact.sum(0).abs().mean()
    assert all(torch.equal(value, state[name]) for name, value in snn.state_dict().items())


def test_the_twin_is_that_of_the_network() -> None:
    """SNNC's weights were fitted to spikes, and its twin is the quantised ANN."""
    model = ReLU(tiny.TwoConvolutions()).eval()
    randomise(model, 0)
    x = tiny.normal(4, 3, 8, 8).float()
    snn = SNNCLight(model.net).convert(4, tiny.batches(x, (4,)))
    with torch.no_grad():
        assert torch.equal(reduced(snn, x).twin(4)(x), snn.twin(4)(x))


def test_the_layers_at_both_ends_keep_full_precision(net: tuple[SpikingNetwork, torch.Tensor]) -> None:
    snn, x = net
    snn.wire(x)
    fast = reduced(snn, x)
    whole = [m.weight.dtype for m in snn.net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    kinds = [m.weight.dtype for m in fast.net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert kinds.count(torch.bfloat16) == len(whole) - 2
    assert set(fast.analogue) == set(snn.analogue)
    assert not any(neuron.threshold.dtype == torch.bfloat16 for neuron in fast.neurons.values())


def test_membranes_are_not_rounded() -> None:
    """Steps of 1 / 256: a membrane of 8 bits would stand still at 0.5 and never reach 1."""
    net = nn.Sequential(
        nn.Linear(1, 1), IFNode(torch.tensor(1.0), 0.0), nn.Linear(1, 1), IFNode(torch.tensor(1.0), 0.0)
    )
    for layer, weight in ((net[0], 1.0), (net[2], 1 / 256)):
        nn.init.constant_(layer.weight, weight)
        nn.init.zeros_(layer.bias)
    snn = SpikingNetwork(nn.Sequential(*net, nn.Linear(1, 2)))
    x = torch.ones(1, 1)
    fast = reduced(snn, x)
    list(simulate(fast, x, 256))
    assert fast.counts.spikes[1].nonzero().flatten().tolist() == [255]
    assert changed_spikes(snn, fast, x, 256).spikes == 0


def test_the_count_of_changes_by_hand() -> None:
    """Of two neurons one gets a threshold of 0.5 instead of 1: of its four spikes in four steps two are new."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), IFNode(torch.tensor([1.0, 1.0]), 0.0), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.5, 0.0], [0.0, 1.0]]))
        net[2].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.5]]))
    other = copy.deepcopy(net)
    other[1].threshold[0] = 0.5
    change = changed_spikes(SpikingNetwork(net), SpikingNetwork(other), torch.ones(3, 2), 4)
    assert change.spikes == 2 / 8
    assert change.predictions == 0


def test_thresholds_of_channels_stay() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), IFNode(torch.rand(4, 1, 1) + 0.5), nn.Conv2d(4, 5, 3))
    snn = SpikingNetwork(net)
    x = torch.randn(2, 3, 8, 8)
    fast = reduced(snn, x)
    assert isinstance(fast.net[2], Bfloat16)
    assert torch.equal(fast.neurons["1"].threshold, snn.neurons["1"].threshold)
    assert changed_spikes(snn, fast, x, 8).spikes == 0, "the layer before its neurons gets the image"
