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
from typing import Annotated, Any, Literal, NamedTuple, Self

import safetensors
import safetensors.torch
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from bench.errors import UserError, first_error
from bench.files import write_atomically
from bench.records.record import Arithmetic, Code, Count, Name, Strict, Text

HEADER = "bench"
_RESUMABLE = {"epoch", "global_step", "loops", "optimizer_states", "lr_schedulers", "pytorch-lightning_version"}


class RecipeHeader(Strict):
    """How it was trained."""

    name: Name
    overrides: list[Text]
    config: dict[str, Any]

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if not all(isinstance(self.config.get(part), dict) for part in ("model", "data")):
            raise ValueError("config lacks model or data")
        return self


class Header(Strict):
    """What every checkpoint says of itself."""

    version: Literal[1]
    method: Name
    arch: Name
    data: Name
    seed: Count
    recipe: RecipeHeader
    code: Code
    epochs: Count
    seconds: Annotated[float, Field(ge=0)] | None = None
    arithmetic: Arithmetic | None = None
    # Whether training images were left out, and how many there were; younger than the first checkpoints.
    limited: bool = False
    num_train_samples: Count | None = None
    source: Header | None = None


class Weights(NamedTuple):
    """A network's tensors by name, and the header that describes them (as :class:`Header` allows)."""

    state: dict[str, Tensor]
    header: dict[str, Any]

    def sha256(self) -> str:
        """Of both as safetensors, without the time that training took."""
        return hashlib.sha256(to_safetensors(self.state, self.header)).hexdigest()


def to_safetensors(state: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    """Serialises weights and header; equal input gives equal bytes.

    Args:
        state: tensors by name.
        header: JSON-serialisable; its ``seconds`` are left out.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # One metadata key only: safetensors does not promise an order among several.
    return safetensors.torch.save(contiguous, {HEADER: json.dumps(_without_times(header), sort_keys=True)})


def _without_times(header: dict[str, Any]) -> dict[str, Any]:
    """Times, those of a source net as well, would make two equal trainings differ."""
    stable = {key: value for key, value in header.items() if key != "seconds"}
    if stable.get("source"):
        stable["source"] = _without_times(stable["source"])
    return stable


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
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError, AssertionError,
            AttributeError, TypeError, safetensors.SafetensorError) as error:  # fmt: skip
        # torch's reader without pickle meets a damaged file with any of these.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--ckpt {path}: the file is damaged or not a checkpoint ({reason[:120]})") from error
    if not isinstance(header, dict) or not state:
        raise UserError(f"--ckpt {path}: not a checkpoint of this suite (its header is missing)")
    if not isinstance(state, dict) or not all(isinstance(n, str) and torch.is_tensor(t) for n, t in state.items()):
        raise UserError(f"--ckpt {path}: the file is damaged (its weights are not tensors by name)")
    if path.suffix != ".safetensors" and not set(content) >= _RESUMABLE:
        raise UserError(
            f"--ckpt {path}: the file is damaged ({', '.join(sorted(_RESUMABLE - set(content)))} is missing)"
        )
    try:
        Header.model_validate(header, strict=True)
    except ValidationError as error:
        raise UserError(
            f"--ckpt {path}: written by another version, or damaged (header {first_error(error)})"
        ) from error
    return Weights(state, header)


def duplicate(source: Path, target: Path) -> None:
    """Puts a whole file, a hard link where there are such, in the place of ``target``.

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
        # Where both are links to one file, rename leaves the first name as well.
        link.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # the folder has vanished, and with it what there was to keep
    except OSError as error:
        link.unlink(missing_ok=True)
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error


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
            # At every moment one whole file is there under the name of the last.
            duplicate(target, target.with_name("previous.ckpt"))
        write_atomically(target, buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads tensors and plain values only, whatever the caller asks."""
        loaded: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return loaded
