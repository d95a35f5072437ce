"""The suite as a library: converts and simulates your own net, without recipes, records or the command line."""

from __future__ import annotations

import copy
import inspect
import itertools
import keyword
import operator
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils.data import Dataset

from bench.errors import ConversionWarning, UserError, first_error, first_line, nearest
from bench.registry.entries import lookup
from bench.registry.methods import METHODS
from bench.snn.activations import QCFSActivation, ReLUActivation
from bench.snn.calibration import CALIBRATION_BATCH, Batch
from bench.snn.graph.canonical import canonical, ceiling_of, drop_uncalled
from bench.snn.graph.check import check_batch, check_convertible
from bench.snn.graph.hooks import with_hooks
from bench.snn.graph.trace import ImageShape, some_value
from bench.snn.guard import require_same_answers
from bench.snn.precision import full_precision
from bench.snn.readout import Readout
from bench.snn.replace import put, replace, split_norm_act
from bench.snn.simulate import SpikingNetwork
from bench.snn.simulate import simulate as simulate_parts
from methods.base import ConversionModule

# Parameters from which torch's weight normalisation and pruning compute a weight.
_COMPUTED = {"weight_g", "weight_v", "weight_orig"}
Calibration = Tensor | Iterable[object]
# Threshold and levels of a quantised activation, or a function that returns them for a user's module.
Quantised = tuple[float | Tensor, int] | Callable[[nn.Module], tuple[float | Tensor, int]]


@full_precision()
@torch.inference_mode(False)  # snnc_ap trains
def convert(
    model: nn.Module,
    method: str = "robust_norm",
    calibration: Calibration | None = None,
    T: int | None = None,
    thresholds: Mapping[str | type[nn.Module], Quantised] | str | None = None,
    **options: object,
) -> SpikingNetwork:
    """Converts a trained network into a spiking one.

    Every ReLU becomes a layer of integrate-and-fire neurons: ``nn.ReLU`` modules, ReLU as a function inside a
    ``forward``, and one module called from several places, which becomes one neuron layer for each call. Convolutions,
    linear layers, batch normalisation (in evaluation mode, folded), average pooling and additions stay, and so does
    everything else that is linear. ReLU6 and ``clamp(0, c)`` are converted by methods that send at most one spike in a
    step. Other operations are refused by name, and so is max-pooling by most methods (``burst``, ``dcgs``, ``hmt`` and
    ``ltb`` convert it).

    Args:
        model: a trained ReLU network, which is not changed; or a trained method of this suite (a
            :class:`methods.base.ConversionModule`), for methods that need another activation.
        method: name of the method; ``python -m bench list`` shows all. Methods that convert a ``relu`` net take any
            ReLU network. Methods that train take a net that they have trained themselves.
        calibration: training images as the network gets them, without augmentation: a tensor ``[N, C, H, W]``, or
            batches of images, or of images and labels, such as those of a ``DataLoader``. A method that needs
            calibration images uses the first ``calibration_images`` of them (an option of the method), or all if there
            are fewer.
        T: time-steps; needed if the conversion depends on it (``python -m bench list``: "one conversion per T").
        thresholds: for a network with your own modules as quantised activations, with ``qcfs`` and the methods that
            build on it. Maps the class or the name of these modules to threshold and levels (a number or a tensor
            broadcastable to one image's activation, and an integer), or to a function that returns both for a module:
            ``{TheirQCFS: lambda module: (module.thresh, module.L)}``. A string is the option of this name of ``dcgs``
            and ``hmt``.
        **options: options of the method, as ``--model.*`` on the command line: ``percentile=99.9``,
            ``granularity="channel"``; and of the converted network, as ``--snn.*``: ``delay="auto"``,
            ``permute=True``, ``draw_seed=1`` (:class:`bench.snn.readout.Readout`).

    Returns:
        The spiking network, for :func:`simulate`.

    Raises:
        UserError: a part of the network cannot be converted, or an argument is invalid; the message says which.
    """
    entry = lookup("method", str(method), METHODS)
    if T is not None and (T := _whole(T)) < 1:
        raise UserError(f"T = {T}: must be at least 1")
    if T is None and entry.per_T:
        raise UserError(f"{method} converts for one T; give convert(..., T=...)")
    kind, found = entry.load(), None
    if isinstance(thresholds, str):
        options["thresholds"], thresholds = thresholds, None
    if not isinstance(thresholds, Mapping | None):
        raise UserError(f"thresholds: must be a mapping from modules to threshold and levels, not {thresholds!r}")
    # draw_seed is the method's if it draws itself.
    shared = {"delay", "permute", "draw_seed"} - inspect.signature(kind).parameters.keys()
    asked = {name: options.pop(name) for name in shared & options.keys()}
    readout = Readout.of(_typed(method, typing.get_type_hints(Readout.__init__), asked))
    if entry.source is None and thresholds is not None and kind.of_trained is not None:
        kind = kind.of_trained
    elif entry.source is None and (not isinstance(model, kind) or options):
        choices = ", ".join(name for name, other in METHODS.items() if "relu" in other.sources)
        raise UserError(
            f"{method} converts only nets that it has trained, with the options of that training; to convert a ReLU "
            f"net, use {choices}"
        )
    images = iter(()) if calibration is None else _images(calibration)
    first = list(itertools.islice(images, 1))
    image = first[0].shape[1:] if first else None
    # An iterator can be read only once and must not lose its first batch.
    calibration = None if calibration is None else itertools.chain(first, images)
    if thresholds is not None and isinstance(model, ConversionModule):
        raise UserError(f"thresholds: {type(model).__name__} knows its own; leave them out")
    if isinstance(model, kind):
        if options:
            raise UserError(f"{min(options)}: the model is already a {kind.__name__} with its options; leave this out")
        converter: ConversionModule = model
    else:
        if isinstance(model, ConversionModule):  # trained by the suite: its activations are already known
            net = copy.deepcopy(model.net).eval()
            found = Prepared(copy.deepcopy(net), net)
        else:
            found = prepare(model, image, thresholds)
        known = _options_of(kind)
        if unknown := options.keys() - known.keys():
            name, names = min(unknown), sorted(known.keys() | shared)
            raise UserError(f"{method}: unknown option {name}; choose from {', '.join(names)}{nearest(name, names)}")
        converter = kind(found.net, **_typed(method, known, options))
    if readout.changes:
        converter = copy.copy(converter)
        converter.use(readout)
    batches = _batches(method, converter, calibration)
    if found is not None and first:
        seen = batches[0][0] if batches else first[0].to(some_value(model).device)
        require_same_answers(found.own, converter.folded(image), found.last, seen)
    with torch.no_grad():
        snn = converter.convert(sys.maxsize if T is None else T, batches, image).to(some_value(model).device)
    if found is not None:
        snn.only_image = torch.Size(image) if image and found.fixed_size else None
        for notice in found.notices:
            warnings.warn(notice, ConversionWarning, stacklevel=3)  # above the decorator's frame
    return snn


def _options_of(kind: type[ConversionModule]) -> dict[str, Any]:
    """Returns the types of a method's options by name, also of those that its class hands on to its base class."""
    hints: dict[str, Any] = {}
    for made in kind.__mro__:
        if "__init__" in vars(made):
            hints = typing.get_type_hints(vars(made)["__init__"]) | hints
            parameters = inspect.signature(vars(made)["__init__"]).parameters.values()
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
    return {name: hint for name, hint in hints.items() if name not in ("net", "kwargs", "return")}


def _typed(method: str, hints: Mapping[str, Any], options: Mapping[str, object]) -> dict[str, object]:
    """Checks options against their types, as the command line does."""
    typed = dict(options)
    for name in options.keys() & hints.keys():
        kind: TypeAdapter[object] = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
        try:
            typed[name] = kind.validate_python(options[name])
        except ValidationError as error:
            raise UserError(f"{method}: {name} = {options[name]!r}: {first_error(error)}") from error
    return typed


_HALF = (torch.float16, torch.bfloat16)


class Prepared(NamedTuple):
    """A user's network, prepared for conversion.

    Attributes:
        own: a copy of the user's network, in evaluation mode.
        net: the network with each ReLU as an activation that conversion knows.
        last: the softmax that ends ``own`` and is left out of ``net``; ``None`` if ``own`` ends without one.
        fixed_size: ``net`` is valid for images of one shape only, because its ``forward`` asked for the shape.
        notices: changes that a user should know about.
    """

    own: nn.Module
    net: nn.Module
    last: nn.Module | None = None
    fixed_size: bool = False
    notices: tuple[str, ...] = ()


def prepare(
    model: nn.Module,
    image: ImageShape = None,
    thresholds: Mapping[str | type[nn.Module], Quantised] | None = None,
) -> Prepared:
    """Copies a ReLU network in evaluation mode, with each ReLU as an activation that conversion knows.

    Args:
        model: the network, which is not changed.
        image: shape of one image, if known.
        thresholds: as for :func:`convert`.

    Raises:
        UserError: a part of the network cannot be converted; the message names it.
    """
    model, notices = _unwrapped(model), []
    _check_kind(model)
    own = _copied(model).eval().requires_grad_(False)
    for module in list(own.modules()):
        if (inner := _unwrapped(module)) is not module:
            put(own, module, inner)
    if half := next((parameter.dtype for parameter in own.parameters() if parameter.dtype in _HALF), None):
        own = own.float()
        notices.append(f"the network is {half}; it was converted in single precision, because membranes need it")
    _check_names(own)
    net = copy.deepcopy(own)
    _mark_quantised(net, thresholds or {})
    net = with_hooks(net, image)
    split_norm_act(net)
    form = canonical(net, image)
    net = form.net
    drop_uncalled(net, image)
    replace(net, nn.ReLU, _activation)
    replace(net, nn.Hardtanh, _activation)
    check_convertible(net, image)
    if image is not None:
        check_batch(net, image)
    if form.last is not None:
        kind = type(form.last).__name__
        notices.append(
            f"the {kind} that ends the network was left out; this does not change the ranking of the classes"
        )
    return Prepared(own, net, form.last, form.fixed_size, tuple(notices))


def _check_names(net: nn.Module) -> None:
    """Refuses names of layers that the generated code of torch.fx cannot have."""
    taken = {"code", "graph", "meta"} & {name for name, _ in net.named_children()}
    parts = {part for name, _ in net.named_modules() for part in name.split(".")}
    for name in sorted(taken | {part for part in parts if keyword.iskeyword(part)}):
        raise UserError(f"a layer is called {name}, which torch.fx cannot trace; rename it")


def _mark_quantised(net: nn.Module, thresholds: Mapping[str | type[nn.Module], Quantised]) -> None:
    """Replaces the user's quantised activations by QCFS activations, in place."""
    like = some_value(net)
    for key, given in thresholds.items():
        modules = dict(net.named_modules())
        names = [name for name, m in modules.items() if name == key or (isinstance(key, type) and isinstance(m, key))]
        shown = key.__name__ if isinstance(key, type) else key
        if not names:
            raise UserError(f"thresholds: the network has no {shown}{nearest(str(key), modules)}")
        for name in names:
            try:
                theta, levels = given(modules[name]) if callable(given) else given
                if int(levels) != levels:
                    raise ValueError(f"{levels} levels")
                activation = QCFSActivation(int(levels))
                activation.threshold = nn.Parameter(_one_image(torch.as_tensor(theta)).to(like), requires_grad=False)
            except Exception as error:  # whatever a user's function may raise
                raise UserError(
                    f"thresholds: no threshold and levels for {name} from {shown} ({str(error)[:100]}); give a number "
                    "or a tensor, and an integer"
                ) from error
            fits = (activation.threshold > 0) & torch.isfinite(activation.threshold)
            if not bool(fits.all()):
                wrong = activation.threshold[~fits][0].item()
                raise UserError(f"thresholds: the threshold of {name} is {wrong:.4g}, but must be positive and finite")
            if int(levels) < 1:
                raise UserError(f"thresholds: {name} has {levels} levels, but must have at least 1")
            put(net, modules[name], activation.to(activation.threshold).eval())


def _one_image(theta: Tensor) -> Tensor:
    """Returns a threshold without the batch dimension."""
    theta = theta.detach().clone()
    theta = theta if theta.is_floating_point() else theta.float()
    return theta.reshape(()) if theta.numel() == 1 else theta.squeeze(0) if theta.ndim == 4 else theta


def _activation(_: str, rectifier: nn.ReLU | nn.Hardtanh) -> nn.Module:
    """Returns the known activation for a rectifier; one with negative outputs stays, and is refused by name later."""
    ceiling = ceiling_of(rectifier)
    return rectifier if ceiling is None else ReLUActivation(ceiling)


def _copied(model: nn.Module) -> nn.Module:
    """Copies a network; tensors that an earlier call left on it, such as activations, lose their autograd history."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            parts = (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            )
            memo |= {id(x): x.detach().clone() for x in parts if isinstance(x, Tensor) and not x.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever an attribute may raise
        reason = first_line(error)
        raise UserError(
            f"{type(model).__name__} cannot be copied ({reason}); remove the attribute that prevents it"
        ) from error


def _unwrapped(model: nn.Module) -> nn.Module:
    """Returns the network inside the wrappers of parallel training and of ``torch.compile``."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@full_precision()
def simulate(snn: SpikingNetwork, x: Tensor, T: int) -> Tensor:
    """Runs images through a spiking network.

    Args:
        snn: from :func:`convert`.
        x: images ``[B, C, H, W]``, presented unchanged at each step (direct coding).
        T: counted time-steps; warm-up steps of the method are run before them.

    Returns:
        Logits of every counted step, ``[T, B, classes]``. Their sum over the first t steps is the network's score at
        T = t, so ``logits.cumsum(0).argmax(2)`` are its answers at every T. There are two exceptions: a network that
        was converted for one T, and one with a delayed read-out, whose score is ``snn.score(logits, T)``.

    Raises:
        UserError: ``snn`` is no such network or in half precision; ``x`` is no tensor, empty, or of another type or
            device than the network; ``T`` is not a positive integer, or the network was converted for another or a
            smaller ``T``.
    """
    if not isinstance(snn, SpikingNetwork):
        raise UserError(f"simulate: takes the network that convert returns, not a {type(snn).__name__}")
    T = _whole(T)
    if not isinstance(x, Tensor) or x.ndim < 2:
        found = f"a tensor {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise UserError(f"x: is {found}; give a tensor of images, [B, C, H, W]")
    parameter = next(snn.parameters(), None)
    expected = (parameter.dtype, parameter.device) if parameter is not None else (x.dtype, x.device)
    if expected[0] in _HALF:
        raise UserError(f"the spiking network is {expected[0]}, but membranes need single precision; use snn.float()")
    if not len(x):
        raise UserError("x: has no images; give at least one")
    if (x.dtype, x.device) != expected:
        raise UserError(f"x: is {x.dtype} on {x.device}, but the network is {expected[0]} on {expected[1]}; give "
                        f"x.to({str(expected[1])!r}, {expected[0]})")  # fmt: skip
    return torch.cat([part.logits for part in simulate_parts(snn, x, T)], 1)


def _whole(T: SupportsIndex) -> int:
    try:
        return operator.index(T)
    except TypeError as error:
        raise UserError(f"T = {T}: must be an integer") from error


@torch.no_grad()  # weights made in inference mode have no gradients
def _check_kind(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"model: is a {model.__name__ if isinstance(model, type) else type(model).__name__}"
                        "; give a trained nn.Module")  # fmt: skip
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise UserError(f"{name} has no shape yet; run the network once, and train it")
        if value.is_meta:
            raise UserError(f"{name} is on the meta device and has no values; load the trained ones")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{name or 'the model'} is a ScriptModule; give the original nn.Module")
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(
                f"{name} has values that are NaN or infinite; give a network whose training did not diverge"
            )
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise UserError(
                f"{name} is parametrized; remove this with torch.nn.utils.parametrize.remove_parametrizations"
            )
        if _COMPUTED & dict(module.named_parameters(recurse=False)).keys():
            raise UserError(
                f"{name}: its weight is computed from others; remove this with remove_weight_norm or prune.remove"
            )


def _batches(method: str, converter: ConversionModule, calibration: Calibration | None) -> list[Batch]:
    wanted = converter.calibration_images
    if not wanted:
        return []
    if calibration is None:
        raise UserError(f"{method} needs training images; give convert(..., calibration=images or loader)")
    like = some_value(converter)
    dtype, device = like.dtype, like.device
    found: list[Tensor] = []
    for images in _images(calibration):
        if images.dtype in _HALF:
            images = images.to(dtype)
        if images.dtype != dtype:
            raise UserError(
                f"calibration: images are {images.dtype}, but the network is {dtype}; give images.to({dtype})"
            )
        if not bool(torch.isfinite(images).all()):
            raise UserError("calibration: an image has a pixel that is NaN or infinite; leave it out")
        if found and images.shape[1:] != found[0].shape[1:]:
            raise UserError(
                f"calibration: images have different shapes, {list(found[0].shape[1:])} and {list(images.shape[1:])}"
            )
        images = images[:wanted].to(device)
        found.append(images)
        wanted -= len(images)
        if wanted <= 0:
            break
    # Batched as on the command line, because some methods average over batches.
    batches = torch.split(torch.cat(found), CALIBRATION_BATCH) if found else ()
    return [(images, torch.zeros(len(images), dtype=torch.long, device=device)) for images in batches]


def _images(calibration: Calibration) -> Iterator[Tensor]:
    """Yields batches of images, without labels."""
    if isinstance(calibration, Dataset) or not isinstance(calibration, Iterable):
        raise UserError(f"calibration: is a {type(calibration).__name__}; give a tensor of images or a DataLoader")
    if isinstance(calibration, Tensor):
        if calibration.ndim < 2 or calibration.is_meta or calibration.layout != torch.strided:
            raise UserError("calibration: must be a float tensor of images [N, C, H, W], dense and with values")
        if not len(calibration):
            raise UserError("calibration: has no images; give at least one")
    for batch in torch.split(calibration, 100) if isinstance(calibration, Tensor) else calibration:
        parts = list(batch.values()) if isinstance(batch, Mapping) else batch
        parts = parts if isinstance(parts, (tuple, list)) else [parts]
        # Labels and indices are integers or have one dimension; paths are strings.
        images = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point() and part.ndim > 1]
        if len(images) != 1:
            found = "no such tensor" if not images else f"{len(images)} of them"
            if not images and any(isinstance(part, np.ndarray) and part.dtype.kind == "f" for part in parts):
                found = "NumPy arrays; convert them with torch.from_numpy"
            raise UserError(
                "calibration: must be a float tensor of images [N, C, H, W], or batches that hold one (alone, beside "
                f"labels and indices, or in a dict); a batch has {found}"
            )
        yield images[0]
