"""Files of weights that others have written: read without running code, and taken out of what they are wrapped in."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import re
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

from bench.errors import UserError, first_line

PICKLED = (".pth", ".pt", ".th", ".ckpt", ".tar", ".bin")
SUFFIXES = (*PICKLED, ".safetensors", ".npz")
# Keys under which training loops keep a net's weights, beside optimiser, epoch and accuracy; the first one counts.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
# What DataParallel and torch.compile put before each name, and the attribute that holds the net in a larger module.
# The first two never stand before a part of the names only: such a file was put together from two.
WRAPPERS = ("module.", "_orig_mod.")
HOLDERS = ("model.", "net.", "network.", "backbone.")
# Counters of normalisation layers and of averaged models, which no result depends on.
COUNTERS = ("num_batches_tracked", "n_averaged")
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# Plain values that checkpoints hold beside weights: the options of the script, and accuracies as numpy has them.
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")},
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        tensors: in the order of the file, as single-precision numbers, by name without wrappers and counters.
        removed: the wrappers' prefixes.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    removed: tuple[str, ...]


def read_weights(path: Path) -> WeightFile:
    """Reads a file of weights.

    Args:
        path: ``.pth``, ``.pt``, ``.th``, ``.ckpt``, ``.tar``, ``.bin`` (all pickled by torch), ``.safetensors`` or
            ``.npz``.

    Raises:
        UserError: it is absent, damaged, of another kind, holds objects that only running code could read, or its
            names or numbers are not those of one sound net.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: is no file of weights by its name; known are {', '.join(SUFFIXES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    found = _unwrapped(_parsed(path, content), path)
    tensors, removed = _plain_names(found, path)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{path}: {name} holds numbers that are not finite (NaN or infinity); its weights are broken"
            )
    return WeightFile(path, hashlib.sha256(content).hexdigest(), tensors, removed)


def _parsed(path: Path, content: bytes) -> object:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        if path.suffix == ".npz":
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError, AssertionError,
            AttributeError, TypeError, zipfile.BadZipFile, safetensors.SafetensorError) as error:  # fmt: skip
        # torch's reader without pickle meets a damaged file with any of these.
        objects = re.search(r"Unsupported (?:global|class|operand)[: ]+(?:GLOBAL )?([\w.]+)", str(error))
        if objects:
            raise UserError(
                f"{path}: is a pickled module or holds one ({objects[1]}), which only its own code can read; write its "
                "weights alone where that is at hand: torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        raise UserError(f"{path}: is truncated, damaged or no file of weights ({first_line(error, 120)})") from error


def _unwrapped(content: object, path: Path) -> Mapping[object, object]:
    """The innermost mapping that holds tensors."""
    while isinstance(content, Mapping):
        if "bench" in content and "state_dict" in content:
            raise UserError(f"{path}: is a checkpoint of this suite; it needs no import, give it with --ckpt")
        if any(isinstance(value, Tensor) for value in content.values()):
            return content
        inner = [key for key in CONTAINERS if isinstance(content.get(key), Mapping)]
        if not inner:
            keys = ", ".join(str(key) for key in list(content)[:6])
            raise UserError(f"{path}: no tensors by name found in it, nor under {', '.join(CONTAINERS)}; it has {keys}")
        content = content[inner[0]]
    raise UserError(f"{path}: holds {type(content).__name__}, not tensors by name")


def _plain_names(found: Mapping[object, object], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    tensors = {
        str(name): tensor.detach().to(torch.float32)
        for name, tensor in found.items()
        if isinstance(tensor, Tensor) and not str(name).endswith(COUNTERS)
    }
    removed: list[str] = []
    while tensors:
        prefix = next((p for p in (*WRAPPERS, *HOLDERS) if any(name.startswith(p) for name in tensors)), None)
        without = [name for name in tensors if prefix and not name.startswith(prefix)]
        if prefix in WRAPPERS and without:
            raise UserError(
                f"{path}: {prefix} stands before {len(tensors) - len(without)} of {len(tensors)} names and not before "
                f"{without[0]}; a file of one net has it before all or none"
            )
        if prefix is None or without:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        removed.append(prefix)
    if not tensors:
        raise UserError(f"{path}: holds no weights")
    return tensors, tuple(removed)
