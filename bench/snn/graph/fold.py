"""Folds into the weights of a layer: batch normalisation behind it, thresholds before it, and constant currents."""

from __future__ import annotations

import copy
import operator
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.graph.check import BatchNorm, Linear
from bench.snn.graph.trace import ImageShape, called, first_input, known_image, trace, trace_shapes
from bench.snn.neurons import IFNode, SpikingNeuron
from bench.snn.replace import put


def fold_batch_norm(net: nn.Module, image: ImageShape = None) -> int:
    """Folds each BN (in evaluation mode), in place, into the convolution or linear layer that is its only input.

    A BN with another input stays, and its bias enters at every step as before. So does a BN behind a linear layer whose
    output has, or may have, more than two dimensions: BN takes the second one for channels.

    Args:
        net: changed in place.
        image: shape of one image, if known.

    Returns:
        The number of folded BN layers.
    """
    linear, norm_1d = (any(isinstance(m, kind) for m in net.modules()) for kind in (nn.Linear, nn.BatchNorm1d))
    graph = (trace_shapes if linear and norm_1d and known_image(net, image) else trace)(net, image)
    nodes = list(graph.nodes)
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    folded = 0
    for node in nodes:
        norm = called(net, node)
        if not isinstance(norm, BatchNorm):
            continue
        source = node.all_input_nodes[0]
        layer = called(net, source)
        if len(source.users) != 1 or calls[source.target] + calls[node.target] != 2:
            continue
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear) and (len(source.meta.get("shape", ())) == 1 or _is_flat(net, source)):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        put(net, layer, fused)
        put(net, norm, nn.Identity())
        folded += 1
    return folded


def _is_flat(net: nn.Module, node: fx.Node | None) -> bool:
    """Whether a value is ``[B, features]`` for any images: flattened, perhaps with layers behind."""
    while node is not None:
        module = called(net, node)
        if module is None:
            return node.target in (torch.flatten, "flatten") and node.args[1:] in ((1,), (1, -1))
        if isinstance(module, nn.Flatten):
            return (module.start_dim, module.end_dim) == (1, -1)
        if not isinstance(module, (nn.Linear, nn.BatchNorm1d, nn.ReLU, Activation, nn.Identity, nn.Dropout)):
            return False
        node = first_input(node)
    return False


class Scale(nn.Module):
    """Multiplies by a constant: holds a threshold on a connection without weights."""

    factor: torch.Tensor

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scales ``[N, C, ...]``."""
        return x * self.factor


def fold_thresholds(net: nn.Module, image: ImageShape = None) -> fx.GraphModule:
    """Returns a copy of a converted net whose neurons send unit spikes.

    Each neuron's threshold moves into the weights that read it, through average pooling and flattening. A connection
    that ends in an addition (an identity shortcut) gets a :class:`Scale`. Only scalar thresholds can be folded.

    Raises:
        UserError: a neuron has more than one threshold, or the weights behind it are shared.
    """
    net = copy.deepcopy(net)
    graph = trace(net, image)
    carriers = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def push(node: fx.Node, source: fx.Node, factor: torch.Tensor) -> None:
        module = called(net, node)
        if isinstance(module, Linear):
            if calls[node.target] > 1:
                raise UserError(f"{node.target}: shared by several inputs, so thresholds cannot be folded into it")
            assert isinstance(module.weight, torch.Tensor)
            module.weight.data.mul_(factor)
        elif isinstance(module, carriers):
            for user in list(node.users):
                push(user, node, factor)
        else:
            name = f"scale_{len([n for n in graph.nodes if str(n.target).startswith('scale_')])}"
            net.add_module(name, Scale(factor))
            with graph.inserting_before(node):
                node.replace_input_with(source, graph.call_module(name, (source,)))

    for node in list(graph.nodes):
        neuron = called(net, node)
        if not isinstance(neuron, SpikingNeuron) or neuron.unit_spikes:
            continue
        if neuron.threshold.numel() != 1:
            raise UserError(f"{node.target}: only a scalar threshold can be folded into weights")
        for user in list(node.users):
            push(user, node, neuron.threshold)
        neuron.unit_spikes = True
    graph.lint()
    return fx.GraphModule(net, graph)


def fold_currents(net: nn.Module, image: ImageShape = None) -> nn.Module:
    """Returns a copy of a converted net whose neurons add no current: it moves into a bias of a layer before them.

    Raises:
        UserError: the current of a neuron fits into no bias; the message names the neuron.
    """
    net = copy.deepcopy(net)
    graph = trace(net, image)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def take(node: fx.Node, current: torch.Tensor) -> bool:
        """Adds the current to the bias of a layer whose output goes only here; returns whether there is one."""
        module = called(net, node)
        if len(node.users) != 1:
            return False
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            channels = len(module.weight)
            if calls[node.target] > 1 or current.numel() not in (1, channels):
                return False
            old = module.weight.new_zeros(channels) if module.bias is None else module.bias.data
            module.bias = nn.Parameter(old + current.flatten(), requires_grad=False)
            return True
        operands = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, fx.Node)]
        # If the output is multiplied by a constant, the current would be multiplied, too.
        once = len(set(operands)) == len(operands) and node.kwargs.get("alpha", 1) == 1
        adds = once and node.target in (operator.add, operator.iadd, torch.add)
        passes = adds or isinstance(module, (nn.Identity, nn.Dropout))
        return passes and any(take(source, current) for source in node.all_input_nodes)

    for node in graph.nodes:
        neuron = called(net, node)
        if isinstance(neuron, IFNode) and neuron.bias is not None:
            if not take(node.all_input_nodes[0], neuron.bias):
                raise UserError(f"{node.target}: its constant current cannot be folded into a bias")
            neuron.bias = None
    return net
