"""Checkpoints: written whole, read without pickle, each with a header that says what it is.

Two kinds carry the same header: Lightning's ``last.ckpt``, from which a run resumes, and ``model.safetensors``, the
weights alone, whose bytes depend on weights and header only, so its SHA-256 names the result of a training.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from bench.errors import UserError
from bench.files import write_atomically

HEADER = "bench"


class Weights(NamedTuple):
    """A network's tensors by name, the header that describes them, and the SHA-256 of both as safetensors."""

    state: dict[str, Tensor]
    header: dict[str, Any]
    sha256: str


def to_safetensors(state: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    """Serialises weights and header; equal input gives equal bytes.

    Args:
        state: tensors by name.
        header: JSON-serialisable, without anything that changes from run to run.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # One metadata key only: safetensors does not promise an order among several.
    return safetensors.torch.save(contiguous, {HEADER: json.dumps(header, sort_keys=True)})


def read(path: Path) -> Weights:
    """Reads the weights from either kind of checkpoint.

    Raises:
        UserError: absent, damaged, or not one of this suite's.
    """
    if not path.is_file():
        raise UserError(f"--ckpt {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get(HEADER, "null"))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            header = content.get(HEADER) if isinstance(content, dict) else None
            state = content.get("state_dict", {}) if isinstance(content, dict) else {}
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError,
            safetensors.SafetensorError) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--ckpt {path}: the file is damaged or not a checkpoint ({reason[:120]})") from error
    if not isinstance(header, dict) or not state:
        raise UserError(f"--ckpt {path}: not a checkpoint of this suite (its header is missing)")
    return Weights(state, header, hashlib.sha256(to_safetensors(state, header)).hexdigest())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, flushed and renamed into place; the one before is kept beside.

    A crash during a save leaves the old file; a last file damaged later leaves the one before it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes ``path`` and keeps what was there as ``previous.ckpt``."""
        target = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        if target.exists():
            # A hard link, so that at every moment one whole file is there under the name of the last.
            link = target.with_name(".previous.tmp")
            link.unlink(missing_ok=True)
            os.link(target, link)
            os.replace(link, target.with_name("previous.ckpt"))
        write_atomically(target, buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads tensors and plain values only, whatever the caller asks."""
        loaded: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return loaded
