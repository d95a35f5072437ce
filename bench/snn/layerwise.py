"""Calibration that goes through a network layer by layer, on the spikes that really arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bench.snn.activations import Activation
from bench.snn.calibration import Batch, Granularity, observe
from bench.snn.neurons import SpikingNeuron
from bench.snn.simulate import SpikingNetwork
from bench.snn.tracing import trace


def execution_order(net: nn.Module) -> list[str]:
    """Names of the activations and neurons, in the order in which a forward pass reaches them."""
    modules = dict(net.named_modules())
    calls = [str(node.target) for node in trace(net).nodes if node.op == "call_module"]
    return [name for name in calls if isinstance(modules[name], (Activation, SpikingNeuron))]


class _ReachedError(Exception):
    """Ends a forward pass behind the layer that was asked for; not an error."""


@torch.no_grad()
def spike_rates(net: nn.Module, name: str, batches: Sequence[Batch], T: int) -> Iterator[Tensor]:
    """Mean output over ``T`` steps of one neuron layer.

    Args:
        net: a network whose activations up to ``name`` are neurons; what follows is not run.
        name: of the layer.
        batches: images.
        T: steps.

    Yields:
        For a few images at a time, in order, ``[b, ...]``.
    """
    snn = SpikingNetwork(net)
    layer = snn.neurons[name]
    found: list[Tensor] = []

    def stop(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output)
        raise _ReachedError

    at_once = max(1, snn.image_steps(batches[0][0]) // T)
    hook = layer.register_forward_hook(stop)
    try:
        for images, _ in batches:
            for part in torch.split(images, at_once):
                snn.reset()
                try:
                    snn(part, T)
                except _ReachedError:
                    yield snn.clock.unfold(found.pop()).mean(0)
    finally:
        hook.remove()
        snn.reset()


def mean_activations(net: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Mean over images of every neuron's activation in the ANN, by layer name."""
    sums: dict[str, Tensor] = {}

    def add(name: str, _: Tensor, output: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros(())) + output.double().sum(0)

    images = observe(net, batches, add)
    return {name: (total / images).float() for name, total in sums.items()}


@torch.no_grad()
def layer_gaps(net: nn.Module, snn: SpikingNetwork, images: Tensor, T: int) -> dict[str, Tensor]:
    """What each layer of the SNN lacks of its ANN, both run end to end.

    Args:
        net: the ANN.
        snn: its conversion, whose layers have the same names.
        images: ``[B, C, H, W]``.
        T: steps.

    Returns:
        By layer name, ``a - mean over T of the neuron's output``, in the shape of the activation.
    """
    gaps: dict[str, Tensor] = {}
    observe(net, [(images, images)], lambda name, _, output: gaps.update({name: output}))

    def subtract(name: str, _: Tensor, output: Tensor) -> None:
        gaps[name] = gaps[name] - snn.clock.unfold(output).mean(0)

    snn.reset()
    snn.clock.T, snn.clock.batch = T, len(images)
    inputs = images.expand(T, *images.shape).flatten(0, 1) if snn.repeat_input else images
    observe(snn.net, [(inputs, inputs)], subtract, SpikingNeuron)
    snn.reset()
    return gaps


def per_channel(mean_CX: Tensor) -> Tensor:
    """Mean over all but the channels, ``[C, 1, 1]`` (or ``[F]`` as it is)."""
    return mean_CX.flatten(1).mean(1).view(-1, *[1] * (mean_CX.ndim - 1)) if mean_CX.ndim > 1 else mean_CX


@torch.no_grad()
def mse_thresholds(
    net: nn.Module,
    batches: Sequence[Batch],
    T: int,
    granularity: Granularity = "layer",
    candidates: int = 95,
    momentum: float = 0.9,
) -> dict[str, Tensor]:
    """Thresholds that quantise activations with the least mean square error.

    For each batch the best of ``max (1 - 0.01 i)``, ``i = 0 .. candidates - 1``, by the error of
    ``theta / T clip(floor(a T / theta), 0, T)`` against ``a``; over the batches a running average.

    Args:
        net: the ANN.
        batches: calibration images.
        T: steps, the number of levels.
        granularity: ``layer`` or ``channel``.
        candidates: size of the grid.
        momentum: of the running average.

    Returns:
        Thresholds by layer name, scalars or ``[C, 1, 1]``.
    """
    found: dict[str, Tensor] = {}

    def search(name: str, _: Tensor, output: Tensor) -> None:
        a = output.transpose(0, 1).flatten(1) if granularity == "channel" else output.reshape(1, -1)
        largest = a.amax(1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
        best, least = largest, torch.full_like(largest, float("inf"))
        for i in range(candidates):
            theta = largest * (1 - 0.01 * i)
            error = torch.floor(a * (T / theta)).clamp_(0, T).mul_(theta / T).sub_(a).square_().sum(1, keepdim=True)
            best, least = torch.where(error < least, theta, best), torch.minimum(error, least)
        shape = (output.shape[1], *[1] * (output.ndim - 2)) if granularity == "channel" else ()
        best = best.reshape(shape)
        found[name] = momentum * found[name] + (1 - momentum) * best if name in found else best

    observe(net, batches, search)
    return found
