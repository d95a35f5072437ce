"""SRP: uses the residual membrane potential to eliminate the unevenness error.

Hao, Bu, Ding, Huang, Yu: Reducing ANN-SNN Conversion Error through Residual Membrane Potential, AAAI 2023,
https://arxiv.org/abs/2302.02091

A neuron whose residual potential is negative after tau steps has sent too many spikes: its mean input is (nearly
always) at most 0, so it should be silent. All layers of a QCFS net run tau steps together. Then each neuron stores

    mask = [ v(tau) > eps theta ],   eps = 1e-3,

and sets v = theta / 2. In the T steps that follow it integrates, fires and resets as before but sends mask * theta * s.
Logits are summed over those T steps only. T as printed excludes tau; the latency is tau + T.

From the paper or its authors' code: tau = 4 on CIFAR, 14 (VGG-16) or 8 (ResNet-34) on ImageNet; eps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.activations import Activation, QCFSActivation
from bench.snn.calibration import require_activation
from bench.snn.neurons import IFNode, SpikingNeuron
from methods.base import ConversionModule


class SRPNode(IFNode):
    """IF neuron that is silent after ``tau`` steps unless its residual potential is positive.

    Args:
        threshold: theta.
        tau: steps before the mask is taken.
        epsilon: fraction of theta that the residual must exceed.
    """

    def __init__(self, threshold: Tensor, tau: int, epsilon: float) -> None:
        super().__init__(threshold, v_init=0.5)
        self.tau, self.epsilon = tau, epsilon
        self.elapsed = 0
        self.mask: Tensor | None = None

    def reset(self) -> None:
        """Resets the potential, the step count and the mask."""
        super().reset()
        self.elapsed, self.mask = 0, None

    def step(self, v: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`bench.snn.neurons.IFNode`; the mask is taken before the first step after ``tau``."""
        if self.mask is None and self.elapsed == self.tau:
            self.mask = v > self.epsilon * self.threshold
            v = self.initial(v)
        # Counts up to tau only: a growing number would make compiled code recompile for each pass.
        self.elapsed = min(self.elapsed + 1, self.tau)
        out, v = super().step(v, current)
        # Masked step by step: an operation on all steps would be fused with all previous steps of each.
        return (out if self.mask is None else torch.where(self.mask, out, 0.0)), v


class SRP(ConversionModule):
    """Silences neurons by their residual membrane potential, on a QCFS net (https://arxiv.org/abs/2302.02091).

    Args:
        net: trained network with QCFS activations.
        tau: steps before the mask is taken.
        epsilon: fraction of theta that the residual must exceed.
    """

    def __init__(self, net: nn.Module, tau: int = 4, epsilon: float = 1e-3) -> None:
        require_within("[1, inf)", tau=tau)
        require_within("[0, inf)", epsilon=epsilon)
        require_activation(net, QCFSActivation, type(self).__name__, "QCFS")
        super().__init__(net)
        self.tau, self.epsilon = tau, epsilon
        self.warmup = tau

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Uses theta = lambda, v_0 = theta / 2, and the mask after tau."""
        assert isinstance(activation, QCFSActivation)
        return SRPNode(activation.threshold, self.tau, self.epsilon)
