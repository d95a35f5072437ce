"""TTFS: time to first spike.

Rueckauer, Liu: Conversion of Analog to Spiking Neural Networks Using Sparse Temporal Coding, ISCAS 2018,
https://doi.org/10.1109/ISCAS.2018.8351295

A neuron sends at most one spike, and the time of the spike encodes the activation: the larger, the earlier. With a
window of T steps for each layer,

    t  =  T (1 - a / theta).

From its arrival to the end of the window a spike adds w theta / T to its receiver's potential in each step, so w a in
all. A layer fires in the window after that of its predecessor, when its input is complete. It fires at the first step
at which its potential reaches a falling threshold,

    v  >=  theta (1 - t / T),      t = 0 .. T - 1,

so it sends the activation rounded down to one of T + 1 levels, or to the nearest with v_0 = theta / 2T. At any depth
the SNN equals the ANN quantised in T levels. The price is latency: T steps for each layer.

From the paper: one spike, the coding by its time, the windows. Its data set is MNIST.
Chosen here: v_0 (``v_init``, in units of theta / T), which makes a QCFS net with L = T exact; theta is the 99.9th
percentile of a ReLU net's activations or the trained one of a QCFS net. The simulation writes a spike's whole effect on
its window into one step, ``theta (T - t)``, because receivers read only at the window's end. A sum over steps is
therefore right at T only, and a conversion holds for one T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation, QCFSActivation
from bench.snn.calibration import require_activation
from bench.snn.graph.trace import ImageShape
from bench.snn.neurons import SpikingNeuron, stack_steps
from bench.snn.simulate import SpikingNetwork
from methods.base import Batch, ConversionModule
from methods.thresholds import ThresholdRule, require_v_init


class TTFSNode(SpikingNeuron):
    """Reads a whole window of T steps and sends at most one spike in the next window.

    Args:
        threshold: theta.
        T: steps of a window.
        v_init: initial membrane potential in units of theta / T.
    """

    def __init__(self, threshold: Tensor, T: int, v_init: float = 0.5) -> None:
        super().__init__(threshold, v_init)
        self.T = self.lookahead = T

    def run(self, x_TBX: Tensor) -> Tensor:
        """See :class:`bench.snn.neurons.SpikingNeuron`; potentials are T times the mean current."""
        if len(x_TBX) != self.T:
            raise UserError(
                f"TTFS has a window of {self.T} steps and got {len(x_TBX)}; run it through bench.snn.simulate"
            )
        v = self.initial(x_TBX[0]) + x_TBX.sum(0)
        waiting = torch.ones_like(v, dtype=torch.bool)
        sent = []
        for t in range(self.T):
            value = self.threshold * (self.T - t)
            fires = waiting & (v >= value)
            sent.append(torch.where(fires, value, 0.0))
            waiting = waiting & ~fires
        out_TBX = stack_steps(sent, x_TBX)
        self.v = v - out_TBX.sum(0)
        return out_TBX


class TTFS(ThresholdRule):
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
        for option, value, default in (
            ("calibration_images", calibration_images, 1000),
            ("percentile", percentile, 99.9),
        ):
            if value != default:
                raise UserError(
                    f"--model.{option} {value}: --model.source qcfs uses the trained theta; leave the option out"
                )
        require_v_init(v_init)
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

    def spiking(self, net: nn.Module, T: int, image: ImageShape = None) -> SpikingNetwork:
        """Builds an SNN that holds only for windows of T steps."""
        return SpikingNetwork(net, only_T=T, image=image)
