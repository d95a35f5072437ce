"""Group neurons.

Lv, Fang, Yuan, Tian: Optimal ANN-SNN Conversion with Group Neurons, ICASSP 2024,
https://arxiv.org/abs/2402.19061

An IF neuron sends one of two values in a step. A group has m members that share one membrane. Member i has the
threshold i theta / m, and at each step

    u = v(t-1) + x(t),     n = #{ i : u >= i theta / m },     it sends n theta / m,     v(t) = u - n theta / m,

with v_0 = theta / 2m. For a constant current it distinguishes m T levels in T steps: one step gives the quantised ANN
of m levels, and m = 1 is the plain IF neuron. Source: a net trained by QCFS, with theta = lambda.

From the authors' code: the above; m = 4 (its README has 6).
A step of m levels is not a binary step. The alphabet is multi-level, with m levels per step, and n members that fire
count as n spikes.
"""

from __future__ import annotations

from torch import nn

from bench.ranges import require_within
from bench.snn.activations import Activation, QCFSActivation
from bench.snn.calibration import require_activation
from bench.snn.neurons import SpikingNeuron
from methods.base import ConversionModule
from methods.burst import BurstIFNode


class Group(ConversionModule):
    """Group neurons on a QCFS net (https://arxiv.org/abs/2402.19061).

    Args:
        net: trained network with QCFS activations.
        members: number m of neurons in a group.
    """

    def __init__(self, net: nn.Module, members: int = 4) -> None:
        require_within("[1, 1000]", members=members)
        require_activation(net, QCFSActivation, type(self).__name__, "QCFS")
        super().__init__(net)
        self.members = members

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Sends up to m spikes of theta / m in a step; v_0 = theta / 2m."""
        assert isinstance(activation, QCFSActivation)
        return BurstIFNode(activation.threshold / self.members, self.members, v_init=0.5)
