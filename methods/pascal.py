"""PASCAL: spikes are counted, corrected and sent again.

Ramesh, Srinivasan: PASCAL: Precise and Efficient ANN-SNN Conversion using Spike Accumulation and Adaptive Layerwise
Activation, TMLR 2025, https://arxiv.org/abs/2505.01730

A layer of IF neurons runs on the T steps of its input, from v_0 = theta / 2. It counts its spikes, n, and does not send
them yet. In T - 1 further steps without input it corrects this number by what is left in the membrane,

    n <- n + 1,  v <- v - theta   if  v >= theta  and  n < T;
    n <- n - 1,  v <- v + theta   if  v < 0  and  n > 0,

and then sends n spikes in T steps. T - 1 steps are enough: a neuron that fired at the last step has no surplus, and one
that did not has no deficit. The corrected number is that of the quantised activation, for any order of the input. On a
QCFS net with L = T the SNN is therefore exactly the quantised ANN.

From the authors' code (https://github.com/BrainSeek-Lab/PASCAL): the three phases. theta / L and the sum of spikes
there are theta and the mean of spikes here. In its nets each layer has its own L, chosen and trained by the second part
of the paper, and T as printed is a mean over layers. Here all layers have the net's L, and a net with another L is
converted with T levels.
Chosen here: no tolerance in the comparison (there -8e-5). Each layer waits 2 T - 1 steps for its predecessor, the first
too (there it quantises the image's current itself, and sends at once). Corrections are signed and stay inside the
neuron; the spikes that are sent are binary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.snn.activations import Activation, QCFSActivation
from bench.snn.calibration import require_activation
from bench.snn.neurons import SpikingNeuron
from methods.counting import CountFirst, CountFirstNode


class CorrectedCountNode(CountFirstNode):
    """Counts the spikes of an IF neuron, corrects their number and sends it.

    Args:
        threshold: theta.
        T: steps of input and of output.
    """

    def __init__(self, threshold: Tensor, T: int) -> None:
        super().__init__(threshold, T, v_init=0.5)
        self.probing = 2 * T - 1

    def add_up(self, x_TBX: Tensor) -> Tensor:
        """Integrates, fires and corrects; returns the potential that is left."""
        v, count = self.initial(x_TBX[0]), torch.zeros_like(x_TBX[0])
        for current in x_TBX:
            v = v + current
            fires = (v >= self.threshold).to(v.dtype)
            v, count = v - fires * self.threshold, count + fires
        # All corrections at once: no count needs more than T - 1 of them.
        self.count = (count + torch.floor(v / self.threshold)).clamp(0, self.lookahead)
        return v - (self.count - count) * self.threshold

    def send(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`methods.counting.CountFirstNode`."""
        steps = [torch.where(self.count >= t, self.threshold, 0.0).to(v.dtype) for t in range(1, self.lookahead + 1)]
        return torch.stack(steps), v


class PASCAL(CountFirst):
    """Counts, corrects and sends spikes again, on a QCFS net (https://arxiv.org/abs/2505.01730).

    Args:
        net: trained network with QCFS activations.
    """

    def __init__(self, net: nn.Module) -> None:
        require_activation(net, QCFSActivation, type(self).__name__, "QCFS")
        super().__init__(net)

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Uses theta = lambda and v_0 = theta / 2."""
        assert isinstance(activation, QCFSActivation)
        return CorrectedCountNode(activation.threshold, T)
