"""Passes over calibration images, and the rules that derive thresholds from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation, ClippedReLU, QCFSActivation, ReLUActivation

Batch = tuple[Tensor, Tensor]
See = Callable[[str, Tensor, Tensor], None]
Granularity = Literal["layer", "channel", "neuron"]
# Makes about 20 batches of the 1,024 images of SNNC, which averages its thresholds over batches.
CALIBRATION_BATCH = 50


def require_batch(images: int, batch: int) -> None:
    """Refuses a calibration set that is smaller than one batch.

    Raises:
        UserError: ``images`` is below ``batch``.
    """
    if images < batch:
        raise UserError(f"--model.calibration_images {images}: must be at least one batch, --model.batch {batch}")


def joined(calibration: Sequence[Batch], batch: int) -> Tensor:
    """Joins the calibration images, ``[N, C, H, W]``.

    Raises:
        UserError: there are fewer than one batch.
    """
    count = sum(len(images) for images, _ in calibration)
    if not count:
        raise UserError("conversion needs calibration images and got none")
    if count < batch:
        raise UserError(f"{count} calibration images: fewer than one batch of {batch}; give more, or a smaller batch")
    return torch.cat([images for images, _ in calibration])


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Puts a network in evaluation mode; each of its modules returns to its mode afterwards."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def watching(
    net: nn.Module, see: See, kind: type[nn.Module] | tuple[type[nn.Module], ...] = Activation
) -> Iterator[None]:
    """Puts a network in evaluation mode without gradients, and reports input and output of each module of a kind.

    Args:
        net: network.
        see: called with layer name, input and output, for every batch.
        kind: type or types of the modules that are watched.
    """
    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: see(name, inputs[0], output))
        for name, module in net.named_modules()
        if isinstance(module, kind)
    ]
    try:
        with evaluating(net), torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def observe(net: nn.Module, batches: Iterable[Batch], see: See) -> int:
    """Runs images through a network and reports input and output of each activation (:func:`watching`).

    Args:
        net: network.
        batches: images ``[B, C, H, W]`` and labels.
        see: called with layer name, input and output, for every batch.

    Returns:
        The number of images.

    Raises:
        UserError: there are no images.
    """
    images = 0
    with watching(net, see):
        for batch, _ in batches:
            net(batch)
            images += len(batch)
    if not images:
        raise UserError("conversion needs calibration images and got none")
    return images


def units(values: Tensor, granularity: Granularity) -> tuple[Tensor, tuple[int, ...]]:
    """Reshapes activations ``[B, ...]`` to one row for each threshold; also returns the shape of the thresholds."""
    if granularity == "neuron":
        return values.flatten(1).T, tuple(values.shape[1:])
    if granularity == "channel":
        return values.transpose(0, 1).flatten(1), (values.shape[1], *[1] * (values.ndim - 2))
    return values.reshape(1, -1), ()


def activation_percentiles(
    net: nn.Module, batches: Sequence[Batch], percentile: float, granularity: Granularity = "layer"
) -> dict[str, Tensor]:
    """Computes a percentile of each layer's activations over all calibration images, interpolated as by numpy.

    Only the largest values are kept: the 99.9th percentile of 10 million values needs 10 thousand of them.

    Args:
        net: network whose activations are :class:`Activation`.
        batches: calibration images.
        percentile: 0 to 100; 100 is the maximum.
        granularity: one value for each layer (scalar), channel ``[C, 1, 1]`` or neuron ``[C, H, W]``.

    Returns:
        Thresholds by layer name. A unit that is never active gets the smallest positive number, since a threshold must
        be positive. If another image activates it, it sends that number at every step: this adds nothing to any sum,
        but counts as a spike.
    """
    total = sum(len(images) for images, _ in batches)
    kept: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def see(name: str, _: Tensor, output: Tensor) -> None:
        rows, shapes[name] = units(output.detach().float(), granularity)
        counts[name] = count = total * rows.shape[1] // len(output)
        largest = count - math.floor((count - 1) * percentile / 100)
        pool = torch.cat([kept[name], rows], 1) if name in kept else rows
        kept[name] = pool.topk(min(largest, pool.shape[1]), dim=1, sorted=False).values

    observe(net, batches, see)
    smallest = torch.finfo(torch.float32).tiny
    result = {}
    for name, pool in kept.items():
        position = (counts[name] - 1) * percentile / 100
        ascending = pool.double().sort(1).values
        low, high = ascending[:, 0], ascending[:, min(1, ascending.shape[1] - 1)]
        value = low + (high - low) * (position - math.floor(position))
        result[name] = value.float().clamp_min(smallest).reshape(shapes[name])
    return result


def set_thresholds(net: nn.Module, thresholds: dict[str, Tensor]) -> None:
    """Gives each named activation its ``theta``, in place."""
    for name, threshold in thresholds.items():
        net.get_submodule(name).threshold = threshold.detach().clone()


def require_activation(net: nn.Module, kind: type[Activation], method: str, source: str) -> None:
    """Refuses a source net of another kind.

    Raises:
        UserError: names the first activation that is not of ``kind``.
    """
    known = {ReLUActivation: "ReLU", ClippedReLU: "clipped ReLU", QCFSActivation: "QCFS"}
    for name, module in net.named_modules():
        if isinstance(module, Activation) and not isinstance(module, kind):
            found = known.get(type(module), type(module).__name__)
            raise UserError(
                f"{method} converts a {source} net, and {name} is a {found} activation; python -m bench list "
                "shows which net each method converts"
            )
