"""The dataflow of a network, as ``torch.fx`` sees it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.neurons import SpikingNeuron, Timed
from bench.snn.pooling import LateralInhibitionPool


def input_size(net: nn.Module) -> tuple[int, ...]:
    """Shape of an image for the net: as was noted on it, from timm's configuration, or else a CIFAR image's."""
    return known_size(net) or (3, 32, 32)


def known_size(net: nn.Module) -> tuple[int, ...] | None:
    """Shape of an image for the net, where anybody has said it."""
    noted: tuple[int, ...] | None = getattr(net, "image_shape", None)
    return noted or (getattr(net, "pretrained_cfg", None) or {}).get("input_size")


def note_size(net: nn.Module, shape: Sequence[int]) -> None:
    """Notes on the net the shape of one image, from which questions about shapes in its ``forward`` are answered."""
    net.image_shape = tuple(shape)  # type: ignore[assignment]


class _DirectInterpreter(fx.Interpreter):
    """Calls ``forward`` itself: while a trace is under way, calling a module would be traced."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.fetch_attr(target).forward(*args, **kwargs)


class _Tracer(fx.Tracer):
    """Keeps activations whole, and answers questions about shapes (``if x.shape[-1] < 7``) from an example."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (Activation, Timed)) or super().is_leaf_module(m, module_qualified_name)

    def to_bool(self, obj: fx.Proxy) -> bool:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self.graph, copies)
        graph.output(copies[obj.node])
        dtype = next(self.root.parameters()).dtype
        # On the meta device: shapes are all that may be asked about.
        module = fx.GraphModule(copy.deepcopy(self.root).eval().to("meta"), graph)
        answer = _DirectInterpreter(module).run(torch.zeros(1, *input_size(self.root), device="meta", dtype=dtype))
        if isinstance(answer, torch.Tensor):
            raise fx.proxy.TraceError("its forward pass depends on the values of the images")
        if known_size(self.root) is None:
            raise fx.proxy.TraceError("its forward pass asks for the shape of the images, which is not known here")
        return bool(answer)


def trace(net: nn.Module) -> fx.Graph:
    """The dataflow of ``net``, with torch's own layers, activations and neurons as nodes.

    Raises:
        UserError: the forward pass depends on the data, so it cannot be traced.
    """
    try:
        graph: fx.Graph = _Tracer().trace(net)
    except Exception as error:  # whatever a forward pass may raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{type(net).__name__} cannot be converted: torch.fx cannot trace it ({reason})") from error
    return graph


class _Shapes(_DirectInterpreter):
    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module, x = self.fetch_attr(target), next(iter((*args, *kwargs.values())))
        if isinstance(module, SpikingNeuron):
            return x
        if isinstance(module, LateralInhibitionPool):
            return module.pool(x)
        return super().call_module(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shape"] = result.shape[1:]
        else:
            n.meta["value"] = result
        return result


@torch.no_grad()
def note_shapes(net: fx.GraphModule, image: torch.Tensor) -> None:
    """Notes of each node the shape of one image's result, or what else it is, without running a neuron.

    In ``meta["shape"]`` and ``meta["value"]``.

    Neither the state of neurons nor hooks see it.

    Args:
        net: a traced network.
        image: one, ``[1, C, H, W]``.
    """
    _Shapes(net).run(image)


def first_input(node: fx.Node) -> Any:
    """What a call works on, given by position or by name."""
    return node.args[0] if node.args else node.kwargs.get("input")
