"""Rewrites a user's network in the form that conversion knows: same function, same parameters, same names.

Networks express one operation in many ways: ReLU as a module, as a function, in place, or as a clamp; one module called
from several places; pooling, a layer or a constant inside ``forward``. Here each becomes the module that the rest of
the suite works on. Whatever is neither linear nor known stays, and :mod:`bench.snn.graph.check` refuses it by name.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from bench.snn.graph.check import MAX_POOLS, owner, shape_nodes
from bench.snn.graph.functional import make_functional
from bench.snn.graph.trace import ImageShape, called, first_input, interpret, is_patched, trace, traced

_RELU = {F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"}
_CLAMPS = {
    torch.clamp, torch.clip, torch.clamp_min, torch.clamp_max, F.hardtanh, "clamp", "clip", "clamp_min", "clamp_max",
}  # fmt: skip
_POOLS: dict[object, type[nn.Module]] = {
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    F.max_pool3d: nn.MaxPool3d,
    torch.max_pool1d: nn.MaxPool1d,
    torch.max_pool2d: nn.MaxPool2d,
    torch.max_pool3d: nn.MaxPool3d,
    F.adaptive_max_pool1d: nn.AdaptiveMaxPool1d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
    F.adaptive_max_pool3d: nn.AdaptiveMaxPool3d,
}
_CONVOLUTIONS: dict[object, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    torch.conv1d: nn.Conv1d,
    torch.conv2d: nn.Conv2d,
    torch.conv3d: nn.Conv3d,
}
_SOFTMAX = {F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax"}


class Canonical(NamedTuple):
    """The result of :func:`canonical`.

    Attributes:
        net: the network; its nonlinearities are ``nn.ReLU`` and ``nn.Hardtanh`` modules, each called once.
        last: the softmax that ended it, which is left out of ``net``; ``None`` if there was none.
        fixed_size: its ``forward`` asked for the shape of the images, so it is valid for that shape only.
    """

    net: nn.Module
    last: nn.Module | None
    fixed_size: bool


def canonical(net: nn.Module, image: ImageShape = None) -> Canonical:
    """Rewrites a network in the form that conversion knows.

    New modules are named after what they do (``relu``, ``relu_2``, ``pool`` ...) beside the layers whose ``forward``
    calls them.

    Args:
        net: in evaluation mode; may be changed in place, and its parameters are shared.
        image: shape of one image, if known.

    Raises:
        UserError: ``net`` cannot be traced, or works in place in a way that cannot be followed.
    """
    graph, asked = traced(net, image)
    changed = make_functional(net, graph, image)
    changed |= _fold_constants(net, graph)
    changed |= _by_position(graph)
    changed |= _squeeze_all_but_the_images(net, graph, image)
    changed |= any(is_patched(module) for module in net.modules())
    due = [*_spelt_as_functions(net, graph), *_called_again(net, graph)]
    last = _softmax_at_the_end(net, graph)
    if not (due or changed or asked or last):
        return Canonical(net, None, False)
    for node, wanted, module in due:
        name = _free_name(net, wanted)
        parent, _, own = name.rpartition(".")
        net.get_submodule(parent).add_module(own, module)
        with graph.inserting_before(node):
            new = graph.call_module(name, (first_input(node),))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    rebuilt = fx.GraphModule(net, graph, type(net).__name__).eval()
    rebuilt.graph.eliminate_dead_code()
    rebuilt.graph.lint()
    rebuilt.recompile()
    return Canonical(rebuilt, last, asked)


def _by_position(graph: fx.Graph) -> bool:
    """Passes modules their input by position: a neuron does not know the argument name of the layer it replaces."""
    due = [node for node in graph.nodes if node.op == "call_module" and not node.args and set(node.kwargs) == {"input"}]
    for node in due:
        node.args, node.kwargs = (node.kwargs["input"],), {}
    return bool(due)


def _squeeze_all_but_the_images(net: nn.Module, graph: fx.Graph, image: ImageShape) -> bool:
    """Keeps ``squeeze()`` from removing the batch dimension of a pass with one image."""
    due = [
        node
        for node in graph.nodes
        if node.target in (torch.squeeze, "squeeze") and _given(node, "", "dim").keys() <= {"", "input"}
    ]
    if not due or image is None:
        return False
    dimensions: dict[fx.Node, int] = {}

    def note(node: fx.Node, result: object) -> None:
        if isinstance(result, Tensor):
            dimensions[node] = result.ndim

    interpret(net, graph, image, note)
    for node in due:
        source = first_input(node)
        if source in dimensions:
            node.kwargs = {**node.kwargs, "dim": tuple(range(1, dimensions[source]))}
    return True


def _spelt_as_functions(net: nn.Module, graph: fx.Graph) -> Iterable[tuple[fx.Node, str, nn.Module]]:
    """Yields calls of functions that must become modules, each with the name and the module that it gets."""
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        for kind, make in _MAKERS.items():
            module = make(net, node)
            if module is not None:
                yield node, f"{owner(node)}.{kind}".lstrip("."), module
                break


def _called_again(net: nn.Module, graph: fx.Graph) -> Iterable[tuple[fx.Node, str, nn.Module]]:
    """Yields the second and later calls of a module that will have state once it is converted."""
    seen: Counter[str] = Counter()
    for node in graph.nodes:
        module = called(net, node)
        if isinstance(module, (nn.ReLU, nn.Hardtanh, *MAX_POOLS)):
            seen[str(node.target)] += 1
            if seen[str(node.target)] > 1:
                yield node, str(node.target), copy.deepcopy(module)


def _given(node: fx.Node, *names: str) -> dict[str, object]:
    """Returns the arguments of a call by name; the first name is that of its input."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _constant(net: nn.Module, value: object) -> Tensor | None:
    """Returns the constant tensor of a node; ``None`` if it depends on the image."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    path, _, name = str(value.target).rpartition(".")
    found = getattr(net.get_submodule(path), name)
    return found if isinstance(found, Tensor) else None


def _rectifier(net: nn.Module, node: fx.Node) -> nn.Module | None:
    if node.target in _RELU:
        return nn.ReLU()
    if node.target is F.relu6:
        return nn.ReLU6()
    if node.target not in _CLAMPS:
        return None
    hard = node.target is F.hardtanh
    low_name, high_name = ("min_val", "max_val") if hard else ("min", "max")
    if node.target in (torch.clamp_max, "clamp_max"):
        low_name, high_name = high_name, low_name
    given = _given(node, "input", low_name, high_name)
    low, high = given.get("min_val" if hard else "min"), given.get("max_val" if hard else "max")
    low, high = (-1.0 if hard and low is None else low), (1.0 if hard and high is None else high)
    if isinstance(low, bool) or not (high is None or (isinstance(high, (int, float)) and high > 0)):
        return None
    source = first_input(node)
    if low is None and high is not None and source is not None and _is_relu(net, source):
        # A ReLU followed by a clip is one rectifier, and becomes one neuron.
        before = first_input(source)
        assert before is not None
        node.replace_input_with(source, before)
    elif low != 0:
        return None
    return nn.ReLU() if high is None else nn.Hardtanh(0.0, float(high))


def _is_relu(net: nn.Module, node: fx.Node) -> bool:
    return node.target in _RELU or isinstance(called(net, node), nn.ReLU)


def _pool(net: nn.Module, node: fx.Node) -> nn.Module | None:
    kind = _POOLS.get(node.target)
    if kind is None:
        return None
    names: tuple[str, ...] = ("input", "output_size", "return_indices")
    if issubclass(kind, MAX_POOLS[0]):
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    options = {key: value for key, value in _given(node, *names).items() if key != "input"}
    if any(isinstance(value, fx.Node) for value in options.values()):
        return None
    if not options.get("stride", True):  # in PyTorch: the same as the kernel
        del options["stride"]
    return kind(**options)


def _layer(net: nn.Module, node: fx.Node) -> nn.Module | None:
    """``F.conv2d`` and ``F.linear`` with constant weights, and products with a constant matrix."""
    with_weights = node.target in _CONVOLUTIONS or node.target is F.linear
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = _given(node, *(names if with_weights else ("input", "other")))
    weight, bias = (_constant(net, given.get(name)) for name in ("weight" if with_weights else "other", "bias"))
    if weight is None or not isinstance(given["input"], fx.Node) or (given.get("bias") is not None and bias is None):
        return None
    if node.target in (torch.matmul, torch.mm, "matmul", "mm") or getattr(node.target, "__name__", "") == "matmul":
        return _with_weights(nn.Linear(1, 1), weight.T, None) if weight.ndim == 2 else None
    if node.target is F.linear:
        return _with_weights(nn.Linear(1, 1), weight, bias)
    if node.target not in _CONVOLUTIONS:
        return None
    options = {key: given[key] for key in names[3:] if key in given}
    if any(isinstance(value, fx.Node) for value in options.values()):
        return None
    make: Callable[..., nn.Conv1d | nn.Conv2d | nn.Conv3d] = _CONVOLUTIONS[node.target]
    channels = weight.shape[1] * int(str(options.get("groups", 1)))
    return _with_weights(make(channels, len(weight), tuple(weight.shape[2:]), **options), weight, bias)


def _with_weights(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, weight: Tensor, bias: Tensor | None
) -> nn.Module:
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def _norm(net: nn.Module, node: fx.Node) -> nn.Module | None:
    """``F.batch_norm`` with constant statistics; subclasses of ``nn.BatchNorm2d`` call it as well."""
    if node.target is not F.batch_norm:
        return None
    names = ("running_mean", "running_var", "weight", "bias")
    given = _given(node, "input", *names, "training", "momentum", "eps")
    values = {name: _constant(net, given.get(name)) for name in names}
    mean, eps = values["running_mean"], given.get("eps", 1e-5)
    missing = any(value is None and given.get(name) is not None for name, value in values.items())
    if mean is None or missing or given.get("training") or not isinstance(eps, float):
        return None
    norm = nn.SyncBatchNorm(len(mean), eps).to(mean)  # it takes inputs with any number of dimensions
    norm.load_state_dict({name: value for name, value in values.items() if value is not None}, strict=False)
    return norm.eval()


_MAKERS: dict[str, Callable[[nn.Module, fx.Node], nn.Module | None]] = {
    "relu": _rectifier,
    "pool": _pool,
    "layer": _layer,
    "norm": _norm,
}


def _fold_constants(net: nn.Module, graph: fx.Graph) -> bool:
    """Computes once what depends on parameters alone, such as standardised weights and learnt mixing factors."""
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (node.all_input_nodes and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
    made = [node for node in graph.nodes if node in constant and node.op not in ("get_attr", "output")]
    runner = fx.Interpreter(net, graph=graph)
    with torch.no_grad():
        for node in graph.nodes:
            if node in constant:
                runner.env[node] = runner.run_node(node)
    for node in made:
        value = runner.env[node]
        users = [user for user in node.users if user not in constant]
        if not users:
            continue
        if isinstance(value, Tensor):
            name = _free_name(net, f"{owner(node)}.constant".lstrip("."))
            parent, _, last = name.rpartition(".")
            net.get_submodule(parent).register_buffer(last, value.detach().clone())
            with graph.inserting_before(node):
                new: Argument = graph.get_attr(name)
        else:
            new = value

        def renewed(old: fx.Node, node: fx.Node = node, new: Argument = new) -> Argument:
            return new if old is node else old

        for user in users:
            user.args, user.kwargs = fx.node.map_arg(user.args, renewed), fx.node.map_arg(user.kwargs, renewed)
    for node in reversed(made):
        if not node.users:
            graph.erase_node(node)
    return bool(made)


def _softmax_at_the_end(net: nn.Module, graph: fx.Graph) -> nn.Module | None:
    """Removes a softmax that ends the network from its graph: it does not change the ranking of the classes."""
    output = next(node for node in graph.nodes if node.op == "output")
    node = output.args[0]
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    source, module = first_input(node), called(net, node)
    if source is None or node in shape_nodes(graph):
        return None
    if isinstance(module, (nn.Softmax, nn.LogSoftmax)):
        last: nn.Module = module
    elif node.op != "call_module" and node.target in _SOFTMAX:
        dim = _given(node, "input", "dim").get("dim")
        name = str(getattr(node.target, "__name__", node.target))
        last = (nn.LogSoftmax if "log" in name else nn.Softmax)(dim if isinstance(dim, int) else None)
    else:
        return None
    node.replace_all_uses_with(source)
    graph.erase_node(node)
    return last


def ceiling_of(module: nn.ReLU | nn.Hardtanh) -> float | None:
    """Returns the highest output of a rectifier, infinity for ``nn.ReLU``; ``None`` if it can be negative."""
    if isinstance(module, nn.ReLU):
        return math.inf
    return float(module.max_val) if module.min_val == 0 and module.max_val > 0 else None


def drop_uncalled(net: nn.Module, image: ImageShape = None) -> None:
    """Replaces, in place, each ReLU and max-pooling that ``forward`` never calls by an identity: it gets no input."""
    targets = {str(node.target) for node in trace(net, image).nodes if node.op == "call_module"}
    names: dict[nn.Module, set[str]] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.ReLU, nn.Hardtanh, *MAX_POOLS)):
            names.setdefault(module, set()).add(name)
    for own in names.values():
        if not own & targets:
            for name in own:
                net.set_submodule(name, nn.Identity())


def _free_name(net: nn.Module, wanted: str) -> str:
    parent, _, last = wanted.rpartition(".")
    there = dict(net.named_modules(remove_duplicate=False)).get(parent)
    names = itertools.chain([last], (f"{last}_{number}" for number in itertools.count(2)))
    free = next(name for name in names if not hasattr(there, name))
    return f"{parent}.{free}".lstrip(".")
