"""Synaptic operations and sparsity beside those of NeuroBench and SpikingJelly, to the last operation.

Both count on a net that they are shown, so it is the converted one with thresholds folded into the weights (unit
spikes), and with the image repeated for every step, which the suite's neurons otherwise spare the first layer. Where
the rules differ, the layers whose counts differ are named, and why.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from reference import named_model
from tiny import TwoConvolutions, normal
from torch import Tensor, nn

from bench.library import prepare
from bench.snn.graph.fold import fold_thresholds
from bench.snn.neurons import SpikingNeuron
from bench.snn.simulate import SpikingNetwork, simulate
from methods.burst import Burst
from methods.snm import SignedIFNode

pytestmark = pytest.mark.peers
T = 5


class Ours(NamedTuple):
    """What the suite counts, over all images and steps."""

    spikes: dict[str, int]
    synops: dict[str, int]
    macs: dict[str, int]
    neurons: int


class Case(NamedTuple):
    """A converted net, the same with folded thresholds, and images."""

    snn: SpikingNetwork
    folded: SpikingNetwork
    images: Tensor


def case(snn: SpikingNetwork, images: Tensor) -> Case:
    folded = SpikingNetwork(fold_thresholds(snn.net))
    folded.repeat_input = True
    return Case(snn, folded, images)


def qcfs(name: str) -> Case:
    model, images = named_model(name)
    return case(model.convert(T, []), images)


def burst() -> Case:
    torch.manual_seed(0)
    net, images = prepare(TwoConvolutions(nn.Identity()).double()).net, normal(6, 3, 8, 8)
    return case(Burst(net, percentile=80.0).convert(T, [(images, torch.zeros(6))]), images)


def signed() -> Case:
    """By hand: the first neurons fire at every and at every second step, so the third gets 2, -4, 2, -4, 2."""
    one = torch.tensor(1.0).double()
    net = nn.Sequential(
        nn.Linear(1, 2), SignedIFNode(one), nn.Linear(2, 1), SignedIFNode(one), nn.Linear(1, 3)
    ).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.5], [0.25]]))
        net[2].weight.copy_(torch.tensor([[2.0, -6.0]]))
        net[0].bias.zero_()
        net[2].bias.zero_()
    return case(SpikingNetwork(net), torch.full((4, 1), 2.0).double())


# A residual net, one with average pooling and linear layers, one with linear layers alone.
NETS: dict[str, Callable[[], Case]] = {name: lambda name=name: qcfs(name) for name in ("resnet20", "vgg", "linear")}


def ours(snn: SpikingNetwork, images: Tensor) -> Ours:
    [(_, counts)] = simulate(snn, images, T, image_steps=10**6)
    names, analogue = list(snn.neurons), list(snn.analogue)
    return Ours(
        dict(zip(names, counts.spikes.sum(1).tolist(), strict=True)),
        dict(zip(names, counts.synops.sum(1).tolist(), strict=True)),
        dict(zip(analogue, counts.macs.sum(1).tolist(), strict=True)),
        snn.num_neurons,
    )


def run(folded: SpikingNetwork, images: Tensor) -> Tensor:
    """All steps in one pass."""
    folded.reset()
    return folded(images, T)


def neurobench(folded: SpikingNetwork, images: Tensor) -> tuple[dict[str, tuple[str, int]], float]:
    """By layer, what NeuroBench counts and as what; and its activation sparsity."""
    pytest.importorskip("neurobench")
    from neurobench.metrics.utils.layers import single_layer_MACs
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import TorchModel

    class Model(TorchModel):
        def __call__(self, batch: Tensor) -> Tensor:
            return run(self.net, batch)

    model = Model(folded)
    model.add_activation_module(SpikingNeuron)
    model.register_hooks()
    names = {id(module): name for name, module in folded.net.named_modules()}
    with torch.no_grad():
        preds = model(images)
        sparsity = ActivationSparsity()(model, preds, (images, None))
        layers = {}
        for hook in model.connection_hooks:
            hook.hook.remove()
            [(x,)] = hook.inputs
            operations, spiking = single_layer_MACs(x, hook.layer)
            layers[names[id(hook.layer)]] = ("ac" if spiking else "mac", round(float(operations)))
            hook.register_hook()
        total = SynapticOperations()(model, preds, (images, None))
    model.cleanup_hooks()
    for kind, key in (("ac", "Effective_ACs"), ("mac", "Effective_MACs")):
        assert round(float(total[key]) * len(images)) == sum(count for name, count in layers.values() if name == kind)
    return layers, sparsity


def spikingjelly(folded: SpikingNetwork, images: Tensor) -> dict[str, int]:
    """By layer, SpikingJelly's synaptic operations."""
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter

    found: dict[str, int] = {}
    for name, layer in folded.net.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        inputs: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        with torch.no_grad():
            run(folded, images)
            hook.remove()
            counter = SynOpCounter()
            with DispatchCounterMode([counter]):
                layer(inputs[0])
        found[name] = int(counter.get_total())
    return found


@pytest.mark.parametrize("name", NETS)
def test_neurobench_counts_the_same_operations_and_sparsity(name: str) -> None:
    snn, folded, images = NETS[name]()
    counted = ours(snn, images)
    layers, sparsity = neurobench(folded, images)
    accumulates = {layer: count for layer, (kind, count) in layers.items() if kind == "ac"}
    multiplies = {layer: count for layer, (kind, count) in layers.items() if kind == "mac"}
    # Analogue layers one by one; accumulates are counted here where a spike is sent, there where it arrives.
    assert multiplies == counted.macs
    assert sum(accumulates.values()) == sum(counted.synops.values())
    assert sum(accumulates.values()) > 0
    assert sparsity == pytest.approx(1 - sum(counted.spikes.values()) / (counted.neurons * len(images) * T), abs=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_spikingjelly_counts_the_same_synaptic_operations(name: str) -> None:
    snn, folded, images = NETS[name]()
    counted = ours(snn, images)
    layers = spikingjelly(folded, images)
    # What does not get zeros and ones has no synaptic operations there; here it has multiply-accumulates.
    assert {layer for layer, count in layers.items() if count == 0} == set(counted.macs)
    assert sum(layers.values()) == sum(counted.synops.values())


def test_signed_spikes_are_accumulates_to_neurobench_and_nothing_to_spikingjelly() -> None:
    snn, folded, images = signed()
    counted = ours(snn, images)
    seen: list[Tensor] = []
    hook = folded.net.get_submodule("3").register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    layers, sparsity = neurobench(folded, images)
    hook.remove()
    assert set(seen[0].unique().tolist()) == {-1.0, 0.0, 1.0}
    assert layers == {"0": ("mac", 4 * 2 * T), "2": ("ac", counted.synops["1"]), "4": ("ac", counted.synops["3"])}
    assert sparsity == pytest.approx(1 - sum(counted.spikes.values()) / (counted.neurons * len(images) * T), abs=1e-12)
    other = spikingjelly(folded, images)
    assert (other["2"], other["4"]) == (counted.synops["1"], 0)


def test_a_burst_is_one_multiply_accumulate_to_neurobench_and_as_many_accumulates_here() -> None:
    snn, folded, images = burst()
    counted = ours(snn, images)
    layers, _ = neurobench(folded, images)
    kind, count = layers["conv2"]
    assert kind == "mac"
    # The same inputs that are not 0, each once instead of as often as it has spikes.
    seen: list[Tensor] = []
    hook = folded.net.get_submodule("act1").register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    run(folded, images)
    hook.remove()
    fan_out = snn.neurons["act1"].fan_out
    assert seen[0].max() > 1
    assert count == int(((seen[0] != 0) * fan_out).sum())
    assert counted.synops["act1"] == int((seen[0].round() * fan_out).sum())


def test_without_folding_neurobench_calls_spikes_multiply_accumulates() -> None:
    """Why thresholds are folded: {0, theta} is no spike to either tool, though the hardware would send one."""
    snn, _, images = NETS["linear"]()
    plain = copy.deepcopy(snn)
    plain.repeat_input = True
    layers, _ = neurobench(plain, images)
    assert {kind for kind, _ in layers.values()} == {"mac"}
    counted = ours(snn, images)
    assert sum(count for _, count in layers.values()) == sum(counted.synops.values()) + sum(counted.macs.values())
    assert sum(spikingjelly(plain, images).values()) == 0
