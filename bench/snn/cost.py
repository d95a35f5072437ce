"""What a spike costs: synaptic operations, multiply-accumulates, membrane updates and energy.

The rules, which are NeuroBench's where it has one (https://arxiv.org/abs/2304.04640):

- A spike costs one accumulate (AC, here "synaptic operation") for each weight that it meets: its fan-out, which is
  smaller at the border of an image. A burst of k spikes costs k times that, a negative spike what a positive one does.
- A layer whose input is not spikes costs one multiply-accumulate (MAC) for each weight that meets an input other than
  0, at every step: the first layer, which gets the image at every step, and layers behind average or max-pooling or
  behind a sum of spike trains. Spikes that are only moved, padded with zeros or put beside others remain spikes.
- Biases, residual additions and pooling cost nothing; thresholds are taken as folded into the weights.
- Steps before the first counted one cost as much as any. Where a neuron first looks at its input for some steps and
  then begins anew (COS), the layers before it send those steps twice, and both are paid; and it updates its potential
  at each of them, in each round of its calibration.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bench.snn.graph.structure import ALIAS_MODULES, ALIASES, Linear
from bench.snn.graph.tracing import first_input, note_shapes, trace
from bench.snn.neurons import Clock, SpikingNeuron, Timed, connected, step_totals

# What only moves values, or puts zeros or other values beside them.
_MOVING_MODULES = (*ALIAS_MODULES, nn.ZeroPad2d)
_MOVING = {*ALIASES, torch.cat, F.pad}


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
        fan_outs: of each input of each call (:class:`Wiring`); ``None`` for a call that gets spikes.
    """

    def __init__(self, clock: Clock, fan_outs: Sequence[Tensor | None]) -> None:
        self.clock, self.fan_outs = clock, fan_outs
        self.begin()

    def begin(self) -> None:
        """Before each pass."""
        self.calls, self.counts = 0, torch.zeros(0)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        """Adds to :attr:`counts`, ``[T]``."""
        fan_out = self.fan_outs[self.calls]
        self.calls += 1
        if fan_out is None:
            return
        x = args[0] if args else kwargs["input"]
        active_TBX = self.clock.unfold(x) != 0
        if len(x) == self.clock.batch:
            # The same at every step.
            active_TBX = active_TBX[:1]
        counts = step_totals(connected(active_TBX.to(torch.float32), fan_out)).expand(self.clock.T)
        self.counts = self.counts + counts if len(self.counts) else counts


def _connections(layer: nn.Module, x: Tensor) -> Tensor:
    """How many outputs of ``layer`` each element of its input ``x`` reaches, summed: one image, a scalar."""
    plain = copy.deepcopy(layer)
    for name, value in list(plain.named_parameters()):
        fill = 0.0 if name == "bias" else 1.0
        setattr(plain, name, nn.Parameter(torch.full(value.shape, fill, dtype=x.dtype), requires_grad=False))
    total: Tensor = plain(x).sum()
    return total


def _per_channel(fan_out: Tensor) -> Tensor:
    """The fan-out of one channel, ``[H, W]`` or scalar, where all channels of the layer have the same; else of all."""
    first = fan_out[0]
    return first.clone() if bool((fan_out == first).all()) else fan_out


class Wiring(NamedTuple):
    """Numbers of connections, by name of a module; each ``[H, W]`` or scalar, or with the channels in front.

    Attributes:
        spiking: of a neuron: to how many weights each of its spikes goes.
        analogue: of a layer, for each of its calls: to how many weights each input goes; ``None`` where that is spikes.
        sizes: neurons of each spiking layer.
        heard: names of the neurons and layers whose output goes to a neuron that looks ahead (COS).
    """

    spiking: dict[str, Tensor]
    analogue: dict[str, list[Tensor | None]]
    sizes: dict[str, int]
    heard: set[str]


def wiring(net: nn.Module, image: Tensor) -> Wiring:
    """Follows the dataflow of a converted network.

    Args:
        net: a converted network; nothing of it changes.
        image: ``[1, C, H, W]``.
    """
    graph = trace(net)
    note_shapes(fx.GraphModule(net, graph), image)
    modules = dict(net.named_modules())

    def called(node: fx.Node) -> nn.Module | None:
        return modules[str(node.target)] if node.op == "call_module" else None

    neurons = [node for node in graph.nodes if isinstance(called(node), SpikingNeuron)]
    layers = [node for node in graph.nodes if isinstance(called(node), Linear)]
    spikes = _spikes(graph, modules)
    spiking: dict[str, Tensor] = {}
    # Tests run in inference mode, which knows no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        for node in neurons:
            x = torch.zeros(1, *node.meta["shape"], dtype=torch.float64, requires_grad=True)
            total = 0.0 * x.sum()
            reached = _moved(graph, modules, node, x, spikes)
            for layer in layers:
                source = first_input(layer)
                if source in spikes and source in reached:
                    total = total + _connections(modules[str(layer.target)], reached[source])
            spiking[str(node.target)] = _per_channel(torch.autograd.grad(total, x)[0][0])
        analogue: dict[str, list[Tensor | None]] = {}
        for layer in layers:
            name, source = str(layer.target), first_input(layer)
            fan_out = None
            if source not in spikes:
                x = torch.zeros(1, *source.meta["shape"], dtype=torch.float64, requires_grad=True)
                fan_out = _per_channel(torch.autograd.grad(_connections(modules[name], x), x)[0][0])
            analogue.setdefault(name, []).append(fan_out)
    analogue = {name: calls for name, calls in analogue.items() if any(fan_out is not None for fan_out in calls)}
    sizes = {str(node.target): node.meta["shape"].numel() for node in neurons}
    return Wiring(spiking, analogue, sizes, _heard(graph, modules))


def _spikes(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[fx.Node]:
    """Nodes whose values are spikes of neurons and zeros, and nothing else."""
    spikes: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            module = modules[str(node.target)]
            moving = isinstance(module, _MOVING_MODULES)
            if isinstance(module, SpikingNeuron):
                spikes.add(node)
                continue
        else:
            moving = node.target in _MOVING and not (node.target is F.pad and _pads_with_others(node))
        moved = [source for source in node.all_input_nodes if "shape" in source.meta or source in spikes]
        if moving and moved and all(source in spikes for source in moved):
            spikes.add(node)
    return spikes


def _pads_with_others(node: fx.Node) -> bool:
    given = {**dict(zip(("mode", "value"), node.args[2:], strict=False)), **node.kwargs}
    return bool(given.get("mode", "constant") == "constant" and given.get("value") not in (None, 0, 0.0))


def _moved(
    graph: fx.Graph, modules: Mapping[str, nn.Module], start: fx.Node, x: Tensor, spikes: set[fx.Node]
) -> dict[fx.Node, Any]:
    """What becomes of one neuron layer's output ``x`` where it is only moved; other spikes beside it are zeros."""
    found: dict[fx.Node, Any] = {start: x}

    def value(node: fx.Node) -> Any:
        if node in found:
            return found[node]
        return torch.zeros(1, *node.meta["shape"], dtype=x.dtype) if "shape" in node.meta else node.meta["value"]

    for node in graph.nodes:
        if node not in spikes or node in found or not any(source in found for source in node.all_input_nodes):
            continue
        args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
        if node.op == "call_module":
            found[node] = modules[str(node.target)](*args, **kwargs)
        elif node.op == "call_method":
            found[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            found[node] = node.target(*args, **kwargs)
    return found


def _heard(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[str]:
    """Names of the modules on a way to a neuron that looks ahead."""
    ahead: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for user in node.users:
            module = modules.get(str(user.target)) if user.op == "call_module" else None
            if user in ahead or (isinstance(module, Timed) and module.lookahead):
                ahead.add(node)
    return {str(node.target) for node in ahead if node.op == "call_module"}
