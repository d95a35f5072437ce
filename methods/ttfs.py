"""TTFS: time to first spike.

Stanojevic, Wozniak, Bellec, Cherubini, Pantazi, Gerstner: An Exact Mapping from ReLU Networks to Spiking Neural
Networks, Neural Networks 168, 2023, https://arxiv.org/abs/2212.12522

A neuron sends at most one spike, and the time of the spike encodes the activation: the larger, the earlier. With a
window of T steps for each layer,

    t  =  T (1 - a / theta).

From its arrival to the end of the window a spike adds w theta / T to its receiver's potential in each step, so w a in
all. A layer fires in the window after that of its predecessor, when its input is complete. It fires at the first step
at which its potential reaches a falling threshold,

    v  >=  theta (1 - t / T),      t = 0 .. T - 1,

so it sends the activation rounded down to one of T + 1 levels, or to the nearest with v_0 = theta / 2T. At any depth
the SNN equals the ANN quantised in T levels. The price is latency: T steps for each layer.

From the paper: one spike, whose time is linear in the activation; a window for each layer, which begins when its input
is complete. There time is continuous, so the SNN equals the ReLU net itself.
Chosen here: whole steps, so activations are quantised; a neuron whose activation is 0 sends nothing (there it fires at
the end of its window); the falling threshold, for a potential that rises at a constant rate; v_0 (``v_init``, in units
of theta / T), which makes a QCFS net with L = T exact; theta is the 99.9th percentile of a ReLU net's activations or
the trained one of a QCFS net. Older work codes an activation as 1 / t instead (Rueckauer, Liu, ISCAS 2018). The
simulation writes a spike's whole effect on its window into one step, ``theta (T - t)``, because receivers read only at
the window's end. A sum over steps is therefore right at T only, and a conversion holds for one T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.activations import Activation, QCFSActivation
from bench.snn.calibration import Batch, require_activation
from bench.snn.graph.trace import ImageShape
from bench.snn.neurons import SpikingNeuron
from methods.base import ConversionModule, refuse_without_effect
from methods.counting import CountFirst, CountFirstNode
from methods.thresholds import ThresholdRule


class TTFSNode(CountFirstNode):
    """Receives a whole window of T steps, and sends at most one spike in the next window.

    Args:
        threshold: theta.
        T: steps in a window.
        v_init: initial membrane potential in units of theta / T.
    """

    needs = "TTFS has a window of {} steps"
    coding = "time"

    def __init__(self, threshold: Tensor, T: int, v_init: float = 0.5) -> None:
        super().__init__(threshold, T, v_init)
        self.probing = 0  # in the window of its spike the threshold falls, and the potential stays

    def send(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`methods.counting.CountFirstNode`; potentials are T times the mean current."""
        T, waiting = self.lookahead, torch.ones_like(v, dtype=torch.bool)
        sent = []
        for t in range(T):
            value = self.threshold * (T - t)
            fires = waiting & (v >= value)
            sent.append(torch.where(fires, value, 0.0))
            waiting = waiting & ~fires
        out_TBX = torch.stack(sent).to(v.dtype)  # thresholds may be single beside double currents
        return out_TBX, v - out_TBX.sum(0)


class TTFS(CountFirst, ThresholdRule):
    """Encodes each activation in the time of one spike (https://doi.org/10.1109/ISCAS.2018.8351295).

    Args:
        net: trained network with ReLU (``source="relu"``) or QCFS (``source="qcfs"``) activations.
        source: where theta comes from: a percentile of the activations of a ReLU net (``relu``), or the trained theta
            of a QCFS net (``qcfs``).
        calibration_images: number of training images, without augmentation, over which the percentile is taken. This
            and the next option are for a ReLU net only.
        percentile: percentile of all activations of a layer.
        v_init: initial membrane potential in units of theta / T; 0.5 rounds to the nearest level, 0 down.
    """

    def __init__(
        self,
        net: nn.Module,
        source: Literal["relu", "qcfs"] = "relu",
        calibration_images: int = 1000,
        percentile: float = 99.9,
        v_init: float = 0.5,
    ) -> None:
        self.source = source
        if source == "relu":
            super().__init__(net, calibration_images, percentile, v_init=v_init)
            return
        options = {"calibration_images": calibration_images, "percentile": percentile}
        refuse_without_effect(TTFS, "--model.source qcfs, whose theta is trained", **options)
        require_within("[0, 1)", v_init=v_init)
        require_activation(net, QCFSActivation, "TTFS with --model.source qcfs", "QCFS")
        ConversionModule.__init__(self, net)
        self.calibration_images, self.v_init = 0, v_init

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Reads theta from the activations of a ReLU net."""
        if self.source == "relu":
            super().calibrate(net, calibration, T, image)

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Returns a neuron with a window of T steps."""
        threshold = activation.threshold
        assert isinstance(threshold, Tensor)
        return TTFSNode(threshold, T, self.v_init)
