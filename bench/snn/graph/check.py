"""The refusal of what cannot be converted.

Whatever is neither linear nor an activation that conversion knows is refused by name, because a nonlinearity left as it
was gives wrong spikes in silence.
"""

from __future__ import annotations

import operator
from collections import Counter

import torch
import torch.nn.functional as F
from torch import fx, nn

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.graph.trace import ImageShape, called, first_input, trace
from bench.snn.neurons import Timed

Linear = (nn.modules.conv._ConvNd, nn.Linear)
BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Linear in their input (in evaluation mode), so they commute with the average over time.
_LINEAR_MODULES = (
    *Linear,
    *BatchNorm,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
    nn.ZeroPad2d,
    nn.Upsample,
)
_ACTIVATIONS = (nn.ReLU, Activation, Timed)
_LINEAR_FUNCTIONS = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.getitem, operator.neg, getattr,
    torch.add, torch.flatten, torch.cat, torch.mean, torch.reshape, torch.permute, torch.transpose,
    torch.split, torch.chunk, F.avg_pool2d, F.adaptive_avg_pool2d, F.dropout, F.pad,
}  # fmt: skip
_LINEAR_METHODS = {
    "flatten", "view", "reshape", "mean", "contiguous", "permute", "transpose", "add", "add_", "split", "chunk",
}  # fmt: skip
# Linear in their first argument while the others do not depend on the image; gates and attention are not.
_SCALINGS = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
# Layers whose operations nobody would count.
_LAYER_FUNCTIONS = {F.conv1d, F.conv2d, F.conv3d, F.linear, torch.conv2d}
# What gives the same memory under another name (in evaluation mode).
ALIAS_MODULES = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d)
ALIASES = {
    operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.split, torch.chunk, F.dropout,
    "flatten", "view", "reshape", "contiguous", "permute", "transpose", "split", "chunk",
}  # fmt: skip
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}


def _shapes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that hold sizes, and what is reckoned from sizes alone; any arithmetic is right there."""
    shapes: set[fx.Node] = set()
    for node in graph.nodes:
        asks = (node.target is getattr and node.args[1] in ("shape", "dtype", "device", "ndim")) or (
            node.op == "call_method" and node.target in ("size", "dim", "numel")
        )
        if asks or (node.all_input_nodes and all(source in shapes for source in node.all_input_nodes)):
            shapes.add(node)
    return shapes


def _from_image(node: fx.Node, shapes: set[fx.Node]) -> list[fx.Node]:
    """The inputs of ``node`` that depend on pixels, neither sizes nor parameters; twice where it is given twice."""
    given: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), given.append)
    return [source for source in given if source not in shapes and source.op != "get_attr"]


def check_convertible(net: nn.Module, image: ImageShape = None) -> None:
    """Refuses what conversion would get wrong.

    Args:
        net: network.
        image: shape of one, where known.

    Raises:
        UserError: names the module and the reason: a nonlinearity other than ReLU, a functional one inside a
            ``forward``, an activation called from several places, or no activation at all.
    """
    calls: Counter[str] = Counter()
    problems = []
    graph = trace(net, image)
    shapes = _shapes(graph)
    for node in graph.nodes:
        if isinstance(called(net, node), (*_ACTIVATIONS, nn.MaxPool2d)):
            calls[node.target] += 1
        if node.op != "output" and node not in shapes and (problem := _problem(net, node, shapes)):
            problems.append(problem)
    problems += [
        f"{name} ({type(net.get_submodule(name)).__name__}) is called from {n} places; "
        "give each call a module of its own"
        for name, n in calls.items()
        if n > 1
    ]
    if not any(isinstance(net.get_submodule(name), _ACTIVATIONS) for name in calls):
        problems.append("it has no nn.ReLU module, so nothing would be replaced")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{type(net).__name__} cannot be converted: {'; '.join(problems[:3])}{more}")


def _problem(net: nn.Module, node: fx.Node, shapes: set[fx.Node]) -> str | None:
    if (module := called(net, node)) is not None:
        name = f"{node.target} ({type(module).__name__})"
        if not isinstance(module, (*_ACTIVATIONS, *_LINEAR_MODULES, nn.MaxPool2d)):
            return f"{name} has no spiking counterpart"
        if isinstance(module, BatchNorm) and module.running_mean is None:
            return f"{name} uses the statistics of the batch, which time is folded into"
        if getattr(module, "inplace", False) and is_overwritten(net, node):
            return f"{name} works in place on a value that is read again; use its result"
        return None
    if node.op not in ("call_function", "call_method"):
        return None
    name = node.target if isinstance(node.target, str) else node.target.__name__
    caller = owner(node) or "the network's forward"
    if node.target in _LAYER_FUNCTIONS:
        return f"{caller} calls the function {name}; make it a layer, an nn.Conv2d or nn.Linear, so that it is counted"
    if not _is_linear(node, shapes):
        remedy = "; make it an nn.ReLU module of its own" if name in ("relu", "relu_") else ""
        return f"{caller} calls the function {name}, which conversion cannot see into{remedy}"
    if (name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv")) and is_overwritten(net, node):
        return f"{caller} calls {name} in place on a value that is read again; use its result"
    return None


def is_overwritten(net: nn.Module, node: fx.Node) -> bool:
    """Whether what an in-place operation overwrote is read after it, under any name, or its own result is not."""
    source = first_input(node)
    if not node.users or source is None:
        return not node.users
    order = {other: index for index, other in enumerate(node.graph.nodes)}

    def is_alias(other: fx.Node) -> bool:
        return isinstance(called(net, other), ALIAS_MODULES) if other.op == "call_module" else other.target in ALIASES

    memory = {source}
    while is_alias(source) and (before := first_input(source)) is not None:
        source = before
        memory.add(source)
    for other in node.graph.nodes:  # in the order of the calls; what comes from ``node`` itself is its result
        if other is not node and is_alias(other) and first_input(other) in memory:
            memory.add(other)
    return any(order[user] > order[node] for name in memory for user in name.users if user is not node)


def _is_linear(node: fx.Node, shapes: set[fx.Node]) -> bool:
    moving = _from_image(node, shapes)
    if node.target in _PRODUCTS:
        return len(moving) < 2
    if node.target in _SCALINGS:
        return moving == [first_input(node)] and not node.kwargs.get("rounding_mode")
    return node.target in (_LINEAR_METHODS if node.op == "call_method" else _LINEAR_FUNCTIONS)


def owner(node: fx.Node) -> str:
    """Name of the module whose ``forward`` makes a call; empty for the network's own."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else ""


def mixes_constant_input(net: nn.Module, image: ImageShape = None) -> bool:
    """Whether a path that is still constant in time meets one that has passed a neuron.

    Pre-activation nets do so: their first shortcut leaves before the first neuron. Such nets need their input
    repeated for every step; all others let the first neuron begin time.
    """
    graph = trace(net, image)
    shapes = _shapes(graph)
    timed: set[fx.Node] = set()
    for node in graph.nodes:
        late = [source in timed for source in node.all_input_nodes if source.op != "get_attr"]
        begins = isinstance(called(net, node), Timed)
        # A size read behind a neuron knows of time; one read before it must not be used behind it.
        if any(late) and not all(late) and not begins and node not in shapes:
            return True
        if begins or any(late):
            timed.add(node)
    return False
