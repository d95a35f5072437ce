"""Each ReLU and each max-pooling of a network as a module of its own."""

from __future__ import annotations

import copy
import itertools
from collections import Counter

import torch
import torch.nn.functional as F
from torch import fx, nn

from bench.snn.graph.check import is_overwritten, owner
from bench.snn.graph.trace import ImageShape, called, trace

_FUNCTIONS = {F.relu, torch.relu, F.relu_, torch.relu_}
_METHODS = {"relu", "relu_"}


def separate_rectifiers(net: nn.Module, image: ImageShape = None) -> nn.Module:
    """Gives each call of ReLU an ``nn.ReLU`` of its own, and each call of a max-pooling module one of its own.

    A neuron remembers, and so does what stands for max-pooling, so a module that is called from two places cannot
    become one of them; and a ReLU called as a function is nothing that can be replaced. Where there is either, the
    network is rebuilt from its dataflow: same parameters, same names, and new modules called ``relu``, ``relu_2`` ...
    beside the layers whose ``forward`` calls them.

    Args:
        net: in evaluation mode; it stays as it is, its parameters are shared.
        image: shape of one, where known.

    Returns:
        The rebuilt network, or ``net`` itself where nothing has to be done.

    Raises:
        UserError: ``net`` cannot be traced.
    """
    graph = trace(net, image)
    seen: Counter[str] = Counter()
    due: list[tuple[fx.Node, str, nn.Module]] = []
    for node in graph.nodes:
        module = called(net, node)
        if isinstance(module, (nn.ReLU, nn.MaxPool2d)):
            seen[str(node.target)] += 1
            if seen[str(node.target)] > 1:
                due.append((node, str(node.target), copy.deepcopy(module)))
        elif _is_function(node):
            asked = node.kwargs.get("inplace") or node.args[1:2] == (True,)
            inplace = asked or str(getattr(node.target, "__name__", node.target)).endswith("_")
            # What an in-place call overwrites for others as well is left, and refused by check_convertible.
            if not (inplace and is_overwritten(net, node)):
                due.append((node, f"{owner(node)}.relu".lstrip("."), nn.ReLU()))
    if not due:
        return net
    rebuilt = fx.GraphModule(net, graph, type(net).__name__)
    for node, wanted, module in due:
        name = _free_name(rebuilt, wanted)
        rebuilt.add_submodule(name, module)
        with graph.inserting_before(node):
            new = graph.call_module(name, (node.all_input_nodes[0],))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    rebuilt.recompile()
    return rebuilt.eval()


def drop_uncalled_rectifiers(net: nn.Module, image: ImageShape = None) -> None:
    """Puts, in place, an identity where a ReLU is that ``forward`` never calls: no current would reach its neuron."""
    called = {str(node.target) for node in trace(net, image).nodes if node.op == "call_module"}
    names: dict[nn.Module, set[str]] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, nn.ReLU):
            names.setdefault(module, set()).add(name)
    for own in names.values():
        if not own & called:
            for name in own:
                net.set_submodule(name, nn.Identity())


def _is_function(node: fx.Node) -> bool:
    functions = _METHODS if node.op == "call_method" else _FUNCTIONS if node.op == "call_function" else set()
    return node.target in functions


def _free_name(net: nn.Module, wanted: str) -> str:
    parent, _, last = wanted.rpartition(".")
    there = dict(net.named_modules(remove_duplicate=False)).get(parent)
    names = itertools.chain([last], (f"{last}_{number}" for number in itertools.count(2)))
    free = next(name for name in names if not hasattr(there, name))
    return f"{parent}.{free}".lstrip(".")
