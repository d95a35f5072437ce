"""Refuses networks that cannot be converted.

Whatever is neither linear nor a known activation is refused by name. A nonlinearity that is left in place would give
wrong spikes without an error.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.graph.trace import ImageShape, called, first_input, interpret, trace
from bench.snn.neurons import Timed

Linear = (nn.modules.conv._ConvNd, nn.Linear)
BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Base classes: torch has no public name for "any padding" or "any max-pooling".
_PADDING = (
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._CircularPadNd,
)
MAX_POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# Linear in their input (in evaluation mode), so they commute with the average over time.
_LINEAR_MODULES = (
    *Linear,
    *BatchNorm,
    *_PADDING,
    *_DROPOUT,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)
_ACTIVATIONS = (nn.ReLU, Activation, Timed)
_DROPOUT_FUNCTIONS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
}  # fmt: skip
_LINEAR_FUNCTIONS = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.getitem, operator.neg, operator.pos, getattr,
    torch.add, torch.sub, torch.neg, torch.positive, torch.sum, torch.mean, torch.flatten, torch.unflatten, torch.cat,
    torch.concat, torch.concatenate, torch.stack, torch.reshape, torch.permute, torch.transpose, torch.swapaxes,
    torch.movedim, torch.squeeze, torch.unsqueeze, torch.split, torch.chunk, torch.unbind, torch.narrow, torch.clone,
    torch.roll, torch.flip, torch.avg_pool1d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.adaptive_avg_pool1d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.pad, F.interpolate, F.pixel_shuffle,
    torch.pixel_shuffle, torch.channel_shuffle, *_DROPOUT_FUNCTIONS,
}  # fmt: skip
_LINEAR_METHODS = {
    "flatten", "unflatten", "view", "view_as", "reshape", "mean", "sum", "contiguous", "permute", "transpose", "t",
    "swapaxes", "movedim", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "add", "add_", "sub", "sub_", "neg",
    "split", "chunk", "unbind", "narrow", "clone", "detach", "float", "double", "to", "type_as", "roll", "flip",
}  # fmt: skip
# Constant, whatever the first argument is.
_CONSTANTS = {torch.zeros_like, torch.ones_like, torch.full_like, "new_zeros", "new_ones", "new_full"}
# Linear in their first argument if the others do not depend on the image, unlike in gates and attention.
_SCALINGS = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
# Layers called as functions, whose operations would not be counted.
_LAYER_FUNCTIONS = {F.conv1d, F.conv2d, F.conv3d, F.linear, torch.conv1d, torch.conv2d, torch.conv3d}
# These return the same memory under another name (in evaluation mode).
ALIAS_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, *_DROPOUT)
ALIASES = {
    operator.getitem, torch.flatten, torch.unflatten, torch.reshape, torch.permute, torch.transpose, torch.swapaxes,
    torch.movedim, torch.squeeze, torch.unsqueeze, torch.split, torch.chunk, torch.unbind, torch.narrow,
    *_DROPOUT_FUNCTIONS,
    "flatten", "unflatten", "view", "view_as", "reshape", "contiguous", "permute", "transpose", "t", "swapaxes",
    "movedim", "squeeze", "unsqueeze", "split", "chunk", "unbind", "narrow", "expand", "expand_as", "detach", "float",
    "double", "to", "type_as",
}  # fmt: skip
# Functions that torch dispatches by an argument do not carry their own name.
_DISPATCHED = {
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
}  # fmt: skip
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_MATRIX_PRODUCTS = {"matmul", "mm", "bmm", "einsum", "scaled_dot_product_attention"}
_CURVED = {
    "gelu", "silu", "mish", "elu", "celu", "selu", "tanh", "sigmoid", "logsigmoid", "hardswish", "hardsigmoid",
    "hardtanh", "softplus", "softsign", "softmax", "log_softmax", "logsoftmax", "glu", "exp", "log", "pow", "abs",
    "sqrt", "rsqrt", "maximum", "minimum", "max", "clamp", "clip",
}  # fmt: skip
_LEAKY = {"leakyrelu", "leaky_relu", "prelu", "rrelu"}
_STATISTICS = {
    "layernorm", "layer_norm", "groupnorm", "group_norm", "rmsnorm", "rms_norm", "instance_norm", "instancenorm1d",
    "instancenorm2d", "instancenorm3d", "localresponsenorm", "local_response_norm", "normalize", "batch_norm", "var",
    "std",
}  # fmt: skip


def shape_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Returns the nodes that hold sizes or are computed from sizes alone; any arithmetic is allowed on these."""
    shapes: set[fx.Node] = set()
    for node in graph.nodes:
        asks = (node.target is getattr and node.args[1] in ("shape", "dtype", "device", "ndim")) or (
            node.op == "call_method" and node.target in ("size", "dim", "numel")
        )
        if asks or (node.all_input_nodes and all(source in shapes for source in node.all_input_nodes)):
            shapes.add(node)
    return shapes


def _from_image(node: fx.Node, shapes: set[fx.Node]) -> list[fx.Node]:
    """Returns the inputs of ``node`` that depend on pixels; one that is passed twice appears twice."""
    given: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), given.append)
    return [source for source in given if source not in shapes and source.op != "get_attr"]


class _Problem(NamedTuple):
    """An obstacle to conversion: where it is (the name of a module or a call), its kind, and the reason."""

    where: str
    kind: str
    reason: str


def check_convertible(net: nn.Module, image: ImageShape = None) -> None:
    """Refuses a network that conversion would get wrong.

    Args:
        net: network.
        image: shape of one, if known.

    Raises:
        UserError: names the module and the reason: a nonlinearity other than ReLU, a functional one inside a
            ``forward``, an activation called from several places, or no activation at all.
    """
    calls: Counter[str] = Counter()
    problems: list[_Problem] = []
    graph = trace(net, image)
    shapes = shape_nodes(graph)
    for node in graph.nodes:
        if isinstance(called(net, node), (*_ACTIVATIONS, *MAX_POOLS)):
            calls[node.target] += 1
        if node.op != "output" and node not in shapes and (problem := _problem(net, node, shapes)):
            problems.append(problem)
    problems += [
        _Problem(
            name,
            type(net.get_submodule(name)).__name__,
            f"is called from {n} places; give each call its own module",
        )
        for name, n in calls.items()
        if n > 1
    ]
    if not problems and not any(isinstance(net.get_submodule(name), _ACTIVATIONS) for name in calls):
        problems.append(_Problem("it", "", "has no nn.ReLU module, so nothing would be replaced"))
    if problems:
        raise UserError(f"{type(net).__name__} cannot be converted: {_in_one_line(problems)}")


def _in_one_line(problems: list[_Problem]) -> str:
    """Describes the first three kinds of problems, each with the first module that has it."""
    groups: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        groups.setdefault((problem.kind, problem.reason), []).append(problem.where)
    lines = []
    for (kind, reason), names in list(groups.items())[:3]:
        count = f" ({len(names)} in all)" if len(names) > 1 else ""
        lines.append(f"{names[0]}{f' ({kind})' if kind else ''} {reason}{count}")
    left = len(groups) - len(lines)
    return "; ".join(lines) + (f"; and {left} more" if left else "")


def check_batch(net: nn.Module, image: Sequence[int]) -> None:
    """Refuses a network whose first dimension is not the images: time is folded into that dimension.

    Args:
        net: network.
        image: shape of one.

    Raises:
        UserError: a layer has another first dimension (the message names it), or the network does not take such images.
    """
    graph = trace(net, image)
    for batch in (5, 7):  # no layer has both sizes by chance
        shapes: dict[fx.Node, torch.Size] = {}

        def note(node: fx.Node, result: object, shapes: dict[fx.Node, torch.Size] = shapes) -> None:
            if isinstance(result, torch.Tensor):
                shapes[node] = result.shape

        interpret(net, graph, image, note, batch)
        for node in graph.nodes:
            layers = [node, *node.all_input_nodes] if node.op == "call_module" else node.all_input_nodes
            for value in layers if node.op in ("call_module", "output") else ():
                if value in shapes and value.op != "get_attr" and shapes[value][:1] != (batch,):
                    found = f"{batch} images became {list(shapes[value])}"
                    where = str(node.target) if node.op == "call_module" else "the network's output"
                    raise UserError(
                        f"{type(net).__name__} cannot be converted: the first dimension of {where} is not the images "
                        f"({found}), and time is folded into it; keep frames or windows in another dimension"
                    )
        if next(node for node in graph.nodes if node.op == "output").args[0] not in shapes:
            raise UserError(f"{type(net).__name__} returns several tensors; give a network that returns logits")


def _problem(net: nn.Module, node: fx.Node, shapes: set[fx.Node]) -> _Problem | None:
    if (module := called(net, node)) is not None:
        name, kind = str(node.target), type(module).__name__
        if not isinstance(module, (*_ACTIVATIONS, *_LINEAR_MODULES, *MAX_POOLS)):
            return _Problem(name, kind, _reason(kind.lower()) or "has no spiking counterpart")
        if isinstance(module, BatchNorm) and module.running_mean is None:
            return _Problem(name, kind, "uses the statistics of the batch, into which time is folded")
        if getattr(module, "return_indices", False):
            return _Problem(name, kind, "returns the indices of maxima, which spikes do not have")
        if getattr(module, "inplace", False) and is_overwritten(net, node):
            return _Problem(name, kind, "works in place on a value that is read again; use its result")
        return None
    if node.op not in ("call_function", "call_method"):
        return None
    name = node.target if isinstance(node.target, str) else node.target.__name__
    name = "max_pool" if node.target in _DISPATCHED else name
    why: str | None = None
    if node.target in _LAYER_FUNCTIONS:
        why = "whose operations would not be counted; make it a layer such as nn.Conv2d or nn.Linear"
    elif node.target in _DROPOUT_FUNCTIONS and node.kwargs.get("training", True):
        why = "which stays active in evaluation; write training=self.training, or make it an nn.Dropout module"
    elif node.kwargs.get("out") is not None:
        why = "which writes into an existing tensor; use its result"
    elif not _is_linear(node, shapes):
        several = len(_from_image(node, shapes)) > 1
        if several and (node.target in _PRODUCTS | _SCALINGS or name in _MATRIX_PRODUCTS):
            why = (
                "which multiplies values that depend on the image, as gates, squeeze-and-excitation and attention do; "
                "spikes cannot; use a network without it"
            )
        elif name in ("relu", "relu_"):
            why = "which conversion cannot see into; make it an nn.ReLU module"
        else:
            why = f"which {_reason(name.rstrip('_')) or 'is not linear, and conversion cannot see into it'}"
    elif (name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv")) and is_overwritten(net, node):
        why = "which works in place on a value that is read again; use its result"
    caller = owner(node) or "the network's forward"
    return None if why is None else _Problem(caller, "", f"calls the function {name}, {why}")


def _reason(name: str) -> str | None:
    """Why a nonlinearity cannot be converted, and what a user can do."""
    if name in _CURVED:
        return (
            "is not a ReLU, the only nonlinearity that a firing rate can follow; train the network with nn.ReLU instead"
        )
    if name in _LEAKY:
        return "has negative values, which a firing rate cannot represent; train the network with nn.ReLU instead"
    if name in _STATISTICS:
        return "divides by a statistic of the image, which spikes cannot compute; train the network with BatchNorm"
    return None


def is_overwritten(net: nn.Module, node: fx.Node) -> bool:
    """Whether the value that an in-place operation overwrites is read again, or its result is never read."""
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
    for other in node.graph.nodes:  # in the order of the calls; what ``node`` itself returns is its result
        if other is not node and is_alias(other) and first_input(other) in memory:
            memory.add(other)
    return any(order[user] > order[node] for name in memory for user in name.users if user is not node)


def _is_linear(node: fx.Node, shapes: set[fx.Node]) -> bool:
    moving = _from_image(node, shapes)
    if any(
        isinstance(given, torch.dtype) and not given.is_floating_point for given in (*node.args, *node.kwargs.values())
    ):
        return False  # it rounds
    if node.target in _PRODUCTS:
        return len(moving) < 2
    if node.target in _SCALINGS:
        return moving == [first_input(node)] and not node.kwargs.get("rounding_mode")
    return node.target in _CONSTANTS or node.target in (
        _LINEAR_METHODS if node.op == "call_method" else _LINEAR_FUNCTIONS
    )


def owner(node: fx.Node) -> str:
    """Returns the name of the module whose ``forward`` makes a call; empty for that of the network."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else ""


def mixes_constant_input(net: nn.Module, image: ImageShape = None) -> bool:
    """Whether a path that is still constant in time meets one that has passed a neuron.

    This happens in pre-activation nets: their first shortcut starts before the first neuron. Such nets need their
    input repeated for every step. In all others, time begins at the first neuron.
    """
    graph = trace(net, image)
    # A size read behind a neuron includes time; one read before a neuron must not be used behind it.
    shapes, timed = shape_nodes(graph), timed_nodes(net, graph)
    for node in graph.nodes:
        late = [source in timed for source in node.all_input_nodes if source.op != "get_attr"]
        if any(late) and not all(late) and not isinstance(called(net, node), Timed) and node not in shapes:
            return True
    return False


def timed_nodes(net: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    """Returns the nodes whose values may change from step to step: those of neurons, and all behind them."""
    timed: set[fx.Node] = set()
    for node in graph.nodes:
        if isinstance(called(net, node), Timed) or not timed.isdisjoint(node.all_input_nodes):
            timed.add(node)
    return timed
