"""The dataflow of a network, as ``torch.fx`` sees it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.neurons import LateralInhibitionPool, SpikingNeuron, Timed


def input_size(net: nn.Module) -> tuple[int, int, int]:
    """Shape ``[C, H, W]`` of an image for the net: from timm's configuration, or a CIFAR image's without one."""
    channels, height, width = (getattr(net, "pretrained_cfg", None) or {}).get("input_size", (3, 32, 32))
    return channels, height, width


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
        return bool(answer)


def trace(net: nn.Module) -> fx.Graph:
    """The dataflow of ``net``, with torch's own layers, activations and neurons as nodes.

    Raises:
        UserError: the forward pass depends on the data, so it cannot be traced.
    """
    try:
        graph: fx.Graph = _Tracer().trace(net)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
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
        return result


@torch.no_grad()
def note_shapes(net: fx.GraphModule, image: torch.Tensor) -> None:
    """Notes in ``meta["shape"]`` of each node the shape of one image's result, without running a neuron.

    Neither the state of neurons nor hooks see it.

    Args:
        net: a traced network.
        image: one, ``[1, C, H, W]``.
    """
    _Shapes(net).run(image)


def first_input(node: fx.Node) -> Any:
    """What a call works on, given by position or by name."""
    return node.args[0] if node.args else node.kwargs.get("input")
