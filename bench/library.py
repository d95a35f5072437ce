"""The suite as a library: a net of one's own converted and simulated, without recipes, records or the command line."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.registry import lookup
from bench.snn.activations import ReLUActivation
from bench.snn.graph import check_convertible
from bench.snn.rectifiers import separate_rectifiers
from bench.snn.simulate import SpikingNetwork
from bench.snn.simulate import simulate as simulate_parts
from bench.snn.surgery import replace, split_norm_act
from methods import METHODS
from methods.base import Batch, ConversionModule

Calibration = Tensor | Iterable[Any]


def convert(
    model: nn.Module,
    method: str = "robust_norm",
    calibration: Calibration | None = None,
    T: int | None = None,
    **options: Any,
) -> SpikingNetwork:
    """Converts a trained network into a spiking one.

    Every ReLU becomes a layer of integrate-and-fire neurons: ``nn.ReLU`` modules, ReLU as a function inside a
    ``forward``, and one module called from several places, which becomes a neuron layer for each. Convolutions, linear
    layers, batch normalisation (in evaluation mode, folded), average pooling and additions stay. Anything else, and
    max-pooling unless ``method="burst"``, is refused by name.

    Args:
        model: a trained ReLU network, which stays as it is; or a trained method of this suite (a
            :class:`methods.base.ConversionModule`), for the methods that need another activation.
        method: ``python -m bench list`` shows them. Those that convert a ``relu`` net take any ReLU network; those that
            train take a net that they have trained themselves.
        calibration: training images as the network gets them, without augmentation: a tensor ``[N, C, H, W]``, or
            batches of images, or of images and labels, such as a ``DataLoader`` gives. The first
            ``calibration_images`` of them are used (an option of the methods that look at images), or all if there are
            fewer.
        T: time-steps; needed where the conversion depends on it (``rts``, ``snnc_lp``, ``snnc_ap``).
        **options: of the method, as ``--model.*`` on the command line: ``percentile=99.9``, ``granularity="channel"``.

    Returns:
        The spiking network, for :func:`simulate`.

    Raises:
        UserError: the network has something that cannot be converted, or an argument does not fit; says what.
    """
    entry = lookup("method", method, METHODS)
    if T is not None and T < 1:
        raise UserError(f"T = {T}: must be at least 1")
    if T is None and entry.per_T:
        raise UserError(f"{method} converts for one T; give convert(..., T=...)")
    kind = entry.load()
    if entry.source is None:
        if not isinstance(model, kind) or options:
            choices = ", ".join(name for name, other in METHODS.items() if other.source)
            raise UserError(
                f"{method} converts what it has trained itself, with the options it was trained with; a trained net is "
                f"converted by {choices}"
            )
        converter: ConversionModule = model
    else:
        net = model.net if isinstance(model, ConversionModule) else model
        # A trained method's net is already marked for conversion.
        net = copy.deepcopy(net).eval() if isinstance(model, ConversionModule) else prepare(net)
        try:
            converter = kind(net, **options)
        except TypeError as error:
            raise UserError(f"{method}: {str(error).partition('() ')[2] or error}") from error
    batches = _batches(method, converter, calibration)
    with torch.no_grad():
        return converter.convert(sys.maxsize if T is None else T, batches).to(_device(model))


def prepare(model: nn.Module) -> nn.Module:
    """A copy of a ReLU network, in evaluation mode, with each ReLU as an activation that conversion knows.

    Raises:
        UserError: names what cannot be converted.
    """
    net = copy.deepcopy(model).eval().requires_grad_(False)
    split_norm_act(net)
    net = separate_rectifiers(net)
    check_convertible(net)
    replace(net, nn.ReLU, lambda _, __: ReLUActivation())
    return net


def simulate(snn: SpikingNetwork, x: Tensor, T: int) -> Tensor:
    """Runs images through a spiking network.

    Args:
        snn: from :func:`convert`.
        x: images ``[B, C, H, W]``, presented unchanged at each step (direct coding).
        T: counted time-steps; a method's warm-up steps come before them.

    Returns:
        Logits of every counted step, ``[T, B, classes]``. Their sum over the first t steps is the network's score at
        T = t (unless it was converted for one T), so ``logits.cumsum(0).argmax(2)`` are its answers at every T.

    Raises:
        UserError: ``T`` is not positive, or not the one that the network was converted for.
    """
    return torch.cat([logits_TBK for logits_TBK, _ in simulate_parts(snn, x, T)], 1)


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _batches(method: str, converter: ConversionModule, calibration: Calibration | None) -> list[Batch]:
    wanted = converter.calibration_images
    if not wanted:
        return []
    if calibration is None:
        raise UserError(f"{method} looks at training images; give convert(..., calibration=images or loader)")
    device, found = _device(converter), []
    for batch in torch.split(calibration, 100) if isinstance(calibration, Tensor) else calibration:
        images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim < 2:
            raise UserError("calibration: must be a float tensor of images, or batches of images or (images, labels)")
        images = images[:wanted].to(device)
        found.append((images, torch.zeros(len(images), dtype=torch.long, device=device)))
        wanted -= len(images)
        if wanted <= 0:
            break
    return found
