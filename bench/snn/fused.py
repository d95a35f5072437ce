"""The neuron loop as one kernel: each element is read, integrated and fired for several steps without leaving cache."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Steps in one kernel: long enough that potentials are seldom written back, short enough to compile in seconds, and one
# kernel serves every T.
STEPS = 8
# Image-steps from which the minute or so of compilation pays.
WORTH = 100_000


@functools.cache
def can_compile() -> bool:
    """Whether ``torch.compile`` finds a C++ compiler or a GPU; says so, once, where there is neither."""
    compiler = os.environ.get("CXX", "g++")
    if torch.cuda.is_available() or shutil.which(compiler):
        return True
    print(f"note: there is no {compiler}, so nothing is compiled; it takes longer and gives the same")
    return False


def worth_fusing(image_steps: int) -> bool:
    """Whether a run of this size gains by compilation, and can be compiled."""
    return image_steps >= WORTH and can_compile()


def integrate_and_fire(x_TBX: Tensor, v: Tensor, threshold: Tensor, bias: Tensor | None, out_TBX: Tensor) -> Tensor:
    """The steps of :class:`bench.snn.neurons.IFNode`, in the same order of operations, hence with the same rounding.

    Args:
        x_TBX: currents ``[T, B, ...]``.
        v: potentials ``[B, ...]``.
        threshold: theta.
        bias: constant current, or ``None``.
        out_TBX: filled with the outputs.

    Returns:
        The potentials after the last step.
    """
    for t in range(len(x_TBX)):
        v = v + x_TBX[t]
        if bias is not None:
            v = v + bias
        sent = torch.where(v >= threshold, threshold, 0.0)
        out_TBX[t] = sent
        v = v - sent
    return v


def count_spikes(out_TBX: Tensor) -> Tensor:
    """Outputs other than 0 in each step, ``[T]``.

    Single precision counts the spikes of one image exactly (up to 2^24), and unlike an integer sum needs no copy eight
    times as large as the spikes.
    """
    per_image = (out_TBX != 0).to(torch.float32).sum(tuple(range(2, out_TBX.ndim)))
    return per_image.long().sum(1)


@functools.cache
def compiled(function: Callable[..., Tensor]) -> Any:
    """``function`` compiled once for each shape that it meets."""
    # Deep nets have more layer shapes than dynamo's default of 8.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
    return torch.compile(function, dynamic=False, fullgraph=True)


def _channels_last(y: Tensor | None) -> Tensor | None:
    return y.movedim(-3, -1) if y is not None and y.ndim >= 3 else y


def run_fused(x_TBX: Tensor, v: Tensor, threshold: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Runs :func:`integrate_and_fire` a few steps at a time.

    Returns:
        Outputs ``[T, B, ...]`` and the potentials after the last step.
    """
    if x_TBX.ndim == 5 and x_TBX[0].is_contiguous(memory_format=torch.channels_last):
        # The same numbers seen as contiguous, which vectorises.
        x, potential, theta, current = (_channels_last(y) for y in (x_TBX, v, threshold, bias))
        assert x is not None and potential is not None and theta is not None
        out, potential = run_fused(x, potential, theta, current)
        return out.movedim(-1, 2), potential.movedim(-1, 1)
    kernel = compiled(integrate_and_fire)
    out_TBX = torch.empty_like(x_TBX)
    for start in range(0, len(x_TBX), STEPS):
        steps = slice(start, start + STEPS)
        v = kernel(x_TBX[steps], v, threshold, bias, out_TBX[steps])
    return out_TBX, v


def count_fused(out_TBX: Tensor) -> Tensor:
    """:func:`count_spikes`, compiled."""
    counts: Tensor = compiled(count_spikes)(out_TBX)
    return counts
