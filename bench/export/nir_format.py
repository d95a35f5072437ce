"""The Neuromorphic Intermediate Representation (NIR) of a spiking network.

NIR (Pedersen et al., Nature Communications 2024, https://doi.org/10.1038/s41467-024-52259-9) describes a net as a graph
in which several edges into one node are summed. Its IF neuron sends 1, so thresholds are folded into the weights that
read the spikes. NIR has no field for two facts. They are written as metadata, and a simulator must obey them:

- every IF node: ``reset = "subtract"`` (soft reset: v - v_threshold after a spike; the field ``v_reset`` is unused),
  and ``v_init``, the membrane potential before the first step; it fires at equality;
- the graph: one step is ``v + r * input``, the image is the input at every step, the answer is the largest sum of the
  outputs over T steps.
"""

from __future__ import annotations

import io
import operator

import nir
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from bench.errors import UserError
from bench.snn.graph.fold import Scale, fold_currents, fold_thresholds
from bench.snn.graph.trace import note_shapes
from bench.snn.neurons import IFNode
from bench.snn.simulate import SpikingNetwork

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_FLATTENINGS = {torch.flatten, "flatten"}
METADATA = {
    "dynamics": "v <- v + r * input; spike = 1 where v >= v_threshold; each call is one time-step",
    "reset": "subtract: v <- v - v_threshold after a spike; v_reset is unused",
    "v_init": "membrane potential before the first step: metadata of each IF node",
    "input": "direct coding: the normalised image, unchanged, at every step",
    "readout": "sum of the outputs over the steps",
}


@torch.no_grad()
def to_nir(snn: SpikingNetwork, image: Tensor, metadata: dict[str, str]) -> bytes:
    """Writes a spiking network of plain IF neurons.

    Args:
        snn: the network, on the CPU.
        image: one, ``[1, C, H, W]``.
        metadata: of the graph, beside what is said about the neurons.

    Returns:
        The file's content (HDF5).

    Raises:
        UserError: names the neuron or layer that NIR cannot express.
    """
    for name, neuron in snn.neurons.items():
        if type(neuron) is not IFNode:
            raise UserError(f"export: {name} is a {type(neuron).__name__}, and NIR has only integrate-and-fire neurons")
    shape = image.shape[1:]
    folded = fold_thresholds(fold_currents(snn.net, shape), shape)
    note_shapes(folded, image)
    builder = _Builder(dict(folded.named_modules()))
    for node in folded.graph.nodes:
        builder.add(node)
    # NIR infers the input shape of a grouped convolution from its weights and gets it wrong.
    check = not any(getattr(node, "groups", 1) > 1 for node in builder.nodes.values())
    try:
        graph = nir.NIRGraph(builder.nodes, builder.edges, metadata={**METADATA, **metadata}, type_check=check)
    except ValueError as error:
        raise UserError(f"export: NIR refuses this network ({str(error).splitlines()[0][:200]})") from error
    buffer = io.BytesIO()
    nir.write(buffer, graph)
    return buffer.getvalue()


class _Builder:
    """Builds NIR nodes and edges from torch.fx nodes, one at a time; a sum becomes several edges."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.nodes: dict[str, nir.NIRNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[fx.Node, list[str]] = {}

    def add(self, node: fx.Node) -> None:
        """Adds what one call does."""
        shape = node.meta.get("shape", ())
        inputs = [source for argument in node.all_input_nodes for source in self.sources.get(argument, [])]
        before = node.all_input_nodes[0].meta.get("shape", ()) if node.all_input_nodes else ()
        if node.op == "placeholder":
            self._put(node, nir.Input({"input": np.array(shape)}), [])
        elif node.op == "output":
            self._put(node, nir.Output({"output": np.array(before)}), inputs)
        elif node.op == "call_module":
            module = self.modules[str(node.target)]
            if isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout2d)):
                self.sources[node] = inputs
            else:
                self._put(node, self._module(str(node.target), module, before, shape), inputs)
        elif node.target in _ADDITIONS and all(isinstance(term, fx.Node) for term in node.args) and not node.kwargs:
            inputs = [source for term in node.args if isinstance(term, fx.Node) for source in self.sources[term]]
            if len(set(inputs)) < len(inputs):
                raise UserError(f"export: {node.name} adds a value to itself, which NIR cannot express")
            self.sources[node] = inputs
        elif node.target in _FLATTENINGS and node.args[1:] in ((1,), (1, -1)):
            self._put(node, _flatten(before), inputs)
        else:
            raise UserError(f"export: NIR has no node for {node.name} ({node.target})")

    def _put(self, node: fx.Node, made: nir.NIRNode, inputs: list[str]) -> None:
        self.nodes[node.name] = made
        self.edges += [(source, node.name) for source in inputs]
        self.sources[node] = [node.name]

    def _module(self, name: str, module: nn.Module, before: tuple[int, ...], after: tuple[int, ...]) -> nir.NIRNode:
        if isinstance(module, IFNode):
            assert isinstance(module.threshold, Tensor)
            start = module.initial(torch.zeros(1, *after, dtype=module.threshold.dtype))[0]
            made = nir.IF(np.ones(after, np.float32), _array(module.threshold.expand(after)))
            made.metadata = {"reset": "subtract", "v_init": _array(start)}
            return made
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
            bias = torch.zeros(module.out_channels) if module.bias is None else module.bias
            padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
            return nir.Conv2d(before[1:], _array(module.weight), tuple(module.stride), padding,
                              tuple(module.dilation), module.groups, _array(bias))  # fmt: skip
        if isinstance(module, nn.Linear):
            bias = torch.zeros(module.out_features) if module.bias is None else module.bias
            return nir.Affine(_array(module.weight), _array(bias))
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return _flatten(before)
        if isinstance(module, Scale):
            return nir.Scale(_array(module.factor.expand(before)))
        if isinstance(module, nn.AvgPool2d) and not module.ceil_mode and module.divisor_override is None:
            pairs = [_pair(value) for value in (module.kernel_size, module.stride, module.padding)]
            if module.count_include_pad or not pairs[2].any():
                return nir.AvgPool2d(*pairs)
        if isinstance(module, nn.AdaptiveAvgPool2d) and not (np.array(before[1:]) % np.array(after[1:])).any():
            window = np.array(before[1:]) // np.array(after[1:])
            return nir.AvgPool2d(window, window, np.zeros(2, int))
        raise UserError(f"export: NIR has no node for {name} ({type(module).__name__} with its settings)")


def _array(x: Tensor) -> npt.NDArray[np.float32]:
    return x.detach().numpy().copy()


def _pair(value: int | tuple[int, int]) -> npt.NDArray[np.int_]:
    return np.array(value if isinstance(value, tuple) else (value, value))


def _flatten(shape: tuple[int, ...]) -> nir.NIRNode:
    return nir.Flatten({"input": np.array(shape)}, start_dim=0, end_dim=-1)
