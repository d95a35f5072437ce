"""The suite as a library: a net of one's own converted and simulated, without recipes, records or the command line."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import Dataset

from bench.errors import UserError
from bench.registry.entries import lookup
from bench.registry.methods import METHODS
from bench.snn.activations import ReLUActivation
from bench.snn.calibration import CALIBRATION_BATCH
from bench.snn.graph.check import check_convertible
from bench.snn.graph.separate import drop_uncalled_rectifiers, separate_rectifiers
from bench.snn.graph.trace import ImageShape
from bench.snn.readout import Readout
from bench.snn.replace import replace, split_norm_act
from bench.snn.simulate import SpikingNetwork
from bench.snn.simulate import simulate as simulate_parts
from methods.base import Batch, ConversionModule

Calibration = Tensor | Iterable[object]


def convert(
    model: nn.Module,
    method: str = "robust_norm",
    calibration: Calibration | None = None,
    T: int | None = None,
    **options: object,
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
        **options: of the method, as ``--model.*`` on the command line: ``percentile=99.9``, ``granularity="channel"``;
            and of the converted network, as ``--snn.*``: ``delay="auto"`` (:class:`bench.snn.readout.Readout`).

    Returns:
        The spiking network, for :func:`simulate`.

    Raises:
        UserError: the network has something that cannot be converted, or an argument does not fit; says what.
    """
    entry = lookup("method", method, METHODS)
    if T is not None and T < 1:
        raise UserError(f"T = {T}: must be at least 1")
    readout = Readout(**{name: options.pop(name) for name in ("delay", "permute") if name in options})  # type: ignore
    if T is None and entry.per_T:
        raise UserError(f"{method} converts for one T; give convert(..., T=...)")
    kind, image = entry.load(), None
    if entry.source is None:
        if not isinstance(model, kind) or options:
            choices = ", ".join(name for name, other in METHODS.items() if other.source)
            raise UserError(
                f"{method} converts what it has trained itself, with the options it was trained with; a trained net is "
                f"converted by {choices}"
            )
        converter: ConversionModule = model
    else:
        if calibration is not None:
            images = _images(calibration)
            first = list(itertools.islice(images, 1))
            image = first[0].shape[1:] if first else None
            # What can be read only once must not lose its first batch.
            calibration = itertools.chain(first, images)
        # A trained method's net is already marked for conversion.
        net = copy.deepcopy(model.net).eval() if isinstance(model, ConversionModule) else prepare(model, image)
        try:
            converter = kind(net, **options)
        except TypeError as error:
            raise UserError(f"{method}: {str(error).partition('() ')[2] or error}") from error
    if readout.changes:
        converter = copy.copy(converter)
        converter.use(readout)
    batches = _batches(method, converter, calibration)
    with torch.no_grad():
        return converter.convert(sys.maxsize if T is None else T, batches, image).to(_device(model))


def prepare(model: nn.Module, image: ImageShape = None) -> nn.Module:
    """A copy of a ReLU network, in evaluation mode, with each ReLU as an activation that conversion knows.

    Args:
        model: stays as it is.
        image: shape of one image, where known.

    Raises:
        UserError: names what cannot be converted.
    """
    _check_kind(model)
    net = copy.deepcopy(model).eval().requires_grad_(False)
    split_norm_act(net)
    net = separate_rectifiers(net, image)
    check_convertible(net, image)
    drop_uncalled_rectifiers(net, image)
    if image is not None:
        _check_answer(net, image)
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
    if not isinstance(snn, SpikingNetwork):
        raise UserError(f"simulate: takes what convert gives, not a {type(snn).__name__}")
    if not isinstance(T, int):
        raise UserError(f"T = {T}: must be an integer")
    parameter = next(snn.parameters(), None)
    expected = (parameter.dtype, parameter.device) if parameter is not None else (x.dtype, x.device)
    if not len(x) or (x.dtype, x.device) != expected:
        raise UserError(f"x: must be at least one image, {expected[0]} on {expected[1]} as the network is; it is "
                        f"{len(x)} of {x.dtype} on {x.device}")  # fmt: skip
    return torch.cat([part.logits for part in simulate_parts(snn, x, T)], 1)


def _check_kind(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("the model is a ScriptModule; give the module that it was made from")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            raise UserError(f"{name} is {parameter.dtype}, and membranes need single precision; give model.float()")
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise UserError(
                f"{name} is parametrized; torch.nn.utils.parametrize.remove_parametrizations makes it plain"
            )
        if any("weight_" in key for key in dict(module.named_parameters(recurse=False))):
            raise UserError(
                f"{name}: its weight is made from others; remove_weight_norm or prune.remove makes it plain"
            )


@torch.no_grad()
def _check_answer(net: nn.Module, image: Sequence[int]) -> None:
    """The network takes such images and answers with one score for each class."""
    parameter = next(net.parameters())
    try:
        answer = net(torch.zeros(1, *image, dtype=parameter.dtype, device=parameter.device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0][:150]
        raise UserError(f"{type(net).__name__} does not take images of shape {list(image)} ({reason})") from error
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        found = f"a tensor {list(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise UserError(f"{type(net).__name__} answers with {found}; it must be one tensor of logits [B, classes]")


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _batches(method: str, converter: ConversionModule, calibration: Calibration | None) -> list[Batch]:
    wanted = converter.calibration_images
    if not wanted:
        return []
    if calibration is None:
        raise UserError(f"{method} looks at training images; give convert(..., calibration=images or loader)")
    device = _device(converter)
    found: list[Tensor] = []
    dtype = next((parameter.dtype for parameter in converter.parameters()), torch.float32)
    for images in _images(calibration):
        if images.dtype != dtype:
            raise UserError(
                f"calibration: images are {images.dtype} and the network is {dtype}; give images.to({dtype})"
            )
        if found and images.shape[1:] != found[0].shape[1:]:
            raise UserError(
                f"calibration: images are of different shapes, {list(found[0].shape[1:])} and {list(images.shape[1:])}"
            )
        images = images[:wanted].to(device)
        found.append(images)
        wanted -= len(images)
        if wanted <= 0:
            break
    # As on the command line, however they came: some methods average over batches.
    batches = torch.split(torch.cat(found), CALIBRATION_BATCH) if found else ()
    return [(images, torch.zeros(len(images), dtype=torch.long, device=device)) for images in batches]


def _images(calibration: Calibration) -> Iterator[Tensor]:
    """Batches of images alone."""
    if isinstance(calibration, Dataset) or not isinstance(calibration, Iterable):
        raise UserError(f"calibration: is a {type(calibration).__name__}; give a tensor of images or a DataLoader")
    for batch in torch.split(calibration, 100) if isinstance(calibration, Tensor) else calibration:
        images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim < 2:
            raise UserError("calibration: must be a float tensor of images, or batches of images or (images, labels)")
        yield images
