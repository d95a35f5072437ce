"""Burst spikes, and pooling by lateral inhibition.

Li, Zeng: Efficient and Accurate Conversion of Spiking Neural Network with Burst Spikes, IJCAI 2022,
https://arxiv.org/abs/2204.13271

A plain IF neuron sends at most one spike a step and keeps the rest of its potential for later steps. A burst neuron
sends up to gamma spikes in one step:

    s(t) = clip( floor( u(t) / theta ), 0, gamma ),     v(t) = u(t) - theta s(t).

Max-pooling over spike trains passes on every input that fires, so its output exceeds the maximum of the rates. In
LIPooling the inputs of a window inhibit each other, and the output sums to the largest sum of its inputs
(``bench.snn.pooling.LateralInhibitionPool``). A source net may therefore keep its max-pooling (``relu`` with
``--model.max_pool keep``).

From the paper: gamma = 5, theta at the 99.9th percentile of the layer's activations, soft reset.
From the authors' code: v_0 = 0 (``v_init``), which the text does not state.
Chosen here: the number of calibration images. The released scripts use gamma = 2 and read theta from one augmented
training batch of 200 images; they divide activations above 1 by gamma before they take the percentile.
The alphabet is multi-level: T steps of gamma levels are not comparable with T binary steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.activations import QuantisedReLU
from bench.snn.neurons import SpikingNeuron, stack_steps
from methods.thresholds import ThresholdRule


class BurstIFNode(SpikingNeuron):
    """IF neuron that sends up to ``gamma`` spikes in one step.

    Args:
        threshold: theta.
        gamma: maximal number of spikes in one step; 1 is the plain IF neuron.
        v_init: initial membrane potential as a fraction of theta.
        binary: count one spike for each binary digit 1 of the number sent; otherwise count the number itself.
    """

    alphabet = "multi"

    def __init__(self, threshold: Tensor, gamma: int, v_init: float | Tensor = 0.0, binary: bool = False) -> None:
        super().__init__(threshold, v_init)
        self.levels_per_step, self.binary = gamma, binary

    def run(self, x_TBX: Tensor) -> Tensor:
        """See :class:`bench.snn.neurons.SpikingNeuron`."""
        v = self.initial(x_TBX[0]) if self.v is None else self.v
        outputs = []
        for current in x_TBX:
            v = v + current
            spikes = torch.floor(v / self.threshold).clamp(0, self.levels_per_step)
            outputs.append(spikes * self.threshold)
            v = v - outputs[-1]
        self.v = v
        return stack_steps(outputs, x_TBX)

    def events(self, out_TBX: Tensor) -> Tensor:
        """Counts a burst of k as k spikes, or with ``binary`` as the number of binary digits 1 of k."""
        counts = torch.round(out_TBX / self.threshold)
        if self.binary:
            whole = counts.to(torch.int32)
            counts = sum(((whole >> digit) & 1 for digit in range(self.levels_per_step.bit_length())), whole * 0)
        return counts.to(torch.float32)

    def twin(self, T: int) -> nn.Module:
        """See :class:`bench.snn.neurons.SpikingNeuron`."""
        return QuantisedReLU(self.threshold, T, self.v_init, levels=self.levels_per_step, unit=self.unit_spikes)


class Burst(ThresholdRule):
    """Burst spikes: up to gamma spikes in one step (https://arxiv.org/abs/2204.13271).

    Args:
        net: trained network with ReLU activations; it may have max-pooling.
        calibration_images: training images, without augmentation, over which the percentile is taken.
        percentile: of all activations of a layer.
        gamma: maximal number of spikes in one step.
        v_init: initial membrane potential as a fraction of theta.
    """

    pools_by_inhibition = True
    saturates = False

    def __init__(
        self,
        net: nn.Module,
        calibration_images: int = 1000,
        percentile: float = 99.9,
        gamma: int = 5,
        v_init: float = 0.0,
    ) -> None:
        require_within("[1, 1000]", gamma=gamma)
        super().__init__(net, calibration_images, percentile, v_init=v_init)
        self.gamma = gamma

    def node(self, threshold: Tensor) -> SpikingNeuron:
        """The burst neuron."""
        return BurstIFNode(threshold, self.gamma, self.v_init)
