"""SNN2ANN: an ANN that shares its weights with an SNN and is trained on that one's spike counts.

Tang, Lai, Xie, Yang, Zhu: SNN2ANN: A Fast and Memory-Efficient Training Framework for Spiking Neural Networks, 2022,
https://arxiv.org/abs/2206.09449

Backpropagation through time is paid for every step. Here the SNN runs its T steps without a gradient, and the ANN runs
once, with each activation's value swapped for what the SNN's neurons have sent,

    spikes to activation units (STSU):       a  =  r,
    spikes to ReLU activation units (ReSU):  a  =  r [z > 0],
    backward:                                da / dz  =  [z > 0], ReLU's own,

so that the weights are trained at the spikes that they cause, at the cost of an ANN. The neurons reset to 0,

    u_t = v_{t-1} + x_t,    s_t = [u_t > theta],    v_t = u_t (1 - s_t),    v_0 = 0,

with a threshold of its own for each, drawn from U(0, 1). Thresholds are not trained but raised by 0.01 where the two
branches disagree: where more than a tenth of a layer's neurons that spike have an ANN unit at 0.

From the paper or its authors' code: the above; batch normalisation folded in the SNN, whose statistics are the
ANN's; T = 4 (VGG-13) or 5 (ResNet-17); Adam, 1e-3, weight decay 5e-4, batch 512, 200 epochs.
Chosen here: a spike weighs theta and r is the mean output over T, as everywhere in this suite, so that r is on the
scale of z and a converted net is a start (there a spike weighs 1 and r is the count); thresholds are drawn at least
0.01; no dropout, neither of activations nor, as there, of membranes; this suite's SGD. From random weights the
statistics of batch normalisation are measured first, through the spikes, layer after layer: with those that a network
starts with the deep layers of an SNN are silent, and normalisation multiplies the gradient of a silent layer by
hundreds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from bench.snn.activations import Activation
from bench.snn.calibration import watching
from bench.snn.graph.check import BatchNorm
from bench.snn.graph.trace import input_shapes
from bench.snn.neurons import SpikingNeuron, stack_steps
from methods.base import Batch
from methods.spike_training import SpikeTrainingModule, SpikingActivation

Unit = Literal["stsu", "resu"]
# Of a layer's spiking neurons, how many may have an ANN unit at 0; by how much thresholds rise where more have.
TOLERATED, RISE = 0.1, 0.01
SMALLEST = 0.01


class _Context(FunctionCtx):
    """What the function keeps for its gradient; torch types neither."""

    saved_tensors: tuple[Tensor, ...]


class _Swap(torch.autograd.Function):
    """The SNN's rate forward, ReLU's gradient backward."""

    @staticmethod
    def forward(ctx: _Context, z: Tensor, rate: Tensor, gated: bool) -> Tensor:
        active = z > 0
        ctx.save_for_backward(active)
        value = torch.where(active, rate, 0.0) if gated else rate
        return value.to(z.dtype, copy=True)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None, None]:
        (active,) = ctx.saved_tensors
        return torch.where(active, grad, 0.0), None, None


def swap(z: Tensor, rate: Tensor, unit: Unit) -> Tensor:
    """The value of an ANN unit in training.

    Args:
        z: pre-activations ``[B, ...]``.
        rate: mean output of the spiking neurons, likewise.
        unit: ``stsu``, or ``resu``, where a unit that is not active has 0.

    Returns:
        The rate (gated by ``z > 0`` for ``resu``), with the gradient of ``relu(z)``.
    """
    output: Tensor = _Swap.apply(z, rate, unit == "resu")
    return output


class HardResetRate(Activation):
    """Inference only: the mean output of :class:`HardResetNode` for a constant current.

    With ``z > 0`` it fires at every k-th step, ``k = floor(theta / z) + 1``, so ``floor(T / k)`` times.
    """

    threshold: Tensor

    def __init__(self, threshold: Tensor, T: int) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold.detach().clone())
        self.T = T

    def forward(self, z: Tensor) -> Tensor:
        """Quantises currents of any shape."""
        period = torch.floor(self.threshold / z) + 1
        return torch.where(z > 0, torch.floor(self.T / period), 0.0) * (self.threshold / self.T)


class HardResetNode(SpikingNeuron):
    """IF neuron that fires above theta, sends theta, and begins at 0 again."""

    reset_rule = "hard"

    def run(self, x_TBX: Tensor) -> Tensor:
        """See :class:`bench.snn.neurons.SpikingNeuron`."""
        v = self.initial(x_TBX[0]) if self.v is None else self.v
        sent = []
        for current in x_TBX:
            v = v + current
            fires = v > self.threshold
            sent.append(torch.where(fires, self.threshold, 0.0))
            v = torch.where(fires, 0.0, v)
        self.v = v
        return stack_steps(sent, x_TBX)

    def twin(self, T: int) -> nn.Module:
        """See :class:`bench.snn.neurons.SpikingNeuron`."""
        return HardResetRate(self.threshold, T)


class SwappedActivation(SpikingActivation):
    """A spiking neuron while the SNN runs, and in the ANN's pass its swapped unit.

    Args:
        thresholds: theta of each neuron.
        unit: how it is swapped.

    Attributes:
        sent: the SNN's mean output for the present batch; ``None`` outside of training.
    """

    def __init__(self, thresholds: Tensor, unit: Unit) -> None:
        super().__init__(thresholds, v_init=0.0)
        self.unit: Unit = unit
        self.sent: Tensor | None = None

    def neuron(self) -> SpikingNeuron:
        """See :class:`methods.spike_training.SpikingActivation`."""
        return HardResetNode(self.threshold, 0.0)

    def spikes(self, x_TBX: Tensor) -> Tensor:
        """No gradient passes the SNN."""
        return self.emit(x_TBX)

    def rate(self, z: Tensor) -> Tensor:
        """The swapped unit in training; else the clipped rate."""
        if self.sent is None:
            return super().rate(z)
        if z.requires_grad:
            spiking = self.sent > 0
            disagreeing = (spiking & (z <= 0)).sum() > TOLERATED * spiking.sum()
            self.threshold.add_(RISE * disagreeing)
        return swap(z, self.sent, self.unit)


class SNN2ANN(SpikeTrainingModule):
    """Weight sharing with an ANN that sees the SNN's spike counts (https://arxiv.org/abs/2206.09449).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        T: steps of training.
        unit: ``stsu`` or ``resu``.
        percentile: of its layer's activations, as which thresholds start where ``--ckpt`` gives a ReLU net.
        **kwargs: optimiser settings of :class:`methods.training.TrainingModule`.
    """

    def __init__(
        self, net: nn.Module, T: int = 4, unit: Unit = "stsu", percentile: float = 99.9, **kwargs: Any
    ) -> None:
        super().__init__(net, T=T, v_init=0.0, percentile=percentile, **kwargs)
        shapes = input_shapes(net, nn.ReLU, self.image)
        self.install(lambda name: SwappedActivation(torch.rand(shapes[name]).clamp_min(SMALLEST), unit))

    @torch.no_grad()
    def prepare(self, calibration: Iterable[Batch]) -> None:
        """Measures the statistics of batch normalisation; each pass makes those of one more layer right."""
        images = torch.cat([images for images, _ in calibration])
        norms = {norm: norm.momentum for norm in self.net.modules() if isinstance(norm, BatchNorm)}
        self.net.train()
        for norm in norms:
            norm.momentum = 1.0
        for _ in range(len(self.layers) + 1):
            self.training_logits(images)
        for norm, momentum in norms.items():
            norm.momentum = momentum

    def training_logits(self, images: Tensor) -> Tensor:
        """The ANN's, with the SNN's spikes in it."""
        sent: dict[str, Tensor] = {}
        # In evaluation mode, as batch normalisation is folded in the SNN.
        with watching(
            self.net, lambda name, _, output: sent.update({name: self.clock.unfold(output).mean(0)}), SwappedActivation
        ):
            self.unrolled(images)
        layers = [module for module in self.net.modules() if isinstance(module, SwappedActivation)]
        for name, layer in self.layers.items():
            assert isinstance(layer, SwappedActivation)
            layer.sent = sent[name]
        try:
            return self.forward(images)
        finally:
            for layer in layers:
                layer.sent = None
