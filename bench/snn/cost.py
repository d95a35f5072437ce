"""What a spike costs: synaptic operations, multiply-accumulates, membrane updates and energy.

The rules, which are NeuroBench's where it has one (https://arxiv.org/abs/2304.04640):

- A spike costs one accumulate (AC, here "synaptic operation") for each weight that it meets: its fan-out, which is
  smaller at the border of an image. A burst of k spikes costs k times that, a negative spike what a positive one does.
- A layer whose input is not spikes costs one multiply-accumulate (MAC) for each weight that meets an input other than
  0, at every step: the first layer, which gets the image at every step, and layers behind average pooling or behind a
  sum of spike trains.
- Biases, residual additions and pooling cost nothing; thresholds are taken as folded into the weights.
- Steps before the first counted one cost as much as any. Where a neuron first looks at its input for some steps and
  then begins anew (COS), the layers before it send those steps twice, and both are paid.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from bench.snn.graph import Linear
from bench.snn.neurons import Clock, SpikingNeuron, channel_sums, step_totals
from bench.snn.tracing import first_input, note_shapes, trace

# What a spike passes unchanged.
_CARRIERS = (nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity)


@dataclass(frozen=True)
class EnergyModel:
    """Energy of arithmetic alone, without memory.

    Attributes:
        name: as the record names it.
        mac: joules for one multiply-accumulate.
        ac: joules for one accumulate.
    """

    name: str
    mac: float
    ac: float

    def joules(self, macs: float, synops: float) -> float:
        """Energy of one image."""
        return macs * self.mac + synops * self.ac


# 32-bit floating point at 0.9 V (Horowitz, ISSCC 2014, https://doi.org/10.1109/ISSCC.2014.6757323): a multiplication
# 3.7 pJ, an addition 0.9 pJ.
ENERGY_MODEL = EnergyModel("45nm-fp32", mac=4.6e-12, ac=0.9e-12)


class Counts(NamedTuple):
    """Sums over the images of one part, as integers; the steps are all that were run, the first ones included.

    Attributes:
        spikes: ``[neuron layers, steps]``.
        synops: ``[neuron layers, steps]``.
        macs: ``[analogue layers, steps]``.
    """

    spikes: Tensor
    synops: Tensor
    macs: Tensor


class AnalogueCounter:
    """Forward pre-hook (with keywords) on a layer whose input is not spikes: counts its multiply-accumulates.

    Args:
        clock: of the network.
        fan_out: of each input, ``[H, W]`` or scalar.
    """

    def __init__(self, clock: Clock, fan_out: Tensor) -> None:
        self.clock, self.fan_out = clock, fan_out
        self.counts = torch.zeros(0)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        """Sets :attr:`counts`, ``[T]``."""
        x = args[0] if args else kwargs["input"]
        active_TBX = self.clock.unfold(x) != 0
        if len(x) == self.clock.batch:
            # The same at every step.
            active_TBX = active_TBX[:1]
        sums = channel_sums(active_TBX.to(torch.float32)).double() * self.fan_out
        self.counts = step_totals(sums).expand(self.clock.T)


def _connections(layer: nn.Module, x: Tensor) -> Tensor:
    """How many outputs of ``layer`` each element of its input ``x`` reaches, summed: one image, a scalar."""
    plain = copy.deepcopy(layer)
    for name, value in list(plain.named_parameters()):
        fill = 0.0 if name == "bias" else 1.0
        setattr(plain, name, nn.Parameter(torch.full(value.shape, fill, dtype=x.dtype), requires_grad=False))
    total: Tensor = plain(x).sum()
    return total


def _per_channel(fan_out: Tensor) -> Tensor:
    """The fan-out of one channel, ``[H, W]`` or scalar; all channels of a layer have the same."""
    first = fan_out[0]
    assert bool((fan_out == first).all()), "channels of one layer have as many connections each"
    return first.clone()


class Wiring(NamedTuple):
    """Numbers of connections, by name of a module; each ``[H, W]`` or scalar.

    Attributes:
        spiking: of a neuron: to how many weights each of its spikes goes.
        analogue: of a layer that gets something else than spikes: to how many weights each of its inputs goes.
        sizes: neurons of each spiking layer.
    """

    spiking: dict[str, Tensor]
    analogue: dict[str, Tensor]
    sizes: dict[str, int]


def wiring(net: nn.Module, image: Tensor) -> Wiring:
    """Follows the dataflow of a converted network.

    Args:
        net: a converted network; nothing of it changes.
        image: ``[1, C, H, W]``.
    """
    graph = trace(net)
    note_shapes(fx.GraphModule(net, graph), image)
    modules = dict(net.named_modules())
    shapes: dict[str, torch.Size] = {
        str(node.target): first_input(node).meta["shape"]
        for node in graph.nodes
        if node.op == "call_module" and isinstance(modules[str(node.target)], (SpikingNeuron, *Linear))
    }
    spiking: dict[str, Tensor] = {}
    driven: set[str] = set()

    def readers(node: fx.Node, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for user in node.users:
            module = modules.get(str(user.target)) if user.op == "call_module" else None
            if isinstance(module, Linear):
                yield str(user.target), x
            elif isinstance(module, _CARRIERS):
                yield from readers(user, module(x))
            elif user.target in (torch.flatten, "flatten") and user.args[1:] in ((1,), (1, -1)):
                yield from readers(user, x.flatten(1))
            elif user.target in (getattr, operator.getitem):
                continue

    # Tests run in inference mode, which knows no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        for node in graph.nodes:
            name = str(node.target)
            if node.op == "call_module" and isinstance(modules[name], SpikingNeuron):
                x = torch.zeros(1, *shapes[name], dtype=torch.float64, requires_grad=True)
                total = 0.0 * x.sum()
                for layer, reached in readers(node, x):
                    driven.add(layer)
                    total = total + _connections(modules[layer], reached)
                spiking[name] = _per_channel(torch.autograd.grad(total, x)[0][0])
        analogue = {}
        for name, module in modules.items():
            if isinstance(module, Linear) and name not in driven and name in shapes:
                x = torch.zeros(1, *shapes[name], dtype=torch.float64, requires_grad=True)
                analogue[name] = _per_channel(torch.autograd.grad(_connections(module, x), x)[0][0])
    return Wiring(spiking, analogue, {name: shapes[name].numel() for name in spiking})
