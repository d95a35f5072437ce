"""Spiking neurons that unroll time inside the batch.

A neuron sees the whole batch of a pass: ``[B, ...]`` while the input is still constant in time (everything
before the first neuron), ``[T*B, ...]`` time-major afterwards. It gives back ``[T*B, ...]``. Convolutions, BN,
pooling and linear layers never know about time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import QuantisedReLU


@dataclass
class Clock:
    """How the batch of the present pass is made up; one object is shared by all neurons of a network.

    Attributes:
        T: steps in this pass.
        batch: images in this pass.
    """

    T: int = 1
    batch: int = 1

    def unfold(self, x: Tensor) -> Tensor:
        """Views ``[T*B, ...]`` as ``[T, B, ...]``, and a constant ``[B, ...]`` as ``[T, B, ...]`` without a copy."""
        if x.shape[0] == self.T * self.batch:
            return x.view(self.T, self.batch, *x.shape[1:])
        if x.shape[0] == self.batch:
            return x.expand(self.T, *x.shape)
        raise UserError(
            f"a neuron got a batch of {x.shape[0]} in a pass of {self.T} steps and {self.batch} images; "
            "run converted nets through bench.snn.simulate"
        )


class SpikingNeuron(nn.Module):
    """Base of all neurons: membrane state, spike counts, folding of time.

    Args:
        threshold: ``theta``, a positive scalar or broadcastable to one image's input (``[C, 1, 1]``).
        v_init: initial membrane potential as a fraction of the threshold.

    Attributes:
        v: membrane potential ``[B, ...]`` carried from one pass to the next; ``None`` before the first.
        spike_counts: spikes at each step of the last pass, ``[T]``.
        unit_spikes: send 1 instead of ``theta``, where the threshold was folded into the next weights.
        causal: step t of the output depends on steps 1..t of the input alone, so long runs may be cut in time.
    """

    causal = True
    alphabet: Literal["binary", "ternary", "multi"] = "binary"
    levels_per_step = 1
    reset_rule: Literal["soft", "hard"] = "soft"
    threshold: Tensor

    def __init__(self, threshold: Tensor, v_init: float = 0.5) -> None:
        super().__init__()
        threshold = threshold.detach().clone()
        if not bool((torch.isfinite(threshold) & (threshold > 0)).all()):
            raise UserError(f"threshold {threshold.min().item():.4g}: must be positive and finite to convert")
        self.register_buffer("threshold", threshold)
        self.v_init = v_init
        self.unit_spikes = False
        self.clock = Clock()
        self.v: Tensor | None = None
        self.spike_counts = torch.zeros(0)
        self.size = 0

    def reset(self) -> None:
        """Forgets the membrane potential."""
        self.v = None

    def initial(self, like_BX: Tensor) -> Tensor:
        """Membrane potential before the first step, in the shape of one step's input."""
        return torch.zeros_like(like_BX) + self.v_init * self.threshold

    def forward(self, x: Tensor) -> Tensor:
        """Runs all steps of the pass; ``[B, ...]`` or ``[T*B, ...]`` in, ``[T*B, ...]`` out."""
        x_TBX = self.clock.unfold(x)
        out_TBX = self.run(x_TBX)
        self.size = out_TBX[0, 0].numel()
        self.spike_counts = torch.count_nonzero(out_TBX.flatten(1), dim=1)
        return out_TBX.flatten(0, 1).div_(self.threshold) if self.unit_spikes else out_TBX.flatten(0, 1)

    def run(self, x_TBX: Tensor) -> Tensor:
        """Turns input currents ``[T, B, ...]`` into outputs of the same shape."""
        raise NotImplementedError

    def twin(self, T: int) -> nn.Module:
        """The quantised activation that this neuron equals when spikes arrive evenly."""
        return QuantisedReLU(self.threshold, T, self.v_init)


class IFNode(SpikingNeuron):
    """Integrate-and-fire neuron with soft reset; it fires at equality and sends ``theta``.

    ``u_t = v_{t-1} + I_t;  s_t = [u_t >= theta];  v_t = u_t - theta s_t``; the output is ``theta s_t``.
    """

    def run(self, x_TBX: Tensor) -> Tensor:
        """See :class:`SpikingNeuron`."""
        v = self.initial(x_TBX[0]) if self.v is None else self.v
        out_TBX = torch.empty_like(x_TBX)
        for t, current in enumerate(x_TBX):
            v = v + current
            torch.mul(v >= self.threshold, self.threshold, out=out_TBX[t])
            v -= out_TBX[t]
        self.v = v
        return out_TBX
