"""Makes forward hooks of a user's network part of its dataflow.

Conversion replaces and folds modules, and would lose their hooks without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bench.snn.graph.trace import ImageShape, does_not_take, like_image
from bench.snn.replace import put

Hook = Callable[..., object]
_Arguments = tuple[tuple[object, ...], dict[str, object]]


class Hooked(nn.Module):
    """A module together with the hooks that change its input or its output.

    Args:
        module: without hooks.
        before: pre-hooks, as ``(takes keyword arguments, hook)``.
        after: hooks, likewise.
    """

    def __init__(self, module: nn.Module, before: list[tuple[bool, Hook]], after: list[tuple[bool, Hook]]) -> None:
        super().__init__()
        self.module, self.before, self.after = module, before, after

    def forward(self, *args: object, **kwargs: object) -> object:
        """Calls the module with its hooks."""
        for keywords, hook in self.before:
            if keywords:
                args, kwargs = cast(_Arguments, hook(self.module, args, kwargs) or (args, kwargs))
            elif (new := hook(self.module, args)) is not None:
                args = new if isinstance(new, tuple) else (new,)
        result: object = self.module(*args, **kwargs)
        for keywords, hook in self.after:
            new = hook(self.module, args, kwargs, result) if keywords else hook(self.module, args, result)
            result = result if new is None else new
        return result


def with_hooks(net: nn.Module, image: ImageShape = None) -> nn.Module:
    """Moves hooks that change values into the network's ``forward``, and removes those that only look.

    Args:
        net: changed in place; a module with such hooks becomes the ``module`` of a :class:`Hooked`.
        image: shape of one image, used to find out which hooks change values; without it, all count as such.

    Returns:
        The network, itself a :class:`Hooked` if its own hooks change values.

    Raises:
        UserError: the network does not take such images.
    """
    hooked = [module for module in net.modules() if module._forward_hooks or module._forward_pre_hooks]
    if not hooked:
        return net
    changing = _changing(net, hooked, image) if image is not None else None
    for module in hooked:
        kept: list[list[tuple[bool, Hook]]] = []
        for hooks, with_keywords in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            (module._forward_hooks, module._forward_hooks_with_kwargs),
        ):
            kept.append(
                [(key in with_keywords, hook) for key, hook in hooks.items() if changing is None or key in changing]
            )
            hooks.clear()
            with_keywords.clear()
        if any(kept):
            wrapped = Hooked(module, *kept)
            wrapped.eval()
            if module is net:
                net = wrapped
            else:
                put(net, module, wrapped)
    return net


@torch.no_grad()
def _changing(net: nn.Module, hooked: Sequence[nn.Module], image: Sequence[int]) -> set[int]:
    """Returns the keys of the hooks that return a new value or change one in place."""
    found: set[int] = set()

    def watched(key: int, hook: Hook) -> Hook:
        def see(*args: object) -> object:
            tensors = _flat(args[1:])
            versions = [tensor._version for tensor in tensors]
            result = hook(*args)
            if result is not None or versions != [tensor._version for tensor in tensors]:
                found.add(key)
            return result

        return see

    before = [(hooks, dict(hooks)) for m in hooked for hooks in (m._forward_pre_hooks, m._forward_hooks)]
    try:
        for hooks, own in before:
            hooks.update({key: watched(key, hook) for key, hook in own.items()})
        net(like_image(net, image))
    except Exception as error:  # whatever a forward pass or a hook may raise
        raise does_not_take(net, image, error) from error
    finally:
        for hooks, own in before:
            hooks.update(own)
    return found


def _flat(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for part in value for tensor in _flat(part)] if isinstance(value, (tuple, list)) else []
