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
import shutil
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pydantic import ValidationError
from torch import Tensor
from torch.serialization import MAP_LOCATION

from bench.errors import UserError, first_error, first_line
from bench.files import write_atomically
from bench.records.header import Header

HEADER = "bench"
# What a run leaves in its folder, and the first two in its folder of checkpoints.
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
WEIGHTS, RECORD = "model.safetensors", "record.json"
_RESUMABLE = {"epoch", "global_step", "loops", "optimizer_states", "lr_schedulers", "pytorch-lightning_version"}


class Weights(NamedTuple):
    """A network's tensors by name, and the header that describes them."""

    state: dict[str, Tensor]
    header: Header

    def to_safetensors(self) -> bytes:
        """As a file, without the time that training took; equal weights give equal bytes."""
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state.items()}
        # One metadata key only: safetensors does not promise an order among several.
        described = json.dumps(self.header.without_seconds(), sort_keys=True)
        return safetensors.torch.save(contiguous, {HEADER: described})

    def sha256(self) -> str:
        """SHA-256 of the file that :meth:`to_safetensors` makes."""
        return hashlib.sha256(self.to_safetensors()).hexdigest()


def read(path: Path) -> Weights:
    """Reads the weights from either kind of checkpoint.

    Raises:
        UserError: absent, damaged, or not one of this suite's.
    """
    if path.is_dir():
        raise UserError(f"--ckpt {path}: is a folder; give the file, such as {path / WEIGHTS}")
    if not path.is_file():
        raise UserError(f"--ckpt {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get(HEADER, "null"))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            header = content.get(HEADER) if isinstance(content, dict) else None
            state = content.get("state_dict", {}) if isinstance(content, dict) else {}
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError, AssertionError,
            AttributeError, TypeError, safetensors.SafetensorError) as error:  # fmt: skip
        # torch's reader without pickle meets a damaged file with any of these.
        raise UserError(f"--ckpt {path}: the file is damaged or not a checkpoint ({first_line(error, 120)})") from error
    if not isinstance(header, dict) or not state:
        raise UserError(f"--ckpt {path}: not a checkpoint of this suite (its header is missing)")
    if not isinstance(state, dict) or not all(isinstance(n, str) and torch.is_tensor(t) for n, t in state.items()):
        raise UserError(f"--ckpt {path}: the file is damaged (its weights are not tensors by name)")
    if path.suffix != ".safetensors" and not set(content) >= _RESUMABLE:
        raise UserError(
            f"--ckpt {path}: the file is damaged ({', '.join(sorted(_RESUMABLE - set(content)))} is missing)"
        )
    try:
        return Weights(state, Header.model_validate(header, strict=True))
    except ValidationError as error:
        raise UserError(
            f"--ckpt {path}: written by another version, or damaged (header {first_error(error)})"
        ) from error


def duplicate(source: Path, target: Path) -> None:
    """Replaces ``target`` by a copy of ``source``, as a hard link if the file system has them.

    Raises:
        UserError: the folder cannot be written; ``target`` is as it was.
    """
    link = target.with_name(f".{target.name}.tmp")
    try:
        link.unlink(missing_ok=True)
        try:
            os.link(source, link)
        except OSError:  # a file system without hard links
            shutil.copy2(source, link)
        os.replace(link, target)
        # If both are links to the same file, rename keeps the first name as well.
        link.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # the folder was removed together with the file to keep
    except OSError as error:
        link.unlink(missing_ok=True)
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints atomically and keeps the previous one beside the last.

    After a crash during a save, the old file is still whole. If the last is damaged later, the previous one is left.
    """

    def save_checkpoint(self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None) -> None:
        """Writes ``path`` and keeps what was there as ``previous.ckpt``."""
        target = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        if target.exists():
            # A whole file exists under the last file's name at every moment.
            duplicate(target, target.with_name(PREVIOUS))
        write_atomically(target, buffer.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: MAP_LOCATION = None, weights_only: bool | None = None
    ) -> dict[str, object]:
        """Loads tensors and plain values only, whatever the caller asks."""
        loaded: dict[str, object] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return loaded
