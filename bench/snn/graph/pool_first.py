"""Max-pooling in front of the neuron: of currents, where there would be none of spikes."""

from __future__ import annotations

from torch import fx, nn

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.graph.check import MAX_POOLS
from bench.snn.graph.trace import ImageShape, called, trace


def pool_first(net: nn.Module, image: ImageShape = None) -> nn.Module:
    """Lets each max-pooling that follows an activation come before it.

    ReLU, clipping and quantisation never fall, so the maximum may be taken before or after them: the network computes
    what it did. Its conversion takes the maximum of currents then, and not of spikes.

    Args:
        net: with :class:`bench.snn.activations.Activation`; it stays as it is, its parameters are shared.
        image: shape of one, if known.

    Returns:
        The network rebuilt from its dataflow, with the same names; ``net`` itself if it has no max-pooling.

    Raises:
        UserError: a max-pooling gets spikes all the same, as it does not follow an activation, or that activation goes
            to others as well; the message names it.
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
                    f"{node.target} is max-pooling of what several layers send or get, which cannot come before the "
                    "neurons; train with --model.max_pool average, or convert by burst"
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
