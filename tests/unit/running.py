"""What the tests do with a converted network again and again: run it, and look at what its layers send."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from bench.snn.simulate import SpikingNetwork, simulate

EVERYTHING = 10**6  # image-steps enough for one pass


def run(snn: SpikingNetwork, x: Tensor, T: int, image_steps: int | None = EVERYTHING) -> tuple[Tensor, Tensor]:
    """Logits ``[T, B, classes]`` and spikes of each counted step ``[T]``, put together from the parts."""
    parts = list(simulate(snn, x, T, image_steps))
    spikes = torch.stack([counts.spikes.sum(0)[snn.counted(T)] for _, counts in parts])
    return torch.cat([logits for logits, _ in parts], 1), spikes.sum(0)


def logits_of(snn: SpikingNetwork, x: Tensor, T: int, image_steps: int | None = None) -> Tensor:
    """``[T, B, classes]``."""
    return run(snn, x, T, image_steps)[0]


@contextmanager
def _watched(net: nn.Module, kinds: tuple[type[nn.Module], ...], which: int) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)[which].clone()}))
        for name, module in net.named_modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        yield seen
    for hook in hooks:
        hook.remove()


def inputs(net: nn.Module, *kinds: type[nn.Module]) -> AbstractContextManager[dict[str, Tensor]]:
    """What each module of these kinds got last, by name."""
    return _watched(net, kinds, 0)


def outputs(net: nn.Module, *kinds: type[nn.Module]) -> AbstractContextManager[dict[str, Tensor]]:
    """What each module of these kinds gave last, by name."""
    return _watched(net, kinds, 1)


def spikes_of(snn: SpikingNetwork, x: Tensor, T: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and where each layer has sent something, ``[T, B, ...]``, in a run that is one pass (``T`` up to 8)."""
    with outputs(snn.net, *{type(neuron) for neuron in snn.neurons.values()}) as sent:
        logits, _ = run(snn, x, T)
    for name, out in sent.items():
        threshold = snn.neurons[name].threshold
        assert ((out == 0) | (out == threshold)).all(), name
    return logits, {name: out.unflatten(0, (T, len(x))) > 0 for name, out in sent.items()}
