"""Reads a spiking network from a NIR file, using only what the file says."""

from __future__ import annotations

import graphlib
import io
import operator

import nir
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from bench.errors import UserError
from bench.snn.graph.fold import Scale
from bench.snn.neurons import IFNode
from bench.snn.simulate import SpikingNetwork


def from_nir(content: bytes) -> SpikingNetwork:
    """Reads a network that :func:`bench.export.nir_format.to_nir` has written, or another with the same metadata.

    Args:
        content: of the file.

    Returns:
        The network, for :func:`bench.simulate`.

    Raises:
        UserError: the file is not NIR, has an unsupported node, or has an IF node without the metadata for reset by
            subtraction.
    """
    try:
        graph = nir.read(io.BytesIO(content), type_check=False)
    except (OSError, KeyError, ValueError, AssertionError) as error:
        raise UserError(f"not a NIR file ({str(error).splitlines()[0][:120]})") from error
    root, made = nn.Module(), fx.Graph()
    values: dict[str, fx.Node] = {}
    sources: dict[str, list[str]] = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    try:
        names = [*graphlib.TopologicalSorter(sources).static_order()]
    except graphlib.CycleError as error:
        raise UserError("the NIR graph has a cycle; only feed-forward networks can be read") from error
    for name in names:
        if name not in graph.nodes:
            raise UserError(f"the NIR graph has an edge from {name}, which is not one of its nodes")
        node, inputs = graph.nodes[name], [values[source] for source in sources[name]]
        if isinstance(node, nir.Input):
            values[name] = made.placeholder(name)
            continue
        total = inputs[0]
        for other in inputs[1:]:
            total = made.call_function(operator.add, (total, other))
        if isinstance(node, nir.Output):
            values[name] = made.output(total)
        else:
            root.add_module(name, _module(name, node))
            values[name] = made.call_module(name, (total,))
    made.lint()
    return SpikingNetwork(fx.GraphModule(root, made))


def _module(name: str, node: nir.NIRNode) -> nn.Module:
    if isinstance(node, nir.IF):
        return _neuron(name, node)
    if isinstance(node, nir.Conv2d):
        out_channels, per_group, *kernel = node.weight.shape
        padding = node.padding if isinstance(node.padding, str) else _pair(node.padding)
        layer: nn.Module = nn.Conv2d(per_group * int(node.groups), out_channels, tuple(kernel), _pair(node.stride),
                                     padding, _pair(node.dilation), int(node.groups))  # fmt: skip
        return _filled(layer, node)
    if isinstance(node, nir.Affine):
        return _filled(nn.Linear(node.weight.shape[1], node.weight.shape[0]), node)
    if isinstance(node, nir.AvgPool2d):
        return nn.AvgPool2d(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
    if isinstance(node, nir.Flatten):
        return nn.Flatten()
    if isinstance(node, nir.Scale):
        return Scale(_scalar(_tensor(node.scale)))
    raise UserError(f"{name}: NIR's {type(node).__name__} is not supported")


def _neuron(name: str, node: nir.NIRNode) -> IFNode:
    if node.metadata.get("reset") != "subtract" or "v_init" not in node.metadata:
        raise UserError(f"{name}: an IF node without the metadata reset = subtract and v_init is reset to v_reset")
    if not bool((np.asarray(node.r) == 1).all()):
        raise UserError(f"{name}: its resistance is not 1")
    threshold = _scalar(_tensor(node.v_threshold))
    neuron = IFNode(threshold, _scalar(_tensor(node.metadata["v_init"]) / threshold))
    neuron.unit_spikes = True
    return neuron


def _filled(layer: nn.Module, node: nir.NIRNode) -> nn.Module:
    layer.weight = nn.Parameter(_tensor(node.weight), requires_grad=False)
    layer.bias = nn.Parameter(_tensor(node.bias), requires_grad=False)
    return layer


def _tensor(array: npt.ArrayLike) -> Tensor:
    return torch.from_numpy(np.array(array))


def _scalar(x: Tensor) -> Tensor:
    """Reduces a tensor to one number if all its elements are equal."""
    first = x.flatten()[0]
    return first.clone() if bool((x == first).all()) else x


def _pair(value: npt.ArrayLike) -> tuple[int, int]:
    first, second = np.broadcast_to(np.asarray(value), (2,)).tolist()
    return int(first), int(second)
