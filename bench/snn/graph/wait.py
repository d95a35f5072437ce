"""Computes how long the first step of an answer takes if layers see several steps of their input before they send."""

from __future__ import annotations

from torch import fx, nn

from bench.snn.graph.trace import ImageShape, called, trace
from bench.snn.neurons import Timed


def longest_wait(net: nn.Module, image: ImageShape) -> int:
    """Returns the number of steps before the first step of the answer, while one layer after the other waits.

    Args:
        net: a converted network.
        image: shape of one image.

    Returns:
        The largest sum of waits on any path through the network.
    """
    waits: dict[fx.Node, int] = {}
    for node in trace(net, image).nodes:
        module = called(net, node)
        own = module.wait if isinstance(module, Timed) else 0
        waits[node] = own + max((waits[source] for source in node.all_input_nodes), default=0)
    return max(waits.values())
