"""From names, options and checkpoints to a method and its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch

from bench.errors import UserError, in_one_line
from bench.nets import architectures
from bench.records.header import Header
from bench.records.record import Options
from bench.records.spec import RunSpec
from bench.registry.datasets import DATA
from bench.registry.entries import MethodEntry, lookup
from bench.registry.methods import METHODS
from bench.run import checkpoints
from bench.run.checkpoints import Weights
from bench.snn.readout import Readout
from datamodules.base import NORMALISATION, ImageDataModule
from methods.base import ConversionModule


class Trained(NamedTuple):
    """A method with its trained network, its data, and what they are; for a converting method, ready to convert."""

    model: ConversionModule
    datamodule: ImageDataModule
    header: Header

    @property
    def entry(self) -> MethodEntry:
        """The method's registry line."""
        return METHODS[self.header.method]

    @property
    def weights(self) -> Weights:
        """What is written as ``model.safetensors``."""
        return Weights(self.model.state_dict(), self.header)


def build(
    data: str, method: str, arch: str, model_options: Options, data_options: Options, seed: int, load: bool = True
) -> tuple[ConversionModule, ImageDataModule]:
    """Makes method and data module from names and options; the weights depend on ``seed`` alone.

    Args:
        data: name of the data set.
        method: name of the method.
        arch: name of the network.
        model_options: of the method.
        data_options: of the data module.
        seed: of the weights, the shuffling and the augmentation.
        load: read the images now, so that absent or damaged files are found early.
    """
    make_data: Callable[..., ImageDataModule] = lookup("--data", data, DATA).load()
    make_method: Callable[..., ConversionModule] = lookup("--method", method, METHODS).load()
    datamodule = make_data(**data_options)
    datamodule.seed = seed
    if load:
        datamodule.setup()
    pl.seed_everything(seed, workers=True, verbose=False)
    net = architectures.create(arch, datamodule.num_classes).to(memory_format=torch.channels_last)
    return make_method(net, image=datamodule.input_shape, **model_options), datamodule


@contextmanager
def _as_user_error(what: str) -> Iterator[None]:
    """Turns what a constructor raises into one line."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{what}: its settings or the options given do not fit ({in_one_line(error)})") from error


def build_untrained(
    spec: RunSpec, kind: str, model_options: Options, load: bool = True
) -> tuple[ConversionModule, ImageDataModule]:
    """Makes what a run will convert with, from random weights, so that options are refused before hours of training.

    Args:
        spec: the run.
        kind: the method that trains its net; its own, if it trains.
        model_options: of that method.
        load: read the images as well.

    Raises:
        UserError: an option is out of range, or the number of steps is not possible.
    """
    with _as_user_error(f"--ckpt {spec.local.ckpt}" if spec.local.ckpt else kind):
        model, datamodule = build(spec.data, kind, spec.arch, model_options, spec.all_data_options, spec.seed, load)
    if not spec.trains:
        convert: Callable[..., ConversionModule] = METHODS[spec.method].load()
        model = convert(model.net, **spec.model)
    model.use(Readout.of(spec.snn))
    model.check_steps(max(spec.local.T))
    return model, datamodule


def build_trained(weights: Weights, data_options: Options, ckpt: str) -> Trained:
    """Makes a method with its trained weights, from what their header says.

    Args:
        weights: as read; of a conversion, those of its source net.
        data_options: of the data module; images are normalised as those that the net was trained on.
        ckpt: where the weights are from, for the message.

    Raises:
        UserError: the weights do not fit what the header says.
    """
    header, origin = weights.header, weights.header.trained
    images = {key: value for key, value in origin.recipe.part("data").items() if key in NORMALISATION}
    with _as_user_error(f"--ckpt {ckpt}"):
        model, datamodule = build(
            header.data, origin.method, header.arch, origin.recipe.part("model"), data_options | images, header.seed
        )
    try:
        model.load_state_dict(weights.state)
    except RuntimeError as error:
        raise UserError(f"--ckpt {ckpt}: its weights do not fit {origin.method} on {header.arch}") from error
    if origin is not header:
        with _as_user_error(f"--ckpt {ckpt}"):
            convert: Callable[..., ConversionModule] = lookup("--method", header.method, METHODS).load()
            model = convert(model.net, **header.recipe.part("model"))
    model.use(readout_of(header))
    return Trained(model, datamodule, header)


def readout_of(header: Header, changes: Options | None = None) -> Readout:
    """The options of the converted network.

    Args:
        header: of its checkpoint.
        changes: options that replace the recorded ones.

    Raises:
        UserError: an option is unknown or out of range.
    """
    try:
        recorded, changes = header.recipe.part("snn"), changes or {}
        if recorded.get("permute") and changes.get("permute") is False:
            recorded = {name: value for name, value in recorded.items() if name == "delay"}  # the rest is of the orders
        return Readout.of(recorded | changes)
    except TypeError as error:
        raise UserError(f"recipe.config.snn: {error}") from error


def load(ckpt: Path, data_options: Options, snn: Options | None = None) -> Trained:
    """Reads a checkpoint of either kind and builds what it describes.

    Args:
        ckpt: ``last.ckpt`` or ``model.safetensors``.
        data_options: options that do not change results; they replace the recorded ones.
        snn: options of the converted network; they replace the recorded ones and are recorded.

    Raises:
        UserError: the file is damaged, not ours, or its weights do not fit what its header says.
    """
    weights = checkpoints.read(ckpt)
    if snn:
        weights = weights._replace(header=_with_readout(weights.header, snn))
    recorded = {key: value for key, value in weights.header.recipe.part("data").items() if key != "name"}
    return build_trained(weights, recorded | data_options, str(ckpt))


def _with_readout(header: Header, snn: Options) -> Header:
    """The header of an evaluation with other options of the converted network."""
    changes = readout_of(header, snn).changes
    header = header.of_weights()
    config, overrides = dict(header.recipe.config), list(header.recipe.overrides)
    if changes:
        config["snn"] = {**changes}
        overrides += [f"snn.{name}={value}" for name, value in changes.items()]
    recipe = header.recipe.model_copy(update={"config": config, "overrides": sorted(overrides)})
    return header.model_copy(update={"recipe": recipe})
