"""COS: calibrating offset spikes.

Hao, Ding, Bu, Huang, Yu: Bridging the Gap between ANNs and SNNs by Calibrating Offset Spikes, ICLR 2023,
https://arxiv.org/abs/2302.10685

In a converted QCFS net most neurons whose spike count differs from the ANN's are off by one spike, and the residual
potential shows the sign of the offset. In units of theta, a layer first runs rho steps on x(1..rho) from v = 1/2. This
gives the potentials before reset u(t), the spikes s(t), their number n and the residual r = v(rho). Then

    r <  0 and n >= 1 (one too many):   v_0 = 1/2 - max(1, m_dn - 1 + eps),   m_dn = min { u(t) : s(t) = 1 }
    r >= 1            (one too few):    v_0 = 1/2 + max(1, 1 + eps - m_up),   m_up = max { u(t) : s(t) = 0 }

and the layer starts again from v_0 on x(1..T). The next layer sees this second run in both of its phases.

From the paper or its authors' code: rho = 4 on CIFAR and 8 on ImageNet, eps = 0.001, and m_up = -1000 or m_dn = 1000
if the set is empty. A neuron that fired in all rho steps with r >= 1 therefore gets v_0 = 1001.501 and fires at every
step, which suits a saturated activation (``saturated="release"``). The paper describes further rounds for larger
offsets; the released code runs one.
T as printed excludes rho. The calibration goes layer by layer, so a layer must wait rho steps for its predecessor.
A T below rho is read from the first T steps of a run of rho steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.ranges import require_within
from bench.snn.activations import Activation, QCFSActivation
from bench.snn.calibration import require_activation
from bench.snn.neurons import IFNode, SpikingNeuron
from methods.base import ConversionModule

Saturated = Literal["release", "keep"]
EMPTY = 1000.0


class COSNode(IFNode):
    """IF neuron that replays its input from a calibrated initial potential.

    Args:
        threshold: theta.
        rho: calibration steps.
        rounds: how many offset spikes may be corrected.
        saturated: how to treat a neuron that fired at every step and still has r >= 1; see :class:`COS`.
        epsilon: margin by which a spike is added or removed, in units of theta.
    """

    replays = True

    def __init__(self, threshold: Tensor, rho: int, rounds: int, saturated: Saturated, epsilon: float) -> None:
        super().__init__(threshold, v_init=0.5)
        self.lookahead, self.rounds, self.saturated, self.epsilon = rho, rounds, saturated, epsilon
        self.probing = rho * rounds

    def run(self, x_TBX: Tensor) -> Tensor:
        """Calibrates on the first ``rho`` steps, then runs all steps from the calibrated potential."""
        if self.v is not None:
            return super().run(x_TBX)
        if len(x_TBX) < self.lookahead:
            raise UserError(
                f"COS calibrates on {self.lookahead} steps and got {len(x_TBX)}; run it through bench.snn.simulate"
            )
        start = torch.full_like(x_TBX[0], 0.5)
        current_TBX = x_TBX[: self.lookahead] / self.threshold
        residual = count = torch.zeros(())
        for k in range(1, self.rounds + 1):
            lowest, highest, number, left = self._probe(current_TBX, start)
            if k == 1:
                residual, count = left, number
            surplus = (residual < 1 - k) & (count > k - 1)
            deficit = residual >= k
            if self.saturated == "keep":
                deficit &= number < self.lookahead
            down = (lowest - 1 + self.epsilon).clamp_min(1)
            up = (1 + self.epsilon - highest).clamp_min(1)
            start = start - torch.where(surplus, down, 0.0) + torch.where(deficit, up, 0.0)
        self.v = start * self.threshold
        return super().run(x_TBX)

    def _probe(self, current_TBX: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        v = start
        lowest, highest = torch.full_like(start, EMPTY), torch.full_like(start, -EMPTY)
        number = torch.zeros_like(start)
        for current in current_TBX:
            u = v + current
            spike = u >= 1
            lowest = torch.where(spike, torch.minimum(lowest, u), lowest)
            highest = torch.where(spike, highest, torch.maximum(highest, u))
            number += spike
            v = u - spike.to(u.dtype)
        return lowest, highest, number, v


class COS(ConversionModule):
    """Offset-spike calibration of a QCFS net (https://arxiv.org/abs/2302.10685).

    Args:
        net: trained network with QCFS activations.
        rho: calibration steps.
        rounds: rounds of calibration; the released code has one. A layer keeps the currents of its rho steps, so that
            further rounds cost steps but no synaptic operations.
        saturated: how to treat a neuron that fired in all rho steps and still has r >= 1. ``release`` lets it fire at
            every step, as the released code does; ``keep`` starts it at theta / 2.
        epsilon: margin in units of theta.
    """

    def __init__(
        self,
        net: nn.Module,
        rho: int = 4,
        rounds: int = 1,
        saturated: Saturated = "release",
        epsilon: float = 1e-3,
    ) -> None:
        require_within("[1, inf)", rho=rho, rounds=rounds)
        require_within("[0, inf)", epsilon=epsilon)
        require_activation(net, QCFSActivation, type(self).__name__, "QCFS")
        super().__init__(net)
        self.rho, self.rounds, self.saturated, self.epsilon = rho, rounds, saturated, epsilon
        self.warmup, self.uncounted = rho * rounds, 0  # even at T = 1 there are rho steps of input

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Uses theta = lambda, and v_0 from the calibration."""
        assert isinstance(activation, QCFSActivation)
        return COSNode(activation.threshold, self.rho, self.rounds, self.saturated, self.epsilon)
