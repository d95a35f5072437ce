"""Replaces modules of a network by their type."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from timm.layers import BatchNormAct2d
from torch import nn

from bench.errors import UserError

M = TypeVar("M", bound=nn.Module)


def replace(net: nn.Module, kind: type[M], make: Callable[[str, M], nn.Module]) -> int:
    """Replaces each submodule of a type, in place.

    Args:
        net: changed in place.
        kind: type to look for (subclasses included).
        make: called with qualified name and old module, returns the new one.

    Returns:
        The number of replaced modules.

    Raises:
        UserError: ``make`` refused one; the message names the module.
    """
    found = [(name, module) for name, module in net.named_modules() if isinstance(module, kind) and name]
    for name, module in found:
        try:
            new = make(name, module)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        put(net, module, new.train(module.training))
    return len(found)


def put(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replaces a module under all its names: it may be an attribute and also stand in a Sequential."""
    for name in [name for name, module in net.named_modules(remove_duplicate=False) if module is old]:
        net.set_submodule(name, new)


def split_norm_act(net: nn.Module) -> int:
    """Takes timm's fused BN-and-activation layers apart, so that the activation is a module like any other."""

    def split(_: str, fused: BatchNormAct2d) -> nn.Module:
        norm = nn.BatchNorm2d(fused.num_features, fused.eps, fused.momentum, fused.affine, fused.track_running_stats)
        norm.to(next(fused.parameters(), fused.running_mean))  # a network may be in double precision or on a GPU
        norm.load_state_dict({key: value for key, value in fused.state_dict().items() if key in norm.state_dict()})
        return nn.Sequential(OrderedDict(norm=norm, drop=fused.drop, act=fused.act))

    return replace(net, BatchNormAct2d, split)


_AVERAGE: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.MaxPool1d: nn.AvgPool1d,
    nn.MaxPool2d: nn.AvgPool2d,
    nn.MaxPool3d: nn.AvgPool3d,
    nn.AdaptiveMaxPool1d: nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool2d: nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool3d: nn.AdaptiveAvgPool3d,
}


def replace_max_pool(net: nn.Module) -> int:
    """Replaces max-pooling by average pooling: the maximum of spike trains is not the spike train of the maximum."""

    def average(_: str, pool: nn.Module) -> nn.Module:
        make = next(new for old, new in _AVERAGE.items() if isinstance(pool, old))
        if pool.return_indices or getattr(pool, "dilation", 1) not in (1, (1,), (1, 1), (1, 1, 1)):
            raise UserError("max-pooling with dilation or with returned indices has no average counterpart")
        if hasattr(pool, "output_size"):
            return make(pool.output_size)
        return make(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)

    return sum(replace(net, kind, average) for kind in _AVERAGE)
