"""RTS: clipped ReLU, and a shift of half a quantisation step.

Deng, Gu: Optimal Conversion of Conventional Artificial Neural Networks to Spiking Neural Networks, ICLR 2021,
https://arxiv.org/abs/2103.00476

The count of an IF neuron rounds down, so over T steps a rate is too low by V_th / 2T on average. The paper trains with
a ceiling, a = min( max(z, 0), y_th ), which keeps outliers from setting the threshold, and gives the converted neuron
that half step back at each time step:

    u(t) = v(t-1) + I(t) + theta / (2T),     theta = max a   over the training images,     v_0 = 0.

After T steps the shifts sum to theta / 2, which is what v_0 = theta / 2 gives from the start; before step T the two
differ, so a conversion is for one T. ``v_init`` says how much of the half is there at the start and the shift brings
the rest, (1/2 - v_init) theta / T: 0 is the paper's, 0.5 has no shift and is OPI's initial potential on an RTS net.

From the paper or its authors' code: ceiling, layer maximum, the shift in every layer.
Chosen here: the value of the ceiling (1, of a BN's output about its standard deviation), as the authors' nets of the
same names are other nets (``leaderboards/reported/deng2021rts.yaml``); the number of calibration images; the optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bench.errors import UserError
from bench.snn.activations import Activation, ClippedReLU
from bench.snn.calibration import Batch, activation_percentiles, require_images, set_thresholds
from bench.snn.graph.trace import ImageShape
from bench.snn.neurons import SpikingNeuron
from bench.snn.simulate import SpikingNetwork
from methods.thresholds import require_v_init, rounding_node
from methods.training import TrainingModule


class RTS(TrainingModule):
    """Threshold ReLU and shift (https://arxiv.org/abs/2103.00476).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        ceiling: of every activation in training (the paper's y_th).
        calibration_images: training images, without augmentation, over which the layer's maximum is taken.
        v_init: initial membrane potential as a fraction of theta, at most 0.5.
        **kwargs: pooling and optimiser settings of :class:`methods.training.TrainingModule`.
    """

    def __init__(
        self,
        net: nn.Module,
        ceiling: float = 1.0,
        calibration_images: int = 1000,
        v_init: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not ceiling > 0:
            raise UserError(f"--model.ceiling {ceiling}: must be positive")
        require_images(calibration_images)
        require_v_init(v_init, most=0.5)
        super().__init__(net, **kwargs)
        self.calibration_images, self.v_init = calibration_images, v_init
        self.install(lambda _: ClippedReLU(ceiling, trainable=False))

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Theta is the layer's largest activation, at most the ceiling."""
        set_thresholds(net, activation_percentiles(net, calibration, 100.0))

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """IF that starts empty (by default) and gets theta / (2T) at every step."""
        assert isinstance(activation, ClippedReLU)
        return rounding_node(activation.threshold, T, self.v_init)

    def spiking(self, net: nn.Module, T: int, image: ImageShape = None) -> SpikingNetwork:
        """Good for the T of its shift alone."""
        return SpikingNetwork(net, only_T=T, image=image)
