"""Reads weight files written elsewhere, without running code from them, and removes their wrappers."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bench.errors import UserError

PICKLED = (".pth", ".pt", ".th", ".ckpt", ".tar", ".bin")
SUFFIXES = (*PICKLED, ".safetensors", ".npz")
# Keys under which training loops store a net's weights, beside optimiser, epoch and accuracy; the first one is used.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
# Prefixes that DataParallel and torch.compile put before all names, and names of the attribute that holds the net in a
# larger module. If one of the first two is before some names only, the file was put together from two nets.
WRAPPERS = ("module.", "_orig_mod.")
HOLDERS = ("model.", "net.", "network.", "backbone.")
# Counters of normalisation layers and of averaged models, which do not affect results.
COUNTERS = ("num_batches_tracked", "n_averaged")
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# Plain values that checkpoints hold beside weights: the options of the script, and accuracies as numpy scalars.
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")},
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True)
class WeightFile:
    """The content of a weight file.

    Attributes:
        path: path of the file.
        sha256: SHA-256 of its bytes.
        tensors: tensors in single precision, in the order of the file, by name without wrappers; without counters.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]


def read_weights(path: Path) -> WeightFile:
    """Reads a file of weights.

    Args:
        path: ``.pth``, ``.pt``, ``.th``, ``.ckpt``, ``.tar``, ``.bin`` (all pickled by torch), ``.safetensors`` or
            ``.npz``.

    Raises:
        UserError: the file is missing, damaged or of another kind; it holds objects that need code to be read; or its
            names or values are not those of one valid net.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: not a weight file by its name; known are {', '.join(SUFFIXES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    found = _unwrapped(_parsed(path, content), path)
    tensors = _plain_names(found, path)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: {name} has values that are NaN or infinite; give another file")
    return WeightFile(path, hashlib.sha256(content).hexdigest(), tensors)


def _parsed(path: Path, content: bytes) -> object:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        if path.suffix == ".npz":
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        with torch.serialization.safe_globals(_PLAIN), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Validating sparse tensor")  # they are refused
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError, AssertionError,
            AttributeError, TypeError, zipfile.BadZipFile, safetensors.SafetensorError) as error:  # fmt: skip
        # torch's weights_only reader raises any of these for a damaged file.
        objects = re.search(r"Unsupported (?:global|class|operand)[: ]+(?:GLOBAL )?([\w.]+)", str(error))
        if objects:
            raise UserError(
                f"{path}: holds a pickled object ({objects[1]}), which needs its own code; with that code, save only "
                "the weights: torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        raise UserError(f"{path}: truncated, damaged or not a weight file") from error


def _may_hold_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor | Mapping) for inner in value.values())


def _unwrapped(content: object, path: Path) -> Mapping[object, object]:
    """Returns the innermost mapping that holds tensors."""
    while isinstance(content, Mapping):
        if "bench" in content and "state_dict" in content:
            raise UserError(f"{path}: already a checkpoint of this suite; use it with --ckpt")
        # First, because a tensor may stand beside the net: the best accuracy, the state of a random generator.
        inner = [key for key in CONTAINERS if _may_hold_tensors(content.get(key))]
        if not inner and any(isinstance(value, Tensor) for value in content.values()):
            return content
        if not inner:
            keys = ", ".join(str(key) for key in list(content)[:6])
            raise UserError(f"{path}: no named tensors found in it or under {', '.join(CONTAINERS)}; it has {keys}")
        content = content[inner[0]]
    raise UserError(f"{path}: holds a {type(content).__name__}, not named tensors")


def _plain_names(found: Mapping[object, object], path: Path) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or str(name).endswith(COUNTERS):
            continue
        if tensor.is_quantized or tensor.is_complex() or tensor.is_meta or tensor.layout != torch.strided:
            raise UserError(f"{path}: {name} is quantised, complex, sparse or without values; save plain float weights")
        if tensor.is_floating_point():  # whole numbers are no weights: a number of levels or epochs
            tensors[str(name)] = tensor.detach().to(torch.float32)
    while tensors:
        prefix = next((p for p in (*WRAPPERS, *HOLDERS) if any(name.startswith(p) for name in tensors)), None)
        without = [name for name in tensors if prefix and not name.startswith(prefix)]
        if prefix in WRAPPERS and without:
            raise UserError(
                f"{path}: {len(tensors) - len(without)} of {len(tensors)} names begin with {prefix}, but {without[0]} "
                "does not; give a file of one net, in which all or none do"
            )
        if prefix is None or without:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if not tensors:
        raise UserError(f"{path}: holds no weights")
    return tensors
