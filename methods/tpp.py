"""TPP: two-phase probabilistic neurons.

Bojkovic, Wu, Gu: Temporal Misalignment in ANN-SNN Conversion and its Mitigation via Probabilistic Spiking Neurons, ICML
2025, https://arxiv.org/abs/2502.14487

The paper finds that a converted net gains accuracy if each neuron's spikes are sent in a random order: their timing is
wrong, not their number (``--snn.permute true``, for methods without waiting layers, warm-up and differential coding;
``bench.snn.readout``). The paper's neuron has such an order by construction. It first adds up the whole input of T
steps, v = sum of x(t), and then sends, for t = 1 .. T,

    s(t) = 1  with probability  clip( v / (theta (T - t + 1)), 0, 1 ),     v <- v - theta s(t),

so a potential of n theta, with n a whole number, gives n spikes at random steps. For other potentials the mean count is
not v / theta: for 0 < v < theta it is 1 - prod_{k=1..T} (1 - v / (k theta)).
Source: a net trained by QCFS, theta = lambda.

From the paper: the two phases, the probability.
Chosen here: v_0 = 0, as no text states it. With theta / 2 the half step of QCFS would count twice, because random
rounding needs no half step. Accuracy and costs are means over several runs of each image (``--snn.draws``).
Each layer waits T steps for its predecessor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.activations import Activation, QCFSActivation, QuantisedReLU
from bench.snn.calibration import require_activation
from bench.snn.neurons import Draws, SpikingNeuron
from methods.counting import CountFirst, CountFirstNode


class ProbabilisticNode(CountFirstNode):
    """Adds up its input, then sends the sum as spikes at random steps.

    Args:
        threshold: theta.
        T: steps of input and of output.
        draws: source of random numbers.
    """

    def __init__(self, threshold: Tensor, T: int, draws: Draws) -> None:
        super().__init__(threshold, T, v_init=0.0)
        self.draws = draws

    def send(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`methods.counting.CountFirstNode`."""
        sent = []
        for left in range(self.lookahead, 0, -1):
            out = torch.where(self.draws(v) < v / (self.threshold * left), self.threshold, 0.0)
            sent.append(out)
            v = v - out
        return torch.stack(sent).to(v.dtype), v

    def twin(self, T: int) -> nn.Module:
        """Returns a quantised activation that rounds to nearest instead of at random."""
        return QuantisedReLU(self.threshold, T, 0.5, unit=self.unit_spikes)


class TPP(CountFirst):
    """Two-phase probabilistic neurons on a QCFS net (https://arxiv.org/abs/2502.14487).

    Args:
        net: trained network with QCFS activations.
        draw_seed: seed of the random numbers.
    """

    random = True

    def __init__(self, net: nn.Module, draw_seed: int = 0) -> None:
        require_within("[0, inf)", draw_seed=draw_seed)
        require_activation(net, QCFSActivation, type(self).__name__, "QCFS")
        super().__init__(net)
        self.draw_seed = draw_seed

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Uses theta = lambda and v_0 = 0."""
        assert isinstance(activation, QCFSActivation)
        return ProbabilisticNode(activation.threshold, T, Draws(self.draw_seed, name))
