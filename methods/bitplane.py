"""Bit planes: a spike count sent as a binary number.

Datta and others: When SNN meets ANN, TMLR 2025 (first as When Bio-Inspired Computing
meets Deep Learning), https://arxiv.org/abs/2312.06900

A QCFS activation with L = 2^T - 1 levels is a T-bit number n. T = log2(L + 1) steps are enough to send it, the highest
bit first. A layer adds up the whole word,

    z = b + sum over t of 2^(T-t) W s(t) theta / L,     n = clip( floor( z L / theta + 1/2 ), 0, L ),

before it sends the bits of its own n. The image enters with weight 1, in one step, and biases once per word. With L =
2^T - 1 the SNN is the quantised ANN, exactly. A net with another L is also converted with 2^T - 1 levels (T = 1, 2, 3,
4: 1, 3, 7, 15). It then equals its own quantised twin with that many levels.

Here every step has the same weight in a mean. A spike of step t therefore stands for T 2^(T-t) theta / L, image and
biases enter unchanged at each step, and the mean over the steps is z.
Costs: spikes and the accumulates that they cause, as everywhere. The weights 2^(T-t) need no multiplication: membranes
are shifted by one bit before each step except the first (z <- 2 z + W s). These are neurons x (T - 1) shifts, recorded
as ``shifts``; the energy leaves them out. Layers that see only the image multiply once per word. Their waits and shifts
are counted like those of the others, although they could do without.

From the paper: the above.
Chosen here: the thresholds that QCFS has trained, one for each layer (the paper has one for each channel). The paper
compares bits from the highest down; here this is a rounding, which gives the same result. At most 8 bits. The paper's
training penalty on bits that are 1 is left out.
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
    """Rounds the mean of its input to one of ``2^T - 1`` levels and sends the level's number bit by bit.

    Args:
        threshold: theta, the value of the highest level.
        T: number of bits.
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
        """Returns the quantised activation with the same levels, which the neuron equals."""
        return QuantisedReLU(self.threshold, self.levels, unit=self.unit_spikes)


class BitPlane(CountFirst):
    """Sends spike counts as binary numbers, on a QCFS net (https://arxiv.org/abs/2312.06900).

    Args:
        net: trained network with QCFS activations; with L = 2^T - 1 the SNN equals it at T steps.
    """

    def __init__(self, net: nn.Module) -> None:
        require_activation(net, QCFSActivation, type(self).__name__, "QCFS")
        super().__init__(net)

    def check_steps(self, T: int) -> None:
        """Refuses more than 8 bits."""
        if T > MOST_BITS:
            raise UserError(
                f"T = {T}: bit planes have at most {MOST_BITS} bits, 255 levels; give T from 1 to {MOST_BITS}"
            )

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Theta = lambda, T bits."""
        assert isinstance(activation, QCFSActivation)
        return BitPlaneNode(activation.threshold, T)
