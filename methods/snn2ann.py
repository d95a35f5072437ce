"""SNN2ANN: an ANN that shares its weights with an SNN and is trained on the SNN's spike counts.

Tang, Lai, Xie, Yang, Zhu: SNN2ANN: A Fast and Memory-Efficient Training Framework for Spiking Neural Networks, 2022,
https://arxiv.org/abs/2206.09449

The cost of backpropagation through time grows with the number of steps. Here the SNN runs its T steps without a
gradient. The ANN runs once, with each activation's value replaced by what the SNN's neurons have sent,

    spikes to activation units (STSU):       a  =  r,
    spikes to ReLU activation units (ReSU):  a  =  r [z > 0],
    backward:                                da / dz  =  [z > 0], ReLU's own,

so that the weights are trained on the spikes that they cause, at the cost of an ANN. The neurons reset to 0,

    u_t = v_{t-1} + x_t,    s_t = [u_t > theta],    v_t = u_t (1 - s_t),    v_0 = 0,

and each neuron has its own threshold, drawn from U(0, 1). Thresholds are not trained. A layer's thresholds are raised
by 0.01 if the two branches disagree, that is, if more than a tenth of its spiking neurons have an ANN unit at 0.

From the paper or its authors' code: the above; the SNN uses the ANN's batch normalisation statistics, folded; Adam with
learning rate 1e-3; T = 4 (VGG-13) or 5 (ResNet-17); weight decay 5e-4, batch 512, 200 epochs. The method needs Adam:
ReLU's gradient at values that are not ReLU's grows or shrinks from layer to layer.
Chosen here: r is the mean output over T (there the count). A spike weighs 1, or theta if training begins from a net,
because that is the net's conversion. Thresholds are at least 0.01. There is no dropout, neither of activations nor (as
there) of membranes. The learning rate follows a cosine. From random weights, the statistics of batch normalisation are
first measured through the spikes, layer by layer, because folding the initial statistics would give a different SNN.
The ANN in the record clips at theta. It is not the limit of the SNN for large T: a hard reset loses potential.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.calibration import Batch, watching
from bench.snn.graph.check import BatchNorm
from bench.snn.graph.trace import input_shapes
from bench.snn.neurons import SpikingNeuron, stack_steps
from methods.spike_training import SpikeTrainingModule, SpikingActivation

Unit = Literal["stsu", "resu"]
# Tolerated fraction of a layer's spiking neurons whose ANN unit is 0, and the rise of its thresholds if more have.
TOLERATED, RISE = 0.1, 0.01
SMALLEST = 0.01


class _Swap(torch.autograd.Function):
    """Uses the SNN's rate in the forward pass and ReLU's gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, rate: Tensor, gated: bool) -> Tensor:
        active = z > 0
        ctx.save_for_backward(active)
        value = torch.where(active, rate, 0.0) if gated else rate
        return value.to(z.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (active,) = ctx.saved_tensors
        return torch.where(active, grad, 0.0), None, None


def swap(z: Tensor, rate: Tensor, unit: Unit) -> Tensor:
    """Returns the value of an ANN unit in training.

    Args:
        z: pre-activations ``[B, ...]``.
        rate: mean output of the spiking neurons, likewise.
        unit: ``stsu``, or ``resu``, which sets inactive units to 0.

    Returns:
        The rate (gated by ``z > 0`` for ``resu``), with the gradient of ``relu(z)``.
    """
    output: Tensor = _Swap.apply(z, rate, unit == "resu")
    return output


class HardResetRate(Activation):
    """The mean output of :class:`HardResetNode` for a constant current; for inference only.

    With ``z > 0`` the neuron fires at every k-th step, ``k = floor(theta / z) + 1``, so ``floor(T / k)`` times.
    """

    threshold: Tensor

    def __init__(self, threshold: Tensor, T: int, unit: bool = False) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold.detach().clone())
        self.T, self.unit = T, unit

    def forward(self, z: Tensor) -> Tensor:
        """Quantises currents of any shape."""
        period = torch.floor(self.threshold / z) + 1
        counts = torch.where(z > 0, torch.floor(self.T / period), 0.0)
        return counts / self.T if self.unit else counts * (self.threshold / self.T)


class HardResetNode(SpikingNeuron):
    """IF neuron that fires above theta, sends theta (or 1), and is reset to 0."""

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
        return HardResetRate(self.threshold, T, self.unit_spikes)


class SwappedActivation(SpikingActivation):
    """A spiking neuron while the SNN runs, and the swapped unit in the ANN's pass.

    Args:
        thresholds: theta of each neuron.
        unit: kind of the swapped unit.

    Attributes:
        sent: the SNN's mean output for the current batch; ``None`` outside of training.
        weighs_one: whether a spike weighs 1 instead of theta.
    """

    weighs_one: Tensor

    def __init__(self, thresholds: Tensor, unit: Unit) -> None:
        super().__init__(thresholds, v_init=0.0)
        self.unit: Unit = unit
        self.sent: Tensor | None = None
        self.register_buffer("weighs_one", torch.tensor(True))

    def neuron(self) -> SpikingNeuron:
        """See :class:`methods.spike_training.SpikingActivation`."""
        node = HardResetNode(self.threshold, 0.0)
        node.unit_spikes = bool(self.weighs_one)
        return node

    def spikes(self, x_TBX: Tensor) -> Tensor:
        """Returns the neuron's output, without a gradient."""
        return self.emit(x_TBX) / self.unit_of_rates

    @property
    def unit_of_rates(self) -> Tensor:
        """The divisor for the outputs of a neuron that sends theta."""
        return torch.where(self.weighs_one, self.threshold, 1.0)

    def rate(self, z: Tensor) -> Tensor:
        """Returns the swapped unit in training, otherwise the clipped rate."""
        if self.sent is None:
            return super().rate(z) / self.unit_of_rates
        if z.requires_grad:
            spiking = self.sent > 0
            disagreeing = (spiking & (z <= 0)).sum() > TOLERATED * spiking.sum()
            self.threshold.add_(RISE * disagreeing)
        return swap(z, self.sent, self.unit)


class SNN2ANN(SpikeTrainingModule):
    """Trains an ANN that shares weights with the SNN and sees its spike counts (https://arxiv.org/abs/2206.09449).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        T: steps in training.
        unit: ``stsu`` or ``resu``.
        percentile: percentile of the layer's activations at which thresholds start if ``--ckpt`` gives a ReLU net.
        lr: learning rate of Adam, with a cosine to 0; ``momentum`` is Adam's first beta.
        **kwargs: optimiser settings of :class:`methods.training.TrainingModule`.
    """

    def __init__(
        self,
        net: nn.Module,
        T: int = 4,
        unit: Unit = "stsu",
        percentile: float = 99.9,
        lr: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(net, T=T, v_init=0.0, percentile=percentile, lr=lr, **kwargs)
        if self.momentum == 1:
            raise UserError("--model.momentum 1: must be below 1, because it is Adam's first beta")
        shapes = input_shapes(net, nn.ReLU, self.image)
        self.install(lambda name: SwappedActivation(torch.rand(shapes[name]).clamp_min(SMALLEST), unit))

    def start_at(self, thresholds: dict[str, Tensor]) -> None:
        """Starts from the conversion of a net; its spikes weigh theta."""
        super().start_at(thresholds)
        for layer in self.layers.values():
            assert isinstance(layer, SwappedActivation)
            layer.weighs_one.fill_(False)

    @torch.no_grad()
    def prepare(self, calibration: Iterable[Batch]) -> None:
        """Measures the statistics of batch normalisation; each pass corrects those of one more layer."""
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
        """Returns the ANN's logits, computed with the SNN's spikes as activations."""
        sent: dict[str, Tensor] = {}
        # In evaluation mode, because batch normalisation is folded in the SNN.
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

    def optimizer(self) -> torch.optim.Optimizer:
        """Returns Adam."""
        betas = (self.momentum, 0.999)
        return torch.optim.Adam(self.parameter_groups(), lr=self.lr, betas=betas, weight_decay=self.weight_decay)
