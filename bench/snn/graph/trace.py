"""The dataflow of a network, as ``torch.fx`` sees it.

The argument ``image`` of these functions is the shape of one image. It answers questions about shapes in a ``forward``
(``if x.shape[-1] < 7``). ``None`` stands for the shape that timm gives for its net, else that of a CIFAR image.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Sequence

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target

from bench.errors import UserError, first_line
from bench.snn.activations import Activation
from bench.snn.neurons import SpikingNeuron, Timed
from bench.snn.pooling import LateralInhibitionPool

# The shape of one image, if known.
ImageShape = Sequence[int] | None
_CIFAR = (3, 32, 32)


def known_image(net: nn.Module, image: ImageShape) -> Sequence[int] | None:
    """Returns the given image shape, or the one that timm gives for its net."""
    return image or (getattr(net, "pretrained_cfg", None) or {}).get("input_size")


def _on_meta(net: nn.Module, graph: fx.Graph, image: ImageShape) -> tuple[fx.GraphModule, torch.Tensor]:
    """Returns the net and an image on the meta device, which has shapes but no values."""
    # Weights are replaced before the copy, so that a large network is not copied for every question.
    memo: dict[int, object] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in net.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in net.buffers()}
    # The GraphModule turns tensors that are plain attributes into buffers, so they move as well.
    nowhere = fx.GraphModule(copy.deepcopy(net, memo).eval(), graph).to("meta")
    return nowhere, like_image(nowhere, known_image(net, image) or _CIFAR)


def like_image(net: nn.Module, image: Sequence[int]) -> torch.Tensor:
    """Returns an image of zeros, ``[1, C, H, W]``, with the type and device of a network's parameters."""
    return torch.zeros(1, *image).to(some_value(net))


def some_value(net: nn.Module) -> torch.Tensor:
    """Returns a floating-point parameter or buffer of a network, or else an empty tensor, for its type and device."""
    # Conversion may have turned parameters into buffers, and a network may have neither.
    values = (value for value in (*net.parameters(), *net.buffers()) if value.is_floating_point())
    return next(values, torch.zeros(0))


# Not torch's ShapeProp: it runs neurons and hooks, and drops values that are not tensors, which the wiring needs.
class _Shapes(fx.Interpreter):
    """Notes the result of each node. Calls ``forward`` directly: during a trace, calling a module would be traced."""

    def call_module(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> object:
        module, x = self.fetch_attr(str(target)), next(iter((*args, *kwargs.values())))
        if isinstance(module, SpikingNeuron):
            assert isinstance(x, torch.Tensor)
            module.require_shape(x.shape[1:])
            return x
        if isinstance(module, LateralInhibitionPool):
            return module.pool.forward(x)
        return module.forward(*args, **kwargs)

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shape"] = result.shape[1:]
        else:
            n.meta["value"] = result
        return result


class _Proxy(fx.Proxy):
    """A value in a trace. torch's own takes ``y += x`` for ``y = y + x``: other names of ``y`` keep the old value."""

    def _in_place(self, operation: Callable[..., object], other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    def __iadd__(self, other: object) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: object) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: object) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: object) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)

    def __imatmul__(self, other: object) -> fx.Proxy:
        return self._in_place(operator.imatmul, other)

    def __setitem__(self, where: object, value: object) -> None:
        raise fx.proxy.TraceError("its forward writes into a part of a tensor; join the parts with torch.cat")

    def __len__(self) -> int:
        raise fx.proxy.TraceError("its forward calls len() of a tensor; write x.shape[0]")


def is_patched(module: nn.Module) -> bool:
    """Whether a module has its own ``forward`` instead of that of its class."""
    return "forward" in vars(module)


class _Tracer(fx.Tracer):
    """Keeps activations whole, answers questions about shapes with an example, and leaves options at their defaults.

    Attributes:
        asked: whether a question about a shape was answered.
    """

    # The default is needed for unpickling: torch then makes a tracer of the same kind.
    def __init__(self, image: ImageShape = None) -> None:
        super().__init__()
        self.image, self.asked = image, False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_patched(m):
            return False
        return isinstance(m, (Activation, Timed)) or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., object], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., object], list[object]]:
        """Traces the images only; other arguments keep their defaults, as the network is called with images alone."""
        if isinstance(self.root, nn.Module) and is_patched(self.root):
            own = self.root.forward

            def root_fn(_: object, images: object) -> object:
                return own(images)

        parameters = list(inspect.signature(self.root.forward).parameters.values())
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            raise UserError(f"{type(self.root).__name__}: its forward takes no images as its first argument")
        images, *others = parameters
        optional = (images.VAR_POSITIONAL, images.VAR_KEYWORD)
        if needed := [other.name for other in others if other.default is other.empty and other.kind not in optional]:
            raise UserError(
                f"{type(self.root).__name__}: its forward needs {', '.join(needed)} besides the images; give a module "
                "whose forward takes images alone"
            )
        return root_fn, [self.root, self.create_proxy("placeholder", images.name, (), {})]

    def to_bool(self, obj: fx.Proxy) -> bool:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self.graph, copies)
        graph.output(copies[obj.node])
        nowhere, example = _on_meta(self.root, graph, self.image)
        answer = _Shapes(nowhere).run(example)
        if isinstance(answer, torch.Tensor):
            raise fx.proxy.TraceError("its forward pass depends on the values of the images")
        if known_image(self.root, self.image) is None:
            raise fx.proxy.TraceError("its forward pass asks for the shape of the images, which is not known here")
        self.asked = True
        return bool(answer)


def traced(net: nn.Module, image: ImageShape = None) -> tuple[fx.Graph, bool]:
    """:func:`trace`, and whether ``forward`` asked for the shape of the images, which then decides what is traced."""
    tracer = _Tracer(image)
    try:
        graph: fx.Graph = tracer.trace(net)
    except UserError:
        raise
    except Exception as error:  # whatever a forward pass may raise
        reason = first_line(error, 1000)
        raise UserError(f"{type(net).__name__} cannot be converted: torch.fx cannot trace it ({reason})") from error
    return graph, tracer.asked


def trace(net: nn.Module, image: ImageShape = None) -> fx.Graph:
    """Traces the dataflow of ``net``, with torch's own layers, activations and neurons as nodes.

    Raises:
        UserError: the forward pass depends on the data or needs more than images, so it cannot be traced.
    """
    return traced(net, image)[0]


class _Watched(_Shapes):
    """Reports the result of each node."""

    def __init__(self, net: fx.GraphModule, see: Callable[[fx.Node, object], None]) -> None:
        super().__init__(net)
        self.see = see

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        self.see(n, result)
        return result


@torch.no_grad()
def interpret(
    net: nn.Module, graph: fx.Graph, image: ImageShape, see: Callable[[fx.Node, object], None], batch: int = 1
) -> None:
    """Runs a graph of a network without computing anything, to get shapes and memory layout.

    Args:
        net: network.
        graph: the network's graph.
        image: shape of one image, if known.
        see: called with each node and its result, in order.
        batch: number of images.

    Raises:
        UserError: the network does not take such images.
    """
    nodes: dict[fx.Node, fx.Node] = {}
    copied = fx.Graph()
    result = copied.graph_copy(graph, nodes)
    copied.output(result)
    original = {copy: node for node, copy in nodes.items()}
    nowhere, example = _on_meta(net, copied, image)
    shown = {node.name: original[node] for node in copied.nodes if node in original}
    runner = _Watched(nowhere, lambda node, value: see(shown[node.name], value) if node.name in shown else None)
    try:
        runner.run(example.expand(batch, *example.shape[1:]).clone())
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise does_not_take(net, example.shape[1:], error) from error


def does_not_take(net: nn.Module, image: Sequence[int], error: Exception) -> UserError:
    """Returns the error for images that a network does not take."""
    assumed = "; give calibration images of the shape that it takes" if tuple(image) == _CIFAR else ""
    return UserError(f"{type(net).__name__} does not take images of shape {list(image)} ({first_line(error)}){assumed}")


@torch.no_grad()
def note_shapes(net: fx.GraphModule, image: torch.Tensor) -> None:
    """Notes the result of each node: its shape for one image in ``meta["shape"]``, other values in ``meta["value"]``.

    No neuron runs: their state stays as it is, and no hook is called.

    Args:
        net: a traced network.
        image: one, ``[1, C, H, W]``.
    """
    _Shapes(net).run(image)


def trace_shapes(net: nn.Module, image: ImageShape = None) -> fx.Graph:
    """:func:`trace`, and in ``meta["shape"]`` of each node the shape of one image's result; nothing is computed."""
    graph = trace(net, image)
    note_shapes(*_on_meta(net, graph, image))
    return graph


def input_shapes(net: nn.Module, kind: type[nn.Module], image: ImageShape = None) -> dict[str, torch.Size]:
    """Returns the input shape of each module of a kind, for one image, by name; nothing is computed."""
    nodes = [node for node in trace_shapes(net, image).nodes if isinstance(called(net, node), kind)]
    return {str(node.target): node.all_input_nodes[0].meta["shape"] for node in nodes}


def called(net: nn.Module, node: fx.Node) -> nn.Module | None:
    """Returns the module that a node calls; ``None`` if the node does not call a module."""
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


def first_input(node: fx.Node) -> fx.Node | None:
    """Returns the input of a call, given by position or by name; ``None`` if it is a number."""
    given = node.args[0] if node.args else node.kwargs.get("input")
    return given if isinstance(given, fx.Node) else None


def segment(net: nn.Module, name: str, image: ImageShape = None) -> tuple[fx.GraphModule, list[str]]:
    """Extracts the part of a network that computes one activation's input from the activations before it.

    Args:
        net: network; the part shares its parameters.
        name: name of the activation or neuron.
        image: shape of one image.

    Returns:
        A module that takes the outputs of the activations before it (or the image), in order, and the names of these
        activations; the image's name is ``""``.
    """
    graph = trace(net, image)

    def is_edge(node: fx.Node) -> bool:
        return node.op == "placeholder" or isinstance(called(net, node), (nn.ReLU, Activation, Timed))

    goal = next(node for node in graph.nodes if node.op == "call_module" and node.target == name)
    needed = set(goal.all_input_nodes)
    for node in reversed(graph.nodes):
        if node in needed and not is_edge(node):
            needed.update(node.all_input_nodes)
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    names: list[str] = []
    for node in graph.nodes:
        if node in needed and is_edge(node):
            copies[node] = part.placeholder(f"edge_{len(names)}")
            names.append("" if node.op == "placeholder" else str(node.target))
        elif node in needed:
            copies[node] = part.node_copy(node, lambda old: copies[old])
    part.output(copies[goal.all_input_nodes[0]])
    part.lint()
    return fx.GraphModule(net, part), names
