"""SNM: signed neurons with memory.

Wang, Zhang, Chen, Qu: Signed Neuron with Memory: Towards Simple, Accurate and High-Efficient ANN-SNN Conversion, IJCAI
2022, https://doi.org/10.24963/ijcai.2022/347

A plain neuron that has sent too many spikes cannot take them back; this one can. With m(t) the sum of the spikes sent
so far,

    s(t) = +1  if  u(t) >= theta,
           -1  if  u(t) <= -theta  and  m(t-1) > 0,
            0  otherwise;
    v(t) = u(t) - theta s(t),     m(t) = m(t-1) + s(t),

so m never falls below 0, just as a ReLU's output. Thresholds are normalised for each neuron (the paper's neuron-wise
normalisation): theta is the neuron's own largest activation over the calibration images.

From the paper: the rule, its memory, and neuron-wise normalisation. From the authors' code: v_0 = 0 (``v_init``),
which the text does not state.
Chosen here: the number of calibration images, without augmentation; the released code takes the maxima over the
augmented training set and the test set, separately for each place in a batch of 256. An analogue read-out; there the
last layer has signed neurons too. A neuron that no calibration image activates has the smallest possible threshold. In
the test it may send spikes of either sign that weigh nothing (:func:`bench.snn.calibration.activation_percentiles`).
The alphabet is ternary: each spike carries a sign, so results are not comparable with those of a binary network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.snn.calibration import Granularity
from bench.snn.neurons import SpikingNeuron, stack_steps
from methods.thresholds import ThresholdRule


class SignedIFNode(SpikingNeuron):
    """IF neuron that takes a spike back if its potential falls to ``-theta`` and it has sent one before."""

    alphabet = "ternary"

    def __init__(self, threshold: Tensor, v_init: float = 0.0) -> None:
        super().__init__(threshold, v_init)
        self.sent: Tensor | None = None

    def reset(self) -> None:
        """Resets the potential and the memory."""
        super().reset()
        self.sent = None

    def run(self, x_TBX: Tensor) -> Tensor:
        """See :class:`bench.snn.neurons.SpikingNeuron`."""
        v = self.initial(x_TBX[0]) if self.v is None else self.v
        sent = torch.zeros_like(v) if self.sent is None else self.sent
        outputs = []
        for current in x_TBX:
            v = v + current
            up, down = v >= self.threshold, (v <= -self.threshold) & (sent > 0)
            spike = up.to(v.dtype) - down.to(v.dtype)
            sent = sent + spike
            outputs.append(spike * self.threshold)
            v = v - outputs[-1]
        self.v, self.sent = v, sent
        return stack_steps(outputs, x_TBX)


class SNM(ThresholdRule):
    """Signed neurons with memory (https://doi.org/10.24963/ijcai.2022/347).

    Args:
        net: trained network with ReLU activations.
        calibration_images: number of training images, without augmentation, over which maxima are taken.
        granularity: one threshold for each neuron, as in the paper, or for each channel or layer.
        v_init: initial membrane potential as a fraction of theta.
    """

    def __init__(
        self,
        net: nn.Module,
        calibration_images: int = 1000,
        granularity: Granularity = "neuron",
        v_init: float = 0.0,
    ) -> None:
        super().__init__(net, calibration_images, percentile=100.0, granularity=granularity, v_init=v_init)

    def node(self, threshold: Tensor) -> SpikingNeuron:
        """Returns the signed neuron."""
        return SignedIFNode(threshold, self.v_init)
