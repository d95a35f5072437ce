"""Activations for training, each with an explicit backward pass, and the quantised twin of a spiking neuron."""

from __future__ import annotations

import math
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        saved, threshold = ctx.saved_tensors
        z, g = saved.to(threshold.dtype), grad.to(threshold.dtype)
        margin = 0.0 if ctx.clip_first else threshold / (2 * ctx.levels)
        low = z >= -margin
        high = z > threshold if ctx.clip_first else z >= threshold + margin
        inside = low & ~high
        grad_z = torch.where(inside, g, 0.0).to(grad.dtype)
        if not ctx.needs_input_grad[1]:
            return grad_z, None, None, None
        slope = (_quantise(z, threshold, ctx.levels) - z) / threshold
        grad_threshold = torch.where(high, g, torch.where(inside, g * slope, 0.0))
        return grad_z, grad_threshold.sum_to_size(threshold.shape), None, None


def _per_unit(threshold: Tensor, levels: int) -> Tensor:
    # A unit that is never active has the smallest positive theta: levels / theta is infinite, and times 0 it is NaN.
    return (levels / threshold).clamp_max(torch.finfo(threshold.dtype).max)


def _quantise(z: Tensor, threshold: Tensor, levels: int) -> Tensor:
    # In place: a fresh tensor for each operation costs more than the operation.
    return (z * _per_unit(threshold, levels)).add_(0.5).floor_().clamp_(0, levels).mul_(threshold / levels)


def clip_floor_shift(z: Tensor, threshold: Tensor, levels: int, region: Region = "clip_first") -> Tensor:
    """The quantisation clip-floor-shift function, ``threshold * clip(floor(z L / threshold + 1/2) / L, 0, 1)``.

    Gradients are straight-through for the floor. With ``d`` the upstream gradient, inside the region
    ``dz = d`` and ``dthreshold = d (a - z) / threshold``; above it ``dz = 0`` and ``dthreshold = d``; below it both
    are 0. "Inside" is ``[0, threshold]`` if the clip precedes the floor (``clip_first``), and
    ``[-threshold / 2L, threshold + threshold / 2L)`` if the floor precedes the clip (``floor_first``).

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
    """Base of the activations that conversion replaces by neurons; :mod:`bench.snn.graph` treats each as one unit."""

    def compile_steps(self) -> None:
        """Compiles what the activation computes once for each of T steps; most compute no steps."""

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """Accepts one threshold for each channel, ``[C, 1, 1]``, which nets trained elsewhere may have."""
        ours, theirs = self._parameters.get("threshold"), state_dict.get(f"{prefix}threshold")
        if ours is not None and theirs is not None and ours.ndim == 0 < theirs.ndim:
            self._parameters["threshold"] = nn.Parameter(ours.detach().expand(theirs.shape).clone())
        super()._load_from_state_dict(state_dict, prefix, *args)


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


class ReLUActivation(Activation):
    """ReLU, and the threshold that a calibration finds for its neuron.

    Args:
        ceiling: highest value, 6 for ``nn.ReLU6``. A neuron with this threshold or a lower one never exceeds it.

    Attributes:
        threshold: ``theta``, broadcastable to one image's input; ``None`` until a calibration sets it.
    """

    threshold: Tensor | None

    def __init__(self, ceiling: float = math.inf) -> None:
        super().__init__()
        self.ceiling = ceiling
        self.register_buffer("threshold", None, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """``max(z, 0)``, or the ceiling if that is lower, for pre-activations of any shape."""
        a = torch.relu(z)
        return a if self.ceiling == math.inf else a.clamp_max(self.ceiling)


class _Clip(torch.autograd.Function):
    """``min(max(z, 0), threshold)`` with the masks written out, for the reason given at ``_ClipFloorShift``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(z, threshold)
        return torch.minimum(z.to(threshold.dtype).clamp_min(0), threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        saved, threshold = ctx.saved_tensors
        z, g = saved.to(threshold.dtype), grad.to(threshold.dtype)
        above = z > threshold
        above_only = torch.where(above, g, 0.0).sum_to_size(threshold.shape) if ctx.needs_input_grad[1] else None
        return torch.where((z >= 0) & ~above, g, 0.0).to(grad.dtype), above_only


def clip(z: Tensor, ceiling: Tensor) -> Tensor:
    """``clip(z, 0, ceiling)``.

    With ``d`` the upstream gradient, ``dz = d`` in ``[0, ceiling]`` and ``dceiling = d`` above it; else both are 0.

    Args:
        z: pre-activations of any shape and floating type; the arithmetic runs in the ceiling's type.
        ceiling: positive, broadcastable to ``z``.

    Returns:
        The activations, in the shape and type of ``z``.
    """
    output: Tensor = _Clip.apply(z, ceiling)
    return output


class ClippedReLU(Activation):
    """:func:`clip` with a fixed or trainable ceiling.

    Args:
        ceiling: highest output; if trainable, its initial value.
        trainable: whether the ceiling is a parameter (TCL's lambda).
    """

    threshold: Tensor

    def __init__(self, ceiling: float, trainable: bool) -> None:
        super().__init__()
        value = torch.tensor(float(ceiling))
        if trainable:
            self.threshold = nn.Parameter(value)
        else:
            self.register_buffer("threshold", value)

    def forward(self, z: Tensor) -> Tensor:
        """Clips pre-activations of any shape."""
        return clip(z, self.threshold)


class QuantisedReLU(Activation):
    """The rate of an ideal neuron, for inference only.

    ``theta clip(floor((z + bias) T / theta + shift), 0, levels T) / T``

    Args:
        threshold: ``theta``, broadcastable to one image's input.
        T: number of steps.
        shift: initial membrane potential as a fraction of the threshold.
        bias: current that the neuron adds at each step.
        levels: spikes that it may send in one step.
        unit: return the rate itself, without the factor ``theta``.
    """

    threshold: Tensor
    shift: Tensor
    bias: Tensor

    def __init__(
        self,
        threshold: Tensor,
        T: int,
        shift: float | Tensor = 0.5,
        bias: float | Tensor = 0.0,
        levels: int = 1,
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold.detach().clone())
        self.register_buffer("shift", torch.as_tensor(shift).to(threshold).clone())
        self.register_buffer("bias", torch.as_tensor(bias).to(threshold).clone())
        self.T, self.levels, self.unit = T, levels, unit

    def forward(self, z: Tensor) -> Tensor:
        """Quantises pre-activations of any shape."""
        steps = (z + self.bias) * _per_unit(self.threshold, self.T)
        counts = torch.floor(steps + self.shift).clamp(0, self.T * self.levels)
        return counts / self.T if self.unit else counts * (self.threshold / self.T)
