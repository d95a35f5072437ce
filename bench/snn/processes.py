"""Values that all processes of a run must share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def share(tensors: Iterable[Tensor]) -> None:
    """Copies the values of the first process to all others, in place; does nothing in a run of one process.

    Args:
        tensors: in the same order and of the same shapes in all processes.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    for tensor in tensors:
        # Channels-last weights are not contiguous, which the backends require.
        values = tensor.contiguous()
        dist.broadcast(values, 0)
        tensor.copy_(values)
