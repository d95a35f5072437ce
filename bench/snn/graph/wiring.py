"""Finds how many weights each spike meets, and which layers get input other than spikes."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bench.snn.graph.check import ALIAS_MODULES, ALIASES, Linear, timed_nodes
from bench.snn.graph.trace import called, note_shapes, trace
from bench.snn.neurons import SpikingNeuron, Timed

# Operations that only move values, or put zeros or other values beside them.
_MOVING_MODULES = (*ALIAS_MODULES, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.PixelShuffle, nn.ChannelShuffle)
_MOVING = {
    *ALIASES, torch.cat, torch.concat, torch.concatenate, torch.stack, torch.clone, "clone", "repeat", F.pad,
    torch.zeros_like, "new_zeros",
}  # fmt: skip


def _connections(layer: nn.Module, x: Tensor) -> Tensor:
    """Sums over the input ``x`` of one image how many outputs of ``layer`` each element reaches: a scalar."""
    plain = copy.deepcopy(layer).to(x).requires_grad_(False)
    for name, value in plain.named_parameters():
        value.fill_(0.0 if name == "bias" else 1.0)
    total: Tensor = plain(x).sum()
    return total


def _per_channel(fan_out: Tensor) -> Tensor:
    """Returns the fan-out of one channel, ``[H, W]`` or scalar, if all channels have the same; else of all channels."""
    first = fan_out[0]
    return first.clone() if bool((fan_out == first).all()) else fan_out


class Call(NamedTuple):
    """One call of a layer whose input is not spikes.

    Attributes:
        fan_out: the number of weights that each input meets.
        constant: the input is the same at every step, because no neuron is before it.
    """

    fan_out: Tensor
    constant: bool


class Wiring(NamedTuple):
    """Numbers of connections, by module name; each is ``[H, W]`` or a scalar, or ``[C, H, W]`` if channels differ.

    Attributes:
        spiking: for each neuron layer, the number of weights that each spike meets.
        analogue: the calls of each layer; ``None`` if the input is spikes.
        sizes: number of neurons of each spiking layer.
        heard: names of the neurons and layers whose output is sent twice to a neuron that looks ahead (COS).
    """

    spiking: dict[str, Tensor]
    analogue: dict[str, list[Call | None]]
    sizes: dict[str, int]
    heard: set[str]


def wiring(net: nn.Module, image: Tensor) -> Wiring:
    """Follows the dataflow of a converted network.

    Args:
        net: a converted network; it is not changed.
        image: ``[1, C, H, W]``.
    """
    graph = trace(net, image.shape[1:])
    traced = fx.GraphModule(net, graph)
    note_shapes(traced, image)
    neurons = [node for node in graph.nodes if isinstance(called(net, node), SpikingNeuron)]
    layers = [node for node in graph.nodes if isinstance(called(net, node), Linear)]
    spikes, timed = _spikes(net, graph), timed_nodes(net, graph)
    spiking: dict[str, Tensor] = {}
    # Tests run in inference mode, which knows no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        for node in neurons:
            x = torch.zeros(1, *node.meta["shape"], dtype=torch.float64, requires_grad=True)
            total = 0.0 * x.sum()
            reached = _moved(traced, node, x, spikes)
            for layer in layers:
                source = layer.all_input_nodes[0]
                if source in spikes and source in reached:
                    total = total + _connections(net.get_submodule(str(layer.target)), reached[source])
            spiking[str(node.target)] = _per_channel(torch.autograd.grad(total, x)[0][0])
        analogue: dict[str, list[Call | None]] = {}
        for layer in layers:
            name, source = str(layer.target), layer.all_input_nodes[0]
            call = None
            if source not in spikes:
                x = torch.zeros(1, *source.meta["shape"], dtype=torch.float64, requires_grad=True)
                fan_out = _per_channel(torch.autograd.grad(_connections(net.get_submodule(name), x), x)[0][0])
                call = Call(fan_out, source not in timed)
            analogue.setdefault(name, []).append(call)
    analogue = {name: calls for name, calls in analogue.items() if any(call is not None for call in calls)}
    sizes = {str(node.target): node.meta["shape"].numel() for node in neurons}
    return Wiring(spiking, analogue, sizes, _heard(net, graph))


def _spikes(net: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    """Returns the nodes whose values are only spikes of neurons and zeros."""
    spikes: set[fx.Node] = set()
    for node in graph.nodes:
        module = called(net, node)
        moves = node.target in _MOVING and not _pads_with_others(node)
        moving = moves if module is None else isinstance(module, _MOVING_MODULES)
        moved = [source for source in node.all_input_nodes if "shape" in source.meta or source in spikes]
        if isinstance(module, SpikingNeuron) or (moving and moved and spikes.issuperset(moved)):
            spikes.add(node)
    return spikes


def _pads_with_others(node: fx.Node) -> bool:
    given = {**dict(zip(("mode", "value"), node.args[2:], strict=False)), **node.kwargs}
    constant = node.target is F.pad and given.get("mode", "constant") == "constant"
    return bool(constant and given.get("value") not in (None, 0, 0.0))


def _moved(net: fx.GraphModule, start: fx.Node, x: Tensor, spikes: set[fx.Node]) -> dict[fx.Node, Tensor]:
    """Follows one neuron layer's output ``x`` as long as it is only moved; other spikes beside it are zeros."""
    runner, found = fx.Interpreter(net), {start}
    runner.env[start] = x
    for node in net.graph.nodes:
        if node not in spikes or node in found or found.isdisjoint(node.all_input_nodes):
            continue
        if isinstance(called(net, node), SpikingNeuron):  # it sends new spikes
            continue
        for source in node.all_input_nodes:
            if source not in runner.env:
                meta = source.meta
                zeros = torch.zeros(1, *meta["shape"], dtype=x.dtype) if "shape" in meta else meta["value"]
                runner.env[source] = zeros
        runner.env[node] = runner.run_node(node)
        found.add(node)
    return {node: runner.env[node] for node in found}


def _heard(net: nn.Module, graph: fx.Graph) -> set[str]:
    """Returns the names of the modules on a path to a neuron that looks ahead and then starts again."""
    ahead: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for user in node.users:
            module = called(net, user)
            if user in ahead or (isinstance(module, Timed) and module.replays):
                ahead.add(node)
    return {str(node.target) for node in ahead if node.op == "call_module"}
