"""Bit planes: a spike count sent as a binary number.

Datta and others: When Bio-Inspired Computing meets Deep Learning, TMLR 2025, https://arxiv.org/abs/2312.06900

A QCFS activation of L = 2^T - 1 levels is a number n of T bits, and T = log2(L + 1) steps are enough to send it, the
highest bit first. A layer adds up the whole word,

    z = b + sum over t of 2^(T-t) W s(t) theta / L,     n = clip( floor( z L / theta + 1/2 ), 0, L ),

before it sends the bits of its own n. The image enters with weight 1, at one step, and biases once in a word. With L =
2^T - 1 the SNN is the quantised ANN, exactly. A net of another L is converted with 2^T - 1 levels all the same (T = 1,
2, 3, 4: 1, 3, 7, 15); then it equals its own quantised twin of so many levels.

Here every step has the same weight in a mean, so a spike of step t stands for T 2^(T-t) theta / L, image and biases for
themselves at each step, and the mean of the steps is z.
What costs: spikes and the accumulates behind them, as everywhere. The weights 2^(T-t) are not multiplied: membranes are
shifted by one bit before each step but the first (z <- 2 z + W s), neurons x (T - 1) shifts, which the record has as
``shifts`` and which the energy leaves out. The first layer multiplies once in a word.

From the paper: the above.
Chosen here: the thresholds as QCFS has trained them, one for each layer (the paper has one for each channel); the
comparison of bits, from the highest down, as a rounding, which it equals. At most 8 bits. The paper's penalty on bits
that are 1, in training, is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation, QCFSActivation, QuantisedReLU
from bench.snn.calibration import require_activation
from bench.snn.neurons import SpikingNeuron
from methods.counting import CountFirst, CountFirstNode

MOST_BITS = 8


class BitPlaneNode(CountFirstNode):
    """Rounds the mean of its input to ``2^T - 1`` levels and sends their number bit by bit.

    Args:
        threshold: theta, of the highest level.
        T: bits.
    """

    coding = "word"
    weighs_bits = True

    def __init__(self, threshold: Tensor, T: int) -> None:
        super().__init__(threshold, T, v_init=0.0)
        self.levels = 2**T - 1

    def send(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`methods.counting.CountFirstNode`."""
        T = self.lookahead
        number = torch.floor(v / T * (self.levels / self.threshold) + 0.5).clamp(0, self.levels)
        weights = [2 ** (T - t) for t in range(1, T + 1)]
        whole, unit = number.to(torch.int32), self.threshold / self.levels
        planes = [(whole // weight % 2) * (weight * T * unit) for weight in weights]
        return torch.stack(planes).to(v.dtype), v - number * (T * unit)

    def twin(self, T: int) -> nn.Module:
        """The quantised activation of as many levels, which it is."""
        return QuantisedReLU(self.threshold, self.levels, unit=self.unit_spikes)


class BitPlane(CountFirst):
    """Spike counts as binary numbers on a QCFS net (https://arxiv.org/abs/2312.06900).

    Args:
        net: trained network with QCFS activations, for T bits of L = 2^T - 1.
    """

    def __init__(self, net: nn.Module) -> None:
        require_activation(net, QCFSActivation, type(self).__name__, "QCFS")
        super().__init__(net)

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Theta = lambda, T bits."""
        assert isinstance(activation, QCFSActivation)
        if T > MOST_BITS:
            raise UserError(f"T = {T}: bit planes are at most {MOST_BITS} bits, 255 levels; give --T 1,2,3,4")
        return BitPlaneNode(activation.threshold, T)
