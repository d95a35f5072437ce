"""How long the first step of an answer takes, where layers add up their whole input before they send."""

from __future__ import annotations

from torch import fx, nn

from bench.snn.graph.trace import ImageShape, called, trace
from bench.snn.neurons import Timed


def longest_wait(net: nn.Module, image: ImageShape) -> int:
    """Steps that pass before the first step of the answer, while neurons add up their input before they send.

    Args:
        net: a converted network.
        image: shape of one.

    Returns:
        The sum of these neurons' waits, on the way through the network on which it is the largest.
    """
    waits: dict[fx.Node, int] = {}
    for node in trace(net, image).nodes:
        module = called(net, node)
        own = module.wait if isinstance(module, Timed) else 0
        waits[node] = own + max((waits[source] for source in node.all_input_nodes), default=0)
    return max(waits.values())
