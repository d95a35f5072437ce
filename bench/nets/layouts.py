"""Maps the tensors of a foreign file to ours: by name, by the names of known repositories, or by order and shape."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.nets import architectures
from bench.nets.weight_files import COUNTERS, WeightFile
from bench.registry.nets import ARCHITECTURES

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
# A pattern and its replacement; the rules of a layout are applied one after the other.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
# Tensors of layers and normalisation. Every other tensor is the threshold of an activation, whatever its name (thresh
# in QCFS, up in COS and SRP).
LEAVES = ("weight", "bias", "running_mean", "running_var")
THRESHOLD = "threshold"
# The most names in an error message.
NAMED = 6


def _stage(first: int) -> Callable[[re.Match[str]], str]:
    """Renumbers stages, which start at ``first`` in the file and at 0 here."""
    return lambda match: f"stages.{int(match[1]) - first}."


LAYOUTS: Mapping[str, Sequence[Rule]] = {
    "our names": (),
    # Also those of timm, of chenyaofo/pytorch-cifar-models, kuangliu/pytorch-cifar, akamaster/pytorch_resnet_cifar10
    # and, with the number of the activation in its name, yhhhli/SNN_Calibration.
    "torchvision's names": (
        (r"^layer(\d)\.", _stage(1)),
        (r"\.downsample\.", ".shortcut."),
        (r"^(?:relu|act)1?\.threshold$", "act1.threshold"),
        (r"\.relu(\d)\.threshold$", r".act\1.threshold"),
        (r"^linear\.", "fc."),
    ),
    # putshua/SNN_conversion_QCFS, hzc1208/ANN2SNN_COS and hzc1208/ANN2SNN_SRP; their VGG is mapped by order and shape.
    "the names of QCFS, COS and SRP": (
        (r"^conv1\.0\.", "conv1."),
        (r"^conv1\.1\.", "bn1."),
        (r"^conv1\.2\.", "act1."),
        (r"^conv(\d)_x\.", _stage(2)),
        (r"residual_function\.0\.", "conv1."),
        (r"residual_function\.1\.", "bn1."),
        (r"residual_function\.2\.", "act1."),
        (r"residual_function\.3\.", "conv2."),
        (r"residual_function\.4\.", "bn2."),
        (r"\.(?:relu|act)\.threshold$", ".act2.threshold"),
    ),
}
BY_ORDER = "order and shape"


@dataclass(frozen=True)
class Mapped:
    """The mapping of a file's tensors.

    Attributes:
        by: a key of :data:`LAYOUTS`, or :data:`BY_ORDER`.
        ours: our name of each matched tensor, by its name in the file.
        spare: names in the file that match nothing.
        missing: our names that nothing matches.
        doubtful: a name in the file, and two of our names that it could match.
    """

    by: str
    ours: Mapping[str, str]
    spare: tuple[str, ...]
    missing: tuple[str, ...]
    doubtful: tuple[str, str, str] | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is left over on either side."""
        return not self.spare and not self.missing


def tensors_of(net: nn.Module, thresholds: bool) -> dict[str, Shape]:
    """Returns names and shapes of the tensors that a net needs, in the order of its modules.

    Args:
        net: network with ``nn.ReLU`` modules.
        thresholds: whether each of them has a threshold, ``<name>.threshold``, of any shape.
    """
    found: dict[str, Shape] = {}
    for name, module in net.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        found |= {f"{name}.{leaf}": tuple(tensor.shape) for leaf, tensor in own if leaf not in COUNTERS}
        if thresholds and isinstance(module, nn.ReLU):
            found[f"{name}.{THRESHOLD}"] = ()
    return found


def find_places(file: WeightFile, net: nn.Module, thresholds: bool) -> Mapped:
    """Maps each tensor of a file to a tensor of a net.

    Args:
        file: the file as read.
        net: the network, which is not changed.
        thresholds: whether it has a threshold for each activation.

    Returns:
        The best mapping that was found, which may be incomplete (:func:`require_complete`).
    """
    theirs = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    return _best(theirs, tensors_of(net, thresholds))


def require_complete(found: Mapped, file: WeightFile, arch: str, classes: int) -> None:
    """Refuses a file with tensors that are missing or left over.

    Raises:
        UserError: names what is missing or left over, and the net that the file seems to fit.
    """
    if found.complete:
        return
    there = _classes(file.tensors)
    if there not in (None, classes):
        raise UserError(f"{file.path}: has {there} classes, but the data set has {classes}")
    if all(_is_threshold(name) for name in (*found.spare, *found.missing)):
        if found.missing:
            raise UserError(
                f"{file.path}: has no threshold for {_listed(found.missing)}; import a net without thresholds "
                "with --method relu"
            )
        raise UserError(
            f"{file.path}: has thresholds ({_listed(found.spare)}), but the method has none; import it with "
            "--method qcfs or tcl"
        )
    others = [name for name in ARCHITECTURES if name != arch and there is not None and _fits(file, name, there)]
    hint = f"; it fits --arch {' or '.join(others)}" if others else ""
    if found.doubtful and not others:
        name, *places = found.doubtful
        raise UserError(
            f"{file.path}: {name} could be {' or '.join(places)}, because the layers are in another order than "
            f"those of {arch}; rename or reorder the tensors as ours (--dry-run lists both)"
        )
    sides = [
        f"{what} {_listed(names)}"
        for names, what in ((found.missing, "the file lacks"), (found.spare, f"{arch} has no place for"))
        if names
    ]
    raise UserError(f"{file.path}: does not fit this net: {', and '.join(sides)}{hint}; --dry-run lists all")


def weights_for(file: WeightFile, found: Mapped) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the file's tensors by our names: those of layers, and thresholds by the name of their activation."""
    ours = {name: file.tensors[theirs] for theirs, name in found.ours.items()}
    thresholds = {name.removesuffix(f".{THRESHOLD}"): value for name, value in ours.items() if _is_threshold(name)}
    return {name: value for name, value in ours.items() if not _is_threshold(name)}, thresholds


def _is_threshold(name: str) -> bool:
    return name.rpartition(".")[2] not in LEAVES


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _best(theirs: Shapes, ours: Shapes) -> Mapped:
    """Returns the first complete mapping, by layouts and then by order and shape; else the one with most matches."""
    tried = [_by_name(title, rules, theirs, ours) for title, rules in LAYOUTS.items()]
    tried.append(_by_order(theirs, ours))
    whole = [one for one in tried if one.complete]
    return whole[0] if whole else max(tried, key=lambda one: len(one.ours))


def _by_name(title: str, rules: Sequence[Rule], theirs: Shapes, ours: Shapes) -> Mapped:
    found: dict[str, str] = {}
    for name, shape in theirs.items():
        module, _, leaf = name.rpartition(".")
        here = f"{module}.{THRESHOLD if _is_threshold(name) else leaf}"
        for pattern, replacement in rules:
            here = re.sub(pattern, replacement, here)
        if here in ours and here not in found.values() and (_is_threshold(name) or ours[here] == shape):
            found[name] = here
    return _mapped(title, found, theirs, ours)


def _by_order(theirs: Shapes, ours: Shapes) -> Mapped:
    """Maps layer by layer if both nets have the same layers in the same order; else maps the layers that are unique."""
    there, here = _layers(theirs), _layers(ours)
    if [layer.kind for layer in there] == [layer.kind for layer in here]:
        pairs = list(zip(there, here, strict=True))
        return _mapped(BY_ORDER, {k: v for one, other in pairs for k, v in one.onto(other).items()}, theirs, ours)
    counts_there, counts_here = (Counter(layer.kind for layer in layers) for layers in (there, here))
    found: dict[str, str] = {}
    doubtful = None
    for layer in there:
        places = [other for other in here if other.kind == layer.kind]
        if counts_there[layer.kind] == counts_here[layer.kind] == 1:
            found |= layer.onto(places[0])
        elif len(places) > 1 and doubtful is None:
            doubtful = (*next(iter(layer.onto(places[0]).items())), next(iter(layer.onto(places[1]).values())))
    return _mapped(BY_ORDER, found, theirs, ours, doubtful)


@dataclass(frozen=True)
class _Layer:
    """The tensors of one module, by the last part of their names."""

    tensors: Mapping[str, tuple[str, Shape]]

    @property
    def kind(self) -> tuple[object, ...]:
        """A key that is equal for layers that could match; thresholds match with any shape."""
        return tuple(sorted((leaf, () if leaf == THRESHOLD else shape) for leaf, (_, shape) in self.tensors.items()))

    def onto(self, other: _Layer) -> dict[str, str]:
        """Returns our names by the names in the file."""
        return {name: other.tensors[leaf][0] for leaf, (name, _) in self.tensors.items()}


def _layers(shapes: Shapes) -> list[_Layer]:
    """Returns modules in the order of their tensors; a module with two thresholds counts as two."""
    found = []
    for _, names in groupby(shapes, key=lambda name: (name.rpartition(".")[0], _is_threshold(name) and name)):
        tensors = {
            THRESHOLD if _is_threshold(name) else name.rpartition(".")[2]: (name, shapes[name]) for name in names
        }
        found.append(_Layer(tensors))
    return found


def _mapped(
    by: str,
    found: Mapping[str, str],
    theirs: Iterable[str],
    ours: Iterable[str],
    doubtful: tuple[str, str, str] | None = None,
) -> Mapped:
    filled = {*found.values()}
    spare, missing = tuple(n for n in theirs if n not in found), tuple(n for n in ours if n not in filled)
    return Mapped(by, found, spare, missing, doubtful)


def _classes(tensors: Mapping[str, Tensor]) -> int | None:
    """Returns the number of classes of the last linear layer in a file."""
    linear = [tensor for name, tensor in tensors.items() if name.endswith(".weight") and tensor.ndim == 2]
    return len(linear[-1]) if linear else None


def _fits(file: WeightFile, arch: str, classes: int) -> bool:
    """Whether a file fits another net of ours, apart from thresholds."""
    with torch.device("meta"):
        net = architectures.create(arch, classes)
    theirs = {name: tuple(tensor.shape) for name, tensor in file.tensors.items() if not _is_threshold(name)}
    return _best(theirs, tensors_of(net, thresholds=False)).complete
