"""Numerical precision in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch

Value = TypeVar("Value")
# What PyTorch may compute with fewer bits than the type has: TF32 on recent GPUs, bfloat16 on CPUs.
_KINDS = (
    torch.backends.cuda.matmul,
    *(getattr(torch.backends.cudnn, kind) for kind in ("conv", "rnn")),
    *(getattr(torch.backends.mkldnn, kind) for kind in ("conv", "matmul", "rnn")),
)


@contextmanager
def full_precision() -> Iterator[None]:
    """Computes in all bits of single precision: with the 10 of TF32, spikes near the threshold would flip.

    An autocast around it is switched off.
    """
    before = [kind.fp32_precision for kind in _KINDS]
    matmul, convolutions = _legacy(torch.get_float32_matmul_precision), _legacy(_convolutions_may_use_tf32)
    # First by the older options, because PyTorch's compiler reads them and fails if the newer ones contradict them.
    _set("highest", False, ["ieee"] * len(_KINDS))
    try:
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        _set(matmul, convolutions, before)


def _convolutions_may_use_tf32() -> bool:
    return torch.backends.cudnn.allow_tf32


def _legacy(read: Callable[[], Value]) -> Value | None:
    """Returns an older option; ``None`` if it contradicts a newer one that a user has set."""
    try:
        return read()
    except RuntimeError:
        return None


def _set(matmul: str | None, convolutions: bool | None, precisions: list[str]) -> None:
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
    for kind, precision in zip(_KINDS, precisions, strict=True):
        if kind.fp32_precision != precision:
            kind.fp32_precision = precision
