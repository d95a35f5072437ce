"""Group neurons.

Lv, Fang, Yuan, Tian: Optimal ANN-SNN Conversion with Group Neurons, ICASSP 2024,
https://arxiv.org/abs/2402.19061

An IF neuron can tell one level in a step. A group of m members shares one membrane, member i with the threshold
i theta / m, and at each step

    u = v(t-1) + x(t),     n = #{ i : u >= i theta / m },     it sends n theta / m,     v(t) = u - n theta / m,

with v_0 = theta / 2m. On a constant current it tells m T levels in T steps: one step is the quantised ANN of m levels,
and m = 1 is the plain IF neuron. Source: a net trained by QCFS, theta its lambda.

From the authors' code: the above; m = 4 (its README has 6).
A step of m levels is not a binary step: alphabet multi, m levels per step, and n members that fire cost n spikes.
"""

from __future__ import annotations

from torch import nn

from bench.errors import UserError
from bench.snn.activations import Activation, QCFSActivation
from bench.snn.calibration import require_activation
from bench.snn.neurons import SpikingNeuron
from methods.base import ConversionModule
from methods.burst import BurstIFNode


class Group(ConversionModule):
    """Group neurons on a QCFS net (https://arxiv.org/abs/2402.19061).

    Args:
        net: trained network with QCFS activations.
        members: m, neurons of a group.
    """

    def __init__(self, net: nn.Module, members: int = 4) -> None:
        if not 1 <= members <= 1000:
            raise UserError(f"--model.members {members}: must be at least 1 and at most 1000")
        require_activation(net, QCFSActivation, type(self).__name__, "QCFS")
        super().__init__(net)
        self.members = members

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Up to m spikes of theta / m in a step, from half of one."""
        assert isinstance(activation, QCFSActivation)
        return BurstIFNode(activation.threshold / self.members, self.members, v_init=0.5)
