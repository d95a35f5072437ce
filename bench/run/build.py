"""From names, arguments and checkpoints to a method and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from bench.errors import UserError
from bench.nets import architectures
from bench.registry.datasets import DATA
from bench.registry.entries import MethodEntry, lookup
from bench.registry.methods import METHODS
from bench.run import checkpoints
from bench.run.checkpoints import Weights

HEADER_VERSION = 1


def build(
    data: str, method: str, arch: str, model_args: dict[str, Any], data_args: dict[str, Any], seed: int
) -> tuple[Any, Any]:
    """Makes method and data module from names and arguments; the weights depend on ``seed`` alone.

    Returns:
        The method's LightningModule and the data module, loaded.
    """
    datamodule = lookup("--data", data, DATA).load()(**data_args)
    datamodule.seed = seed
    datamodule.setup()
    pl.seed_everything(seed, workers=True, verbose=False)
    net = architectures.create(arch, datamodule.num_classes).to(memory_format=torch.channels_last)
    model = lookup("--method", method, METHODS).load()(net, image=datamodule.input_shape, **model_args)
    return model, datamodule


def build_trained(header: dict[str, Any], weights: Weights, data_args: dict[str, Any], ckpt: Path) -> tuple[Any, Any]:
    """Makes a method with its trained weights, from what its checkpoint says of itself.

    Raises:
        UserError: the weights do not fit what the header says.
    """
    origin = header.get("source", header)
    args = origin["recipe"]["config"]["model"]
    try:
        model, datamodule = build(header["data"], origin["method"], header["arch"], args, data_args, header["seed"])
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--ckpt {ckpt}: its settings or the options given do not fit ({reason})") from error
    try:
        model.load_state_dict(weights.state)
    except RuntimeError as error:
        raise UserError(f"--ckpt {ckpt}: its weights do not fit {origin['method']} on {header['arch']}") from error
    if origin is not header:
        options = header["recipe"]["config"]["model"]
        model = lookup("--method", header["method"], METHODS).load()(model.net, **options)
    return model, datamodule


class Trained(NamedTuple):
    """What a checkpoint holds: the method with its weights, its data, its registry line, and the file's content."""

    model: Any
    datamodule: Any
    entry: MethodEntry
    weights: Weights


def load_trained(ckpt: Path, data_options: dict[str, Any]) -> Trained:
    """Reads a checkpoint of either kind and builds what it describes.

    Args:
        ckpt: ``last.ckpt`` or ``model.safetensors``.
        data_options: data arguments that do not change results, in the place of the recorded ones.

    Raises:
        UserError: the file is damaged, not ours, or its weights do not fit what its header says.
    """
    weights = checkpoints.read(ckpt)
    header = weights.header
    data_args = {key: value for key, value in header["recipe"]["config"]["data"].items() if key != "name"}
    model, datamodule = build_trained(header, weights, data_args | data_options, ckpt)
    return Trained(model, datamodule, METHODS[header["method"]], weights)
