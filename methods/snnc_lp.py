"""SNNC, light pipeline: thresholds by least error, and bias correction layer by layer.

Li, Deng, Dong, Gong, Gu: A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration, ICML
2021, https://arxiv.org/abs/2106.06984

For a given T and a trained ReLU net with folded BN:

1. theta_l by a grid search, theta = max a (1 - 0.01 i), i = 0 .. 94, for the least square error between a and
   clip-floor(a; T, theta) = theta / T clip( floor(a T / theta), 0, T ), as a running average (0.9) over batches;
2. each neuron gets theta / (2T) at every step, so that the floor rounds to nearest (``v_init`` of it at the start and
   the rest at every step: 0.5 is OPI's initial potential instead of the shift);
3. from the first layer to the last, each channel's bias is corrected by what the layer lacks on the spikes that really
   arrive:

    b_c  <-  b_c - ( mean of the SNN's output over T, images and positions  -  mean of the ANN's ).

The last layer stays analogue. A conversion is for one T.

From the paper or its authors' code: the above; channel-wise thresholds are the authors' option.
Chosen here: 1,024 calibration images, as the advanced pipeline has them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation, QuantisedReLU, ReLUActivation
from bench.snn.calibration import Batch, Granularity, require_activation, require_images
from bench.snn.graph.surgery import replace
from bench.snn.layerwise import SpikeTrains, execution_order, mean_activations, mse_thresholds, per_channel
from bench.snn.neurons import IFNode
from bench.snn.simulate import SpikingNetwork
from methods.base import ConversionModule
from methods.thresholds import require_v_init, rounding_node


class SNNCLight(ConversionModule):
    """Calibration of thresholds and biases (https://arxiv.org/abs/2106.06984).

    Args:
        net: trained network with ReLU activations.
        calibration_images: training images, without augmentation.
        granularity: one threshold for each layer or channel.
        v_init: initial membrane potential as a fraction of theta, at most 0.5.
    """

    def __init__(
        self,
        net: nn.Module,
        calibration_images: int = 1024,
        granularity: Granularity = "layer",
        v_init: float = 0.0,
    ) -> None:
        require_images(calibration_images)
        require_v_init(v_init, most=0.5)
        if granularity == "neuron":
            raise UserError("--model.granularity neuron: SNNC has one threshold for each layer or channel")
        require_activation(net, ReLUActivation, type(self).__name__, "ReLU")
        super().__init__(net)
        self.calibration_images, self.granularity, self.v_init = calibration_images, granularity, v_init

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int) -> None:
        """Puts neurons in the activations' places, first to last, each corrected before the next is looked at."""
        self.ann = copy.deepcopy(net)
        thresholds = mse_thresholds(net, calibration, T, self.granularity)
        self.means = mean_activations(net, calibration)
        # The ANN itself, quantised: the corrections below make up for spikes that come unevenly, and without these they
        # would be errors. In a list, or it would be taken for a part of the model.
        self._quantised = [copy.deepcopy(net)]
        replace(self._quantised[0], Activation, lambda name, _: QuantisedReLU(thresholds[name], T))
        self.trains = SpikeTrains(net, calibration, T)
        for name in execution_order(net):
            try:
                node = rounding_node(thresholds[name], T, self.v_init)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            self.before(net, name, thresholds[name], calibration)
            net.set_submodule(name, node.eval())
            self.correct(name, node)
            self.trains.keep(name)
        del self.ann, self.means, self.trains

    def before(self, net: nn.Module, name: str, threshold: Tensor, calibration: Sequence[Batch]) -> None:
        """What is done to a layer's weights before its neuron is there: nothing in the light pipeline."""

    def correct(self, name: str, node: IFNode) -> None:
        """Bias correction of one layer."""
        assert node.bias is not None
        node.bias = node.bias - per_channel(self.mean_rate(name) - self.means[name])

    def mean_rate(self, name: str) -> Tensor:
        """Mean output over T and images of one layer of the SNN, ``[C, H, W]``."""
        return self.trains.rates(name).double().mean(0).float()

    def spiking(self, net: nn.Module) -> SpikingNetwork:
        """Good for the T of its calibration alone."""
        return SpikingNetwork(net, only_T=self.T, quantised=self._quantised.pop())
