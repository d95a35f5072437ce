"""Synaptic operations, multiply-accumulates and energy against a hand computation and a step-by-step count."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from reference import NETS, named_model, stepped
from torch import Tensor, nn

from bench.records.energy import ENERGY_MODEL
from bench.snn.activations import QCFSActivation
from bench.snn.neurons import IFNode
from bench.snn.simulate import SpikingNetwork, simulate
from methods.burst import BurstIFNode
from methods.cos import COS
from methods.qcfs import QCFS
from methods.snm import SignedIFNode
from methods.srp import SRP


def dense(weights: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights))
    return layer


def total(snn: SpikingNetwork, x: Tensor, T: int) -> tuple[list[int], list[int], list[int]]:
    """Spikes, synaptic operations and multiply-accumulates of each step, all layers and images together."""
    parts = [[kind.sum(0) for kind in counts] for _, counts in simulate(snn, x, T)]
    return tuple(torch.stack(kind).sum(0).tolist() for kind in zip(*parts, strict=True))  # type: ignore[return-value]


def test_a_net_of_three_layers_by_hand() -> None:
    """Image (1, 0), theta 1, v_0 = 0, four steps.

    Layer 1 gets 0.5, 1 and -1 at each step: its neurons fire at steps 2 4, at 1 2 3 4, and never. Each of these spikes
    meets 2 weights. Layer 2 then gets 0.25, 0.75, 0.25, 0.75, so its first neuron fires at steps 2 and 4, and the
    second, with a weight of 1 from neuron 2, at all; each of those spikes meets 1 weight. The image has one number that
    is not 0, and it meets 3 weights at each step.
    """
    net = nn.Sequential(
        dense([[0.5, 9.0], [1.0, 9.0], [-1.0, 9.0]]),
        IFNode(torch.tensor(1.0), 0.0),
        dense([[0.5, 0.25, 3.0], [0.0, 1.0, 3.0]]),
        IFNode(torch.tensor(1.0), 0.0),
        dense([[1.0, 1.0]]),
    )
    snn = SpikingNetwork(net)
    spikes, synops, macs = total(snn, torch.tensor([[1.0, 0.0]]), 4)
    assert spikes == [2, 4, 2, 4]
    assert synops == [1 * 2 + 1, 2 * 2 + 2, 1 * 2 + 1, 2 * 2 + 2]
    assert macs == [3, 3, 3, 3]
    assert ENERGY_MODEL.joules(macs=12, synops=18) == pytest.approx(12 * 4.6e-12 + 18 * 0.9e-12)


def test_fan_out_at_the_border_of_an_image_by_hand() -> None:
    """3 x 3 kernels with padding on 3 x 3 pixels: 4 connections in the corners, 6 at the edges, 9 in the middle."""
    neuron = IFNode(torch.tensor(1.0), 0.0)
    snn = SpikingNetwork(nn.Sequential(nn.Conv2d(1, 2, 1), neuron, nn.Conv2d(2, 5, 3, padding=1)))
    snn.wire(torch.zeros(1, 1, 3, 3))
    assert neuron.fan_out.tolist() == [[20, 30, 20], [30, 45, 30], [20, 30, 20]]


def test_fan_out_of_strides_groups_flattening_and_several_readers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = IFNode(torch.tensor(1.0))
            self.grouped, self.strided = nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(4, 3, 1, stride=2)
            self.flatten, self.fc = nn.Flatten(), nn.Linear(16, 7)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(x)
            parts = [self.grouped(x).flatten(1), self.strided(x).flatten(1), self.fc(self.flatten(x))]
            return torch.cat(parts, 1)

    net = Net()
    SpikingNetwork(net).wire(torch.zeros(1, 4, 2, 2))
    assert net.act.fan_out.tolist() == [[4 + 3 + 7, 4 + 7], [4 + 7, 4 + 7]]


def counted(net: nn.Module, images: Tensor, T: int) -> Iterator[tuple[int, int]]:
    """Accumulates and multiply-accumulates of each step, layer by layer with all weights set to one.

    A layer accumulates where its input has no more than one value besides 0 (NeuroBench's rule, thresholds folded).
    """
    snn, _ = stepped(net)
    sums = {"ac": 0, "mac": 0}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        kind = "ac" if len(x[x != 0].unique()) <= 1 else "mac"
        ones = torch.ones_like(layer.weight)  # type: ignore[arg-type]
        active = (x != 0).to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            out = nn.functional.conv2d(active, ones, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        else:
            out = nn.functional.linear(active, ones)
        sums[kind] += int(out.sum())

    for layer in snn.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_pre_hook(count)
    for _ in range(T):
        sums.update(ac=0, mac=0)
        with torch.no_grad():
            snn(images)
        yield sums["ac"], sums["mac"]


@pytest.mark.parametrize("name", NETS)
def test_whole_nets_cost_what_a_step_by_step_count_says(name: str) -> None:
    model, images = named_model(name)
    snn = model.convert(5, [])
    _, synops, macs = total(snn, images, 5)
    assert list(zip(synops, macs, strict=True)) == list(counted(model.net, images, 5))
    assert sum(synops) > 0
    assert sum(macs) > 0


@pytest.mark.parametrize(("neuron", "expected"), [(SignedIFNode, [1, 0, 1, 0]), (BurstIFNode, [3, 0, 0, 0])])
def test_signed_spikes_count_as_spikes_and_bursts_as_many(neuron: type, expected: list[int]) -> None:
    """Signed: +1 after step 1, taken back after step 3. Burst of 3: three spikes in one step."""
    currents = torch.tensor([[1.0], [0.0], [-2.0], [0.0]] if neuron is SignedIFNode else [[3.5], [0.0], [0.0], [0.0]])
    node = SignedIFNode(torch.tensor(1.0)) if neuron is SignedIFNode else BurstIFNode(torch.tensor(1.0), 5)
    node.clock.T, node.clock.batch = 4, 1
    node.fan_out.fill_(10)
    node(currents)
    assert node.spike_counts.tolist() == expected
    assert node.synop_counts.tolist() == [10 * n for n in expected]


def test_steps_before_the_first_counted_one_are_paid() -> None:
    """The step counts of SRP's warm-up are there, and are those of QCFS, whose neurons do the same until tau."""
    model, images = named_model("linear")
    assert isinstance(model, QCFS)
    plain = total(model.convert(6, []), images, 6)
    snn = SRP(model.net, tau=4).convert(2, [])
    silenced = total(snn, images, 2)
    assert [len(kind) for kind in silenced] == [6, 6, 6]
    assert [kind[:4] for kind in silenced] == [kind[:4] for kind in plain]
    assert snn.steps_for(2) == 6
    [(_, counts)] = simulate(snn, images, 2)
    assert [int(kind) for kind in snn.paid(counts, 2)] == [sum(kind) for kind in silenced[1:]]


@pytest.mark.parametrize(("T", "steps"), [(1, 4), (2, 4), (6, 6)])
def test_steps_that_are_looked_at_first_are_paid_twice(T: int, steps: int) -> None:
    """COS with rho = 4: each layer sends 4 steps for the calibration of the next, then T steps that are counted.

    Behind the last neurons nobody looks ahead: what they send, and the read-out, is paid once.
    """
    model, images = named_model("linear")
    snn = COS(model.net, rho=4).convert(6, [])
    [(_, counts)] = simulate(snn, images, T)
    neurons, heard_layers = list(snn.neurons), [name for name in snn.analogue if name in snn.heard]
    for kind, paid, heard in zip(counts[1:], snn.paid(counts, T), (neurons[:-1], heard_layers), strict=True):
        every = kind.sum(0).tolist()
        names = neurons if kind is counts.synops else list(snn.analogue)
        again = kind[[name in heard for name in names]].sum(0).tolist()
        assert len(every) == steps
        assert int(paid) == sum(every[:T]) + sum(again[:4])
        assert sum(again[:4]) > 0
    sizes = [neuron.size for neuron in snn.neurons.values()]
    assert snn.membrane_updates(T) == sum(size * (T + 4 + 4) for size in sizes[:-1]) + sizes[-1] * (T + 4)
    rounds = COS(model.net, rho=4, rounds=3).convert(6, [])
    [_] = simulate(rounds, images, T)
    assert rounds.warmup == 12 and rounds.membrane_updates(T) == snn.membrane_updates(T) + 8 * sum(sizes)


def set_thresholds(model: nn.Module, theta: float) -> None:
    for module in model.modules():
        if isinstance(module, QCFSActivation):
            module.threshold.data.fill_(theta)


class Heads(nn.Module):
    """Two spike trains, and what a function makes of them before the last layer."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor], features: int, padding: int = 0) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.between = between
        self.head = nn.Flatten() if padding else nn.Identity()
        self.last = nn.Linear(features, 5) if not padding else nn.Conv2d(features, 5, 3, padding=padding - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.between(self.act1(self.conv1(x)), self.act2(self.conv2(x)))))


MOVED: dict[str, Callable[[], Heads]] = {
    "flatten": lambda: Heads(lambda a, _: a.flatten(1), 144),
    "flatten from a keyword": lambda: Heads(lambda a, _: torch.flatten(a, start_dim=1), 144),
    "view by size": lambda: Heads(lambda a, _: a.view(a.size(0), -1), 144),
    "reshape": lambda: Heads(lambda a, _: a.reshape(a.shape[0], 144), 144),
    "concatenation": lambda: Heads(lambda a, b: torch.cat([a, b], 1).flatten(1), 288),
    "half of the channels": lambda: Heads(lambda a, _: a.chunk(2, 1)[1].flatten(1), 72),
    "dropout": lambda: Heads(lambda a, _: torch.nn.functional.dropout(a, training=False).flatten(1), 144),
    "padding": lambda: Heads(lambda a, _: torch.nn.functional.pad(a, (1, 1, 1, 1)), 4, padding=1),
    "slice": lambda: Heads(lambda a, _: a[:, :, ::2, ::2].flatten(1), 36),
}


@pytest.mark.parametrize("what", MOVED)
def test_spikes_that_are_only_moved_stay_spikes(what: str) -> None:
    """What the last layer really gets, divided by theta, is counted: 1 for each spike and weight that it meets."""
    torch.manual_seed(0)
    images = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    model = QCFS(MOVED[what]().double())
    set_thresholds(model, 0.7)
    snn = model.convert(4, [])
    met: list[float] = []

    def meets(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ones = copy.deepcopy(layer)
        ones.weight.data.fill_(1.0)
        ones.bias.data.zero_()
        met.append(float(type(layer).forward(ones, inputs[0] / 0.7).sum().detach()))

    handle = snn.net.last.register_forward_pre_hook(meets)
    _, synops, macs = total(snn, images, 4)
    handle.remove()
    assert sum(synops) == round(sum(met)) > 0
    assert "last" not in snn.analogue and sum(macs) > 0


def test_spikes_beside_something_else_are_not_spikes() -> None:
    model = QCFS(Heads(lambda a, b: torch.cat([a.flatten(1), b.mean((2, 3))], 1), 148).double())
    snn = model.convert(4, [])
    total(snn, torch.randn(2, 3, 6, 6, dtype=torch.float64), 4)
    assert "last" in snn.analogue


class Twice(nn.Module):
    """One convolution for the image, for spikes, and for a sum of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act1, self.act2 = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.ReLU()
        self.flatten, self.fc = nn.Flatten(), nn.Linear(108, 5)

    def forward(self, x: Tensor) -> Tensor:
        once = self.act1(self.conv(x))
        return self.fc(self.flatten(self.act2(self.conv(once) + self.conv(once + once))))


def test_each_call_of_a_shared_layer_is_counted_for_what_it_gets() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    model = QCFS(Twice().double())
    set_thresholds(model, 0.5)
    snn = model.convert(4, [])
    calls: list[Tensor] = []
    last: list[Tensor] = []
    handles = [
        snn.net.conv.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0])),
        snn.net.fc.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0])),
    ]
    _, synops, macs = total(snn, images, 4)
    for handle in handles:
        handle.remove()
    ones = torch.ones(3, 3, 3, 3, dtype=torch.float64)

    def meets(x: Tensor) -> int:
        return int(torch.nn.functional.conv2d((x != 0).double(), ones, padding=1).sum())

    # The image at each of 4 steps, and the sum; the spikes between them are accumulates.
    of_image = [x for x in calls if len(x) == len(images)]
    spikes, sums = calls[1::3], calls[2::3]
    of_classifier = 5 * sum(int((x != 0).sum()) for x in last)
    assert sum(synops) == sum(map(meets, spikes)) + of_classifier > of_classifier > 0
    assert sum(macs) == 4 * sum(map(meets, of_image)) + sum(map(meets, sums)) > 0
