"""Rewrites in-place operations of a ``forward`` as operations that return a new value.

In a simulation, an in-place operation would change the images at each pass, or a value into which time is folded. Other
names of the same memory are followed: after ``res = y; y += f(y)``, ``res`` is the sum.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bench.errors import UserError
from bench.snn.graph.check import owner, shape_nodes
from bench.snn.graph.trace import ImageShape, called, first_input, interpret

_OPERATORS: dict[object, Callable[..., object]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.imatmul: operator.matmul,
}


class _Memory(NamedTuple):
    """Where a tensor lies."""

    storage: int
    layout: tuple[object, ...]


def make_functional(net: nn.Module, graph: fx.Graph, image: ImageShape = None) -> bool:
    """Rewrites each in-place operation of a graph, which is changed.

    Args:
        net: network; its modules' ``inplace`` is switched off.
        graph: the network's graph.
        image: shape of one image, if known.

    Returns:
        Whether there was an in-place operation.

    Raises:
        UserError: an operation changes a parameter or buffer, or a part of a value that is read again; the message
            names it.
    """
    sizes = shape_nodes(graph)
    due = [node for node in graph.nodes if node not in sizes and _is_in_place(net, node)]
    if not due:
        return False
    memory = _memory(net, graph, image)
    for node in due:
        source = first_input(node)
        assert source is not None
        if source.op == "get_attr":
            raise UserError(
                f"{_where(node)} changes {source.target} in place; a network must not change itself in evaluation"
            )
        _follow(graph, node, source, memory)
        _rewrite(net, node)
    return True


def _is_in_place(net: nn.Module, node: fx.Node) -> bool:
    if first_input(node) is None:
        return False
    if node.op == "call_module":
        return bool(getattr(called(net, node), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.op == "call_function" and (_functional(node.target) is not None or bool(node.kwargs.get("inplace")))


def _functional(target: object) -> Callable[..., object] | None:
    """Returns the function that computes what ``target`` writes in place; ``None`` if ``target`` is not in-place."""
    if target in _OPERATORS:
        return _OPERATORS[target]
    name = getattr(target, "__name__", "")
    own = [home for home in (torch, F) if getattr(home, name, None) is target and name.endswith("_")]
    return next((getattr(home, name[:-1]) for home in own if hasattr(home, name[:-1])), None)


def _memory(net: nn.Module, graph: fx.Graph, image: ImageShape) -> dict[fx.Node, _Memory]:
    """Finds the memory of each value in a run of the network as written."""
    found: dict[fx.Node, _Memory] = {}
    kept: list[object] = []  # so that no memory is used again

    def note(node: fx.Node, result: object) -> None:
        kept.append(result)
        if isinstance(result, Tensor):
            layout = (result.shape, result.stride(), result.storage_offset())
            found[node] = _Memory(result.untyped_storage()._cdata, layout)  # data_ptr() is 0 without data

    interpret(net, graph, image, note)
    return found


def _follow(graph: fx.Graph, node: fx.Node, source: fx.Node, memory: dict[fx.Node, _Memory]) -> None:
    """Makes every later reader of the memory that ``node`` overwrites, under any name, read its result."""
    order = {other: position for position, other in enumerate(graph.nodes)}
    storage, layout = memory[source]
    names = [other for other in graph.nodes if order[other] < order[node] and other in memory]
    names = [other for other in names if memory[other].storage == storage]
    renewed = {other: node for other in names if memory[other].layout == layout}
    end = node

    def renew(other: fx.Node) -> fx.Node:
        """Returns the value of a name after ``node``: its result, or the same view of it."""
        nonlocal end
        if other not in renewed:
            parent = first_input(other)
            if parent is None or parent not in names:
                raise UserError(
                    f"{_where(node)} works in place on a part of a value that is read again; use its result"
                )
            base = renew(parent)
            with graph.inserting_after(end):
                end = graph.node_copy(other, lambda old: base if old is parent else old)
            memory[end] = memory[other]
            renewed[other] = end
        return renewed[other]

    for other in names:
        for user in [user for user in other.users if order.get(user, -1) > order[node]]:
            user.replace_input_with(other, renew(other))


def _rewrite(net: nn.Module, node: fx.Node) -> None:
    if module := called(net, node):
        setattr(module, "inplace", False)  # noqa: B010 - to mypy any attribute of a module is a tensor or a module
    elif node.op == "call_method":
        node.target = str(node.target).removesuffix("_")
    elif (functional := _functional(node.target)) is not None:
        node.target = functional
    else:
        node.kwargs = {**node.kwargs, "inplace": False}


def _where(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return f"{owner(node) or 'the network'} calls {name}, which" if node.op != "call_module" else f"{name}"
