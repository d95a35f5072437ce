"""Changes to a network by module type, and the refusal of what cannot be converted.

A network is looked at through ``torch.fx``: whatever is neither linear nor an activation that conversion knows is
refused by name, because a nonlinearity left as it was gives wrong spikes in silence.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.neurons import SpikingNeuron

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
_ACTIVATIONS = (nn.ReLU, Activation, SpikingNeuron)
_LINEAR_FUNCTIONS = {
    operator.add, operator.iadd, operator.sub, operator.getitem, operator.neg, getattr,
    torch.add, torch.flatten, torch.cat, torch.mean, torch.reshape, torch.permute, torch.transpose,
    torch.split, torch.chunk,
    F.avg_pool2d, F.adaptive_avg_pool2d, F.dropout, F.batch_norm, F.conv2d, F.linear, F.pad,
}  # fmt: skip
_LINEAR_METHODS = {
    "flatten", "view", "reshape", "mean", "size", "contiguous", "permute", "transpose", "add", "add_", "split", "chunk",
}  # fmt: skip
# Integer arithmetic on shapes passes; products of two feature maps (gates) do not.
_SCALAR_FUNCTIONS = {operator.mul, operator.truediv, operator.floordiv}


class _DirectInterpreter(fx.Interpreter):
    """Calls ``forward`` itself: while a trace is under way, calling a module would be traced."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.fetch_attr(target).forward(*args, **kwargs)


class _Tracer(fx.Tracer):
    """Keeps activations whole, and answers questions about shapes (``if x.shape[-1] < 7``) from an example."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (Activation, SpikingNeuron)) or super().is_leaf_module(m, module_qualified_name)

    def to_bool(self, obj: fx.Proxy) -> bool:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self.graph, copies)
        graph.output(copies[obj.node])
        # On the meta device: shapes are all that may be asked about.
        module = fx.GraphModule(copy.deepcopy(self.root).eval().to("meta"), graph)
        answer = _DirectInterpreter(module).run(torch.zeros(1, 3, 32, 32, device="meta"))
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
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return graph


def check_convertible(net: nn.Module) -> None:
    """Refuses what conversion would get wrong.

    Raises:
        UserError: names the module and the reason: a nonlinearity other than ReLU, a functional one inside a
            ``forward``, an activation called from several places, or no activation at all.
    """
    modules = dict(net.named_modules())
    calls: Counter[str] = Counter()
    problems = []
    for node in trace(net).nodes:
        if node.op == "call_module":
            module = modules[node.target]
            if isinstance(module, _ACTIVATIONS):
                calls[node.target] += 1
            elif not isinstance(module, (*_LINEAR_MODULES, nn.MaxPool2d)):
                problems.append(f"{node.target} ({type(module).__name__}) has no spiking counterpart")
        elif node.op in ("call_function", "call_method") and not _is_linear(node):
            name = node.target if isinstance(node.target, str) else node.target.__name__
            remedy = "; make it an nn.ReLU module of its own" if name in ("relu", "relu_") else ""
            problems.append(f"{_owner(node)} calls the function {name}, which conversion cannot see into{remedy}")
    problems += [
        f"{name} ({type(modules[name]).__name__}) is called from {n} places; give each call a module of its own"
        for name, n in calls.items()
        if n > 1
    ]
    if not calls:
        problems.append("it has no nn.ReLU module, so nothing would be replaced")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{type(net).__name__} cannot be converted: {'; '.join(problems[:3])}{more}")


def _is_linear(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _LINEAR_METHODS
    if node.target in _SCALAR_FUNCTIONS:
        return sum(isinstance(argument, fx.Node) for argument in node.args) < 2
    return node.target in _LINEAR_FUNCTIONS


def _owner(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else "the network's forward"


def replace(net: nn.Module, kind: type[nn.Module], make: Callable[[str, nn.Module], nn.Module]) -> int:
    """Replaces, in place, each submodule of a type.

    Args:
        net: changed in place.
        kind: type to look for (subclasses included).
        make: called with qualified name and old module, returns the new one.

    Returns:
        How many were replaced.

    Raises:
        UserError: ``make`` refused one; the message names the module.
    """
    found = [(name, module) for name, module in net.named_modules() if isinstance(module, kind) and name]
    for name, module in found:
        try:
            new = make(name, module)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        net.set_submodule(name, new.train(module.training))
    return len(found)


def split_norm_act(net: nn.Module) -> int:
    """Takes timm's fused BN-and-activation layers apart, so that the activation is a module like any other."""

    def split(_: str, fused: nn.Module) -> nn.Module:
        assert isinstance(fused, BatchNormAct2d)
        norm = nn.BatchNorm2d(fused.num_features, fused.eps, fused.momentum, fused.affine, fused.track_running_stats)
        norm.load_state_dict({key: value for key, value in fused.state_dict().items() if key in norm.state_dict()})
        return nn.Sequential(OrderedDict(norm=norm, drop=fused.drop, act=fused.act))

    return replace(net, BatchNormAct2d, split)


def replace_max_pool(net: nn.Module) -> int:
    """Average pooling for max-pooling: the maximum of spike trains is not the train of the maximum."""

    def average(_: str, pool: nn.Module) -> nn.Module:
        assert isinstance(pool, nn.MaxPool2d)
        if pool.dilation not in (1, (1, 1)) or pool.return_indices:
            raise UserError("dilated max-pooling or one that returns indices has no average counterpart")
        return nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)

    return replace(net, nn.MaxPool2d, average)


def fold_batch_norm(net: nn.Module) -> int:
    """Folds, in place, each BN (in evaluation mode) into the convolution or linear layer that alone feeds it.

    A BN that has another producer stays; its bias then enters at every step as before.

    Returns:
        How many were folded.
    """
    nodes = list(trace(net).nodes)
    modules = dict(net.named_modules())
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    folded = 0
    for node in nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], BatchNorm):
            continue
        source = node.args[0]
        if source.op != "call_module" or len(source.users) != 1 or calls[source.target] + calls[node.target] != 2:
            continue
        layer, norm = modules[source.target], modules[node.target]
        if isinstance(layer, nn.Conv2d):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        net.set_submodule(source.target, fused)
        net.set_submodule(node.target, nn.Identity())
        folded += 1
    return folded


def mixes_constant_input(net: nn.Module) -> bool:
    """Whether a path that is still constant in time meets one that has passed a neuron.

    Pre-activation nets do so: their first shortcut leaves before the first neuron. Such nets need their input
    repeated for every step; all others let the first neuron begin time.
    """
    modules = dict(net.named_modules())
    timed: set[fx.Node] = set()
    for node in trace(net).nodes:
        if node.op == "call_module" and isinstance(modules[node.target], SpikingNeuron):
            timed.add(node)
        elif any(source in timed for source in node.all_input_nodes):
            if not all(source in timed for source in node.all_input_nodes):
                return True
            timed.add(node)
    return False


class Scale(nn.Module):
    """Multiplies by a constant: what remains of a threshold on an edge without weights."""

    factor: torch.Tensor

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scales ``[N, C, ...]``."""
        return x * self.factor


def fold_thresholds(net: nn.Module) -> fx.GraphModule:
    """A copy of a converted net whose neurons send unit spikes.

    Each neuron's threshold moves into the weights that read it, through average pooling and flattening; on an edge
    that ends in an addition (an identity shortcut) a :class:`Scale` is put. Only scalar thresholds fold.

    Raises:
        UserError: a neuron has one threshold per channel.
    """
    net = copy.deepcopy(net)
    graph = trace(net)
    modules = dict(net.named_modules())
    carriers = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
    weighted: Counter[str] = Counter()

    def push(node: fx.Node, source: fx.Node, factor: torch.Tensor) -> None:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Linear):
            weighted[str(node.target)] += 1
            if weighted[str(node.target)] > 1:
                raise UserError(f"{node.target}: shared by several inputs, so thresholds cannot be folded into it")
            assert isinstance(module.weight, torch.Tensor)
            module.weight.data.mul_(factor)
        elif isinstance(module, carriers):
            for user in list(node.users):
                push(user, node, factor)
        else:
            name = f"scale_{len([n for n in graph.nodes if str(n.target).startswith('scale_')])}"
            net.add_module(name, Scale(factor))
            with graph.inserting_before(node):
                node.replace_input_with(source, graph.call_module(name, (source,)))

    for node in list(graph.nodes):
        neuron = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(neuron, SpikingNeuron):
            continue
        if neuron.threshold.numel() != 1:
            raise UserError(f"{node.target}: only a scalar threshold can be folded into weights")
        for user in list(node.users):
            push(user, node, neuron.threshold)
        neuron.unit_spikes = True
    graph.lint()
    return fx.GraphModule(net, graph)
