"""Moves max-pooling in front of the neuron, so that it pools currents instead of spikes."""

from __future__ import annotations

from torch import fx, nn

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.graph.check import MAX_POOLS
from bench.snn.graph.trace import ImageShape, called, trace


def pool_first(net: nn.Module, image: ImageShape = None) -> nn.Module:
    """Moves each max-pooling that follows an activation in front of it.

    ReLU, clipping and quantisation are monotonic, so the maximum may be taken before or after them, with the same
    result. Its conversion then takes the maximum of currents instead of spikes.

    Args:
        net: has :class:`bench.snn.activations.Activation` modules; it is not changed, and its parameters are shared.
        image: shape of one, if known.

    Returns:
        The network rebuilt from its dataflow, with the same names; ``net`` itself if it has no max-pooling.

    Raises:
        UserError: a max-pooling would still get spikes, because it does not follow an activation or because other
            layers read that activation, too; the message names it.
    """
    if not any(isinstance(module, MAX_POOLS) for module in net.modules()):
        return net
    graph = trace(net, image)
    rebuilt = fx.GraphModule(net, graph, type(net).__name__)
    timed: set[fx.Node] = set()
    for node in list(graph.nodes):
        module = called(net, node)
        if isinstance(module, MAX_POOLS):
            before = node.all_input_nodes[0]
            if isinstance(called(net, before), Activation) and len(before.users) == 1:
                _swap(before, node)
                continue
            after = [called(net, user) for user in node.users]
            if before in timed and not all(isinstance(user, Activation) for user in after):
                raise UserError(
                    f"{node.target} is a max-pooling whose input comes from several layers or has other readers, so "
                    "it cannot move before the neurons; train with --model.max_pool average, or convert with burst"
                )
        if isinstance(module, Activation) or any(source in timed for source in node.all_input_nodes):
            timed.add(node)
    graph.lint()
    rebuilt.recompile()
    return rebuilt.train(net.training)


def _swap(activation: fx.Node, pool: fx.Node) -> None:
    """``pool(activation(z))`` becomes ``activation(pool(z))``; later nodes read the activation."""
    pool.replace_all_uses_with(activation)
    current = activation.all_input_nodes[0]
    pool.replace_input_with(activation, current)
    activation.replace_input_with(current, pool)
    activation.prepend(pool)
