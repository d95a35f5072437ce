"""RTS: clipped ReLU and a shift by half a quantisation step.

Deng, Gu: Optimal Conversion of Conventional Artificial Neural Networks to Spiking Neural Networks, ICLR 2021,
https://arxiv.org/abs/2103.00476

The spike count of an IF neuron rounds down, so a rate over T steps is too low by V_th / 2T on average. The paper trains
with a ceiling, a = min( max(z, 0), y_th ), so that outliers do not set the threshold, and adds the missing half step to
the converted neuron in each time step:

    u(t) = v(t-1) + I(t) + theta / (2T),     theta = max a   over the training images,     v_0 = 0.

After T steps the shifts sum to theta / 2, the same as v_0 = theta / 2 from the start. Before step T the two differ, so
a conversion holds for one T only. ``v_init`` is the part of theta that is there at the start; the shift adds the rest
of the half, (1/2 - v_init) theta / T. 0 is the paper's value. 0.5 has no shift and is OPI's initial potential on an RTS
net.

From the paper or its authors' code: ceiling, layer maximum, the shift in every layer.
Chosen here: the value of the ceiling, 1 (about the standard deviation of a BN's output), because the authors' nets of
the same names are different nets (``leaderboards/reported/deng2021rts.yaml``); the number of calibration images; the
optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bench.ranges import require_within
from bench.snn.activations import Activation, ClippedReLU
from bench.snn.calibration import Batch, activation_percentiles, set_thresholds
from bench.snn.graph.trace import ImageShape
from bench.snn.neurons import SpikingNeuron
from methods.thresholds import rounding_node
from methods.training import TrainingModule


class RTS(TrainingModule):
    """Threshold ReLU and shift (https://arxiv.org/abs/2103.00476).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        ceiling: upper limit of every activation in training (the paper's y_th).
        calibration_images: number of training images, without augmentation, over which the layer's maximum is taken.
        v_init: initial membrane potential as a fraction of theta, at most 0.5.
        **kwargs: pooling and optimiser settings of :class:`methods.training.TrainingModule`.
    """

    per_T = True

    def __init__(
        self,
        net: nn.Module,
        ceiling: float = 1.0,
        calibration_images: int = 1000,
        v_init: float = 0.0,
        **kwargs: Any,
    ) -> None:
        require_within("(0, inf)", ceiling=ceiling)
        require_within("[1, inf)", calibration_images=calibration_images)
        require_within("[0, 0.5]", v_init=v_init)
        super().__init__(net, **kwargs)
        self.calibration_images, self.v_init = calibration_images, v_init
        self.install(lambda _: ClippedReLU(ceiling, trainable=False))

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Sets theta to the layer's largest activation, at most the ceiling."""
        set_thresholds(net, activation_percentiles(net, calibration, 100.0))

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Returns an IF neuron that starts at 0 (by default) and gets theta / (2T) at every step."""
        assert isinstance(activation, ClippedReLU)
        return rounding_node(activation.threshold, T, self.v_init)
