"""Training-time activations, each with an explicit backward, and the quantised twin of a spiking neuron."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Region = Literal["clip_first", "floor_first"]


class _ClipFloorShift(torch.autograd.Function):
    """Quantised clipped ReLU with a straight-through floor.

    The gradient masks are written out because ``torch.clamp``'s own gradient at its bounds differs between
    releases (1 in torch 2.13, 0 in 2.15): with the floor inside the clip, the lowest and the highest bin
    would silently stop learning.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, levels: int, clip_first: bool) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.levels, ctx.clip_first = levels, clip_first
        return _quantise(z.to(threshold.dtype), threshold, levels).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        saved, threshold = ctx.saved_tensors
        z, g = saved.to(threshold.dtype), grad.to(threshold.dtype)
        margin = 0.0 if ctx.clip_first else threshold / (2 * ctx.levels)
        low = z >= -margin
        high = z > threshold if ctx.clip_first else z >= threshold + margin
        inside = low & ~high
        slope = (_quantise(z, threshold, ctx.levels) - z) / threshold
        grad_threshold = torch.where(high, g, torch.where(inside, g * slope, 0.0))
        return torch.where(inside, g, 0.0).to(grad.dtype), grad_threshold.sum_to_size(threshold.shape), None, None


def _quantise(z: Tensor, threshold: Tensor, levels: int, shift: float = 0.5) -> Tensor:
    return torch.floor(z * (levels / threshold) + shift).clamp(0, levels) * (threshold / levels)


def clip_floor_shift(z: Tensor, threshold: Tensor, levels: int, region: Region = "clip_first") -> Tensor:
    """The quantisation clip-floor-shift function, ``threshold * clip(floor(z L / threshold + 1/2) / L, 0, 1)``.

    Gradients are straight-through for the floor. With ``d`` the upstream gradient, inside the region
    ``dz = d`` and ``dthreshold = d (a - z) / threshold``; above it ``dz = 0`` and ``dthreshold = d``; below it both
    are 0. "Inside" is ``[0, threshold]`` where the clip precedes the floor (``clip_first``) and
    ``[-threshold / 2L, threshold + threshold / 2L)`` where the floor precedes the clip (``floor_first``).

    Args:
        z: pre-activations of any shape and floating type; the arithmetic runs in the threshold's type.
        threshold: positive, broadcastable to ``z`` (a scalar, or ``[C, 1, 1]`` for one per channel).
        levels: number of quantisation steps, ``L``.
        region: where the gradient passes.

    Returns:
        The activations, in the shape and type of ``z``.

    Reference:
        Bu et al., Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural Networks,
        ICLR 2022, https://arxiv.org/abs/2303.04347
    """
    output: Tensor = _ClipFloorShift.apply(z, threshold, levels, region == "clip_first")
    return output


class Activation(nn.Module):
    """Marks what conversion replaces by a neuron; :mod:`bench.snn.surgery` treats it as one unit."""


class QCFSActivation(Activation):
    """:func:`clip_floor_shift` with a trainable scalar threshold (the paper's lambda).

    Args:
        L: quantisation steps.
        threshold: initial value of lambda.
        region: gradient region.
    """

    def __init__(self, L: int, threshold: float = 8.0, region: Region = "clip_first") -> None:
        super().__init__()
        self.L, self.region = L, region
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, z: Tensor) -> Tensor:
        """Quantises pre-activations of any shape."""
        return clip_floor_shift(z, self.threshold, self.L, self.region)

    def extra_repr(self) -> str:
        """What ``print(net)`` shows."""
        return f"L={self.L}, region={self.region}"


class QuantisedReLU(Activation):
    """Inference only: ``theta * clip(floor(z T / theta + shift), 0, T) / T``, the rate of an ideal neuron.

    Args:
        threshold: ``theta``, broadcastable to one image's input.
        T: number of levels.
        shift: initial membrane potential as a fraction of the threshold.
    """

    threshold: Tensor

    def __init__(self, threshold: Tensor, T: int, shift: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold.detach().clone())
        self.T, self.shift = T, shift

    def forward(self, z: Tensor) -> Tensor:
        """Quantises pre-activations of any shape."""
        return _quantise(z, self.threshold, self.T, self.shift)
