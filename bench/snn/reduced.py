"""The fast mode: layers that get spikes calculate in bfloat16, membranes stay as they were.

Spikes are exact in bfloat16, the weights and the summed currents are rounded to 8 bits, so some neurons fire a step
earlier or later. What that changes is measured, by :func:`changed_spikes`, and never assumed. Layers that get an image
or rates, the read-out among them, are left in full precision, because their rounding would be the same at every step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.snn.graph.structure import Linear
from bench.snn.graph.surgery import fold_thresholds
from bench.snn.simulate import SpikingNetwork


class Bfloat16(nn.Module):
    """A layer in bfloat16, whatever it is given.

    Args:
        layer: copied.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in bfloat16."""
        out: Tensor = self.layer(x.to(torch.bfloat16))
        return out


def reduced(snn: SpikingNetwork, x: Tensor) -> SpikingNetwork:
    """A copy of a converted network whose spike-driven layers calculate in bfloat16.

    Thresholds of whole layers move into the weights, so that what is sent is 0 or 1; those of single channels stay, and
    are rounded.

    Args:
        snn: stays as it is.
        x: images ``[B, C, H, W]``.
    """
    scalar = all(neuron.threshold.numel() == 1 for neuron in snn.neurons.values())
    snn.reset()
    net = fold_thresholds(snn.net) if scalar else copy.deepcopy(snn.net)
    fast = SpikingNetwork(net, snn.warmup, snn.uncounted, snn.only_T, snn.quantised)
    fast.wire(x)
    for name, layer in [(name, m) for name, m in net.named_modules() if isinstance(m, Linear)]:
        if name not in fast.analogue:
            net.set_submodule(name, Bfloat16(layer))
    return fast.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Change:
    """What another arithmetic does to a simulation, as fractions.

    Attributes:
        spikes: of all neurons and steps, those where a spike came or went.
        predictions: of the images, those of another class after ``T`` steps.
    """

    spikes: float
    predictions: float


@torch.no_grad()
def changed_spikes(exact: SpikingNetwork, other: SpikingNetwork, x: Tensor, T: int) -> Change:
    """Runs both for ``T`` steps, side by side, and compares every spike.

    Args:
        exact: the reference.
        other: with neurons of the same names.
        x: images ``[B, C, H, W]``, simulated 8 at a time.
        T: counted steps.
    """
    different = total = predictions = 0
    steps = exact.steps_for(T)
    for images in torch.split(x, 8):
        runs = [_run(network, images, steps) for network in (exact, other)]
        for name, spikes in runs[0][1].items():
            different += int((spikes != runs[1][1][name]).sum())
            total += spikes.numel()
        counted = [logits[exact.counted(T)].sum(0).argmax(1) for logits, _ in runs]
        predictions += int((counted[0] != counted[1]).sum())
    return Change(different / total, predictions / len(x))


def _run(snn: SpikingNetwork, x: Tensor, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}

    def watch(name: str, neuron: nn.Module, out: Tensor) -> None:
        # The sign too: some neurons send negative spikes, and some several at once.
        unit = out if neuron.unit_spikes else out / neuron.threshold  # type: ignore[operator]
        seen[name] = unit.round().to(torch.int8)

    hooks = [
        neuron.register_forward_hook(lambda module, _, out, name=name: watch(name, module, out))
        for name, neuron in snn.neurons.items()
    ]
    try:
        snn.reset()
        return snn(x, steps), seen
    finally:
        for hook in hooks:
            hook.remove()
        snn.reset()
