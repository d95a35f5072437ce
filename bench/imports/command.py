"""``python -m bench import``: turns the weights of a net trained elsewhere into a checkpoint of this suite."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.errors import UserError, first_error
from bench.files import require_absent, require_writable
from bench.imports.accuracy import accuracy, best_normalisation
from bench.nets import architectures
from bench.nets.layouts import Mapped, find_places, require_complete, weights_for
from bench.nets.weight_files import WeightFile, read_weights
from bench.records.header import HEADER_VERSION, Header, RecipeHeader
from bench.records.record import Imported, Options
from bench.registry.datasets import DATA
from bench.registry.entries import lookup
from bench.registry.methods import METHODS
from bench.run.build import Trained, build_trained
from bench.run.checkpoints import RECORD, WEIGHTS, Weights
from bench.run.options import layered, model_parser
from bench.run.provenance import code_state
from bench.run.publish import keep_weights, working_in
from bench.run.trainer import quiet
from bench.snn.graph.trace import input_shapes
from datamodules.base import ImageDataModule
from methods.training import TrainingModule

# An accuracy this far above chance is not luck. Chosen here: a tenth of all images.
ABOVE_CHANCE = 0.1
# Standard errors within which an accuracy on some of the images counts as the stated one.
STANDARD_ERRORS = 3


@dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    Attributes:
        file: file with the weights.
        method: method with which the net was trained.
        arch: net, as a user types it.
        data: name of the data set.
        model: further arguments, ``--model.*``.
        mean: mean of each channel; ``None`` for that of the data set.
        std: standard deviation of each channel, likewise.
        softplus: the file stores ``s`` for a threshold of ``ln(1 + e^s)``.
        expect: stated accuracy of the ANN, in percent.
        images: evaluation images on which the ANN is measured.
        repository: source of the file.
        commit: commit of the repository.
        licence: licence of the weights.
        dry_run: print the mapping and write nothing.
        out: output folder; ``None`` for a dry run.
        overwrite: replace the weights in it.
        data_options: data arguments that do not affect results.
    """

    file: Path
    method: str
    arch: str
    data: str
    model: Sequence[str]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    softplus: bool
    expect: float | None
    images: int
    repository: str | None
    commit: str | None
    licence: str | None
    dry_run: bool
    out: Path | None
    overwrite: bool
    data_options: Options


@quiet()
def run(wanted: Wanted) -> int:
    """Imports the weights of a net.

    Returns:
        The exit status, 0.

    Raises:
        UserError: an argument is invalid, or the file does not fit the net; nothing is written.
    """
    _check(wanted)
    file = read_weights(wanted.file)
    weights, found = imported(wanted, file)
    print(f"{file.path}: {len(found.ours)} tensors matched by {found.by}; SHA-256 {file.sha256}")
    if wanted.dry_run:
        return 0
    assert wanted.out is not None
    require_writable(wanted.out)
    net = build_trained(weights, wanted.data_options, str(wanted.file))
    _measure(net, wanted)
    with working_in(wanted.out, {}):
        keep_weights(net, wanted.out)
    print(f"written: {wanted.out / WEIGHTS}")
    return 0


def _check(wanted: Wanted) -> None:
    if (wanted.mean is None) != (wanted.std is None):
        raise UserError("--mean and --std: give both, or neither to use the data set's")
    if wanted.expect is not None and not 1 < wanted.expect <= 100:  # 0.926 is a fraction
        raise UserError(f"--expect {wanted.expect}: must be an accuracy in percent, such as 92.6")
    if wanted.out is None:
        if not wanted.dry_run:
            raise UserError("--out is missing; give a folder, or --dry-run to see only the mapping")
        return
    if any((wanted.out / name).exists() for name in ("checkpoints", RECORD)):
        raise UserError(f"--out {wanted.out}: already holds a run; give another folder")
    if not wanted.overwrite:
        require_absent(wanted.out / WEIGHTS)


def imported(wanted: Wanted, file: WeightFile) -> tuple[Weights, Mapped]:
    """Returns the file's weights under our names, with a header that names their source, and the mapping of names.

    Raises:
        UserError: the weights do not fill the net, or a threshold is not positive.
    """
    entry, data = lookup("--method", wanted.method, METHODS), lookup("--data", wanted.data, DATA).load()
    if not entry.importable:
        known = ", ".join(name for name, method in METHODS.items() if method.importable)
        raise UserError(f"--method {wanted.method}: nets of this method cannot be imported; choose from {known}")
    for option, values in (("mean", wanted.mean), ("std", wanted.std)):
        channels, least = data.input_shape[0], 0.0 if option == "std" else -math.inf
        if values is not None and (len(values) != channels or not all(least < value < math.inf for value in values)):
            above = " above 0" if option == "std" else ""
            raise UserError(f"--{option} {' '.join(map(str, values))}: must be {channels} finite numbers{above}")
    options = _model_options(wanted.method, wanted.model)
    arch = architectures.resolve(wanted.arch, data.arch_family)
    net, make = architectures.create(arch, data.num_classes), entry.load()

    def trained(net: nn.Module) -> TrainingModule:
        module: TrainingModule = make(net, image=data.input_shape, **options)
        return module

    has_thresholds = any(name.endswith(".threshold") for name in trained(copy.deepcopy(net)).state_dict())
    if wanted.softplus and not has_thresholds:
        raise UserError(f"--thresholds softplus: a {wanted.method} net has no thresholds")
    found = find_places(file, net, has_thresholds)
    if wanted.dry_run:
        _show(found, file)
    require_complete(found, file, arch, data.num_classes)
    layers, thresholds = weights_for(file, found)
    net.load_state_dict(layers, strict=False)  # complete but for counters, which do not affect results
    shapes = input_shapes(net.eval(), nn.ReLU, data.input_shape)
    state = trained(net).state_dict()
    for name, value in thresholds.items():
        state[f"net.{name}.threshold"] = _threshold(file.path, name, value, shapes[name], wanted.softplus)
    return Weights(state, _header(wanted, file, arch, data, options)), found


def _model_options(method: str, arguments: Sequence[str]) -> Options:
    """Returns the given model options, without those that only training reads."""
    parser = model_parser(METHODS[method].load())
    parser.set_defaults({"model.max_pool": "keep"})
    typed = {argument.partition("=")[0].removeprefix("--model.") for argument in arguments}
    known = layered(parser, [], arguments)["model"]
    if "L" in known and "L" not in typed:
        raise UserError(f"--model.L is missing; give the number of levels with which the {method} net was trained")
    return {name: value for name, value in known.items() if name in typed or name == "max_pool"}


def _threshold(path: Path, name: str, value: Tensor, shape: torch.Size, softplus: bool) -> Tensor:
    """Returns a threshold as a scalar, or one for each channel as ``[C, 1, 1]``."""
    if softplus:
        value = F.softplus(value)
    if not bool((value > 0).all()):
        raise UserError(
            f"{path}: the threshold of {name} is {value.min().item():.4g}, but must be positive; if the file stores s "
            "of softplus(s), give --thresholds softplus"
        )
    if value.numel() == 1:
        return value.reshape(())
    if value.numel() != shape[0] or value.numel() not in value.shape:
        raise UserError(
            f"{path}: the threshold of {name} has shape {list(value.shape)}, but must be one number or one for each of "
            f"{shape[0]} channels"
        )
    return value.reshape(-1, *[1] * (len(shape) - 1))


def _header(wanted: Wanted, file: WeightFile, arch: str, data: type[ImageDataModule], options: Options) -> Header:
    """Builds a header like that of a training of zero epochs, with everything in it that affects a result."""
    images: Options = {
        **{"name": wanted.data, "eval_split": "test", "val_split": 0},
        **{"mean": list(wanted.mean or data.mean), "std": list(wanted.std or data.std)},
    }
    config: Options = {
        **{"method": wanted.method, "arch": arch, "data": images, "model": options},
        **{"trainer": {"max_epochs": 0}, "imported": file.sha256},
    }
    try:
        return Header(
            version=HEADER_VERSION,
            method=wanted.method,
            arch=arch,
            data=wanted.data,
            seed=0,
            recipe=RecipeHeader(name=f"imported.{file.sha256[:8]}", overrides=[], config=config),
            code=code_state(),
            epochs=0,
            imported=Imported(
                file=file.path.name,
                sha256=file.sha256,
                repository=wanted.repository,
                commit=wanted.commit,
                licence=wanted.licence,
                stated_top1=None if wanted.expect is None else round(wanted.expect / 100, 6),
            ),
        )
    except ValidationError as error:
        raise UserError(f"import: not valid in a record: {first_error(error, show_input=True)}") from error


def _measure(net: Trained, wanted: Wanted) -> None:
    """Prints the accuracy; if it is too low for a correct import, warns and names possible causes."""
    top1, images = accuracy(net, wanted.images)
    stated = "" if wanted.expect is None else f" (stated: {wanted.expect:.2f} %)"
    print(f"ANN: {100 * top1:.2f} % of {images} test images{stated}", flush=True)
    if top1 < ABOVE_CHANCE + 1 / net.datamodule.num_classes:
        what = "close to chance"
    elif wanted.expect is not None and top1 < _lowest(wanted.expect / 100, images):
        what = f"more than {STANDARD_ERRORS} standard errors below the stated one"
    else:
        return
    best, there = best_normalisation(net)
    print(
        f"warning: its accuracy is {what}: mapping or normalisation may be wrong; the best usual normalisation on "
        f"training images, with {100 * there:.1f} %, is {best.options()}",
        file=sys.stderr,
    )


def _lowest(stated: float, images: int) -> float:
    """Returns the lowest plausible accuracy on this many images for a net with the stated accuracy."""
    return stated - STANDARD_ERRORS * math.sqrt(stated * (1 - stated) / images)


def _show(found: Mapped, file: WeightFile) -> None:
    """Prints the mapping and the unmatched names on both sides."""
    table = Table(title=f"{file.path.name}, matched by {found.by}", box=None, pad_edge=False, header_style="dim")
    for heading in ("there", "shape", "here"):
        table.add_column(heading, no_wrap=True)
    for name, tensor in file.tensors.items():
        table.add_row(name, str(list(tensor.shape)), found.ours.get(name, "(left over)"))
    for name in found.missing:
        table.add_row("(left over)", "", name)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
