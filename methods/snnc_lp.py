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
from dataclasses import dataclass, field

from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation, QuantisedReLU, ReLUActivation
from bench.snn.calibration import Batch, Granularity, require_activation, require_images
from bench.snn.graph.trace import ImageShape
from bench.snn.layerwise import SpikeTrains, execution_order, mean_activations, mse_thresholds, per_channel
from bench.snn.neurons import IFNode
from bench.snn.replace import replace
from bench.snn.simulate import SpikingNetwork
from methods.base import ConversionModule
from methods.thresholds import require_v_init, rounding_node


@dataclass
class Work:
    """A calibration under way.

    Attributes:
        ann: the network as it was, BN folded.
        net: the network, whose activations become neurons from the first to the last.
        batches: calibration images.
        T: steps.
        means: of each neuron's activation in the ANN, by layer name.
        trains: the images as spikes, as far as there are neurons.
        refitted: weights that belong to a layer that is done.
    """

    ann: nn.Module
    net: nn.Module
    batches: Sequence[Batch]
    T: int
    means: dict[str, Tensor]
    trains: SpikeTrains
    refitted: set[nn.Parameter] = field(default_factory=set)

    def mean_rate(self, name: str) -> Tensor:
        """Mean output over T and images of one layer of the SNN, ``[C, H, W]``."""
        return self.trains.rates(name).double().mean(0).float()


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

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Puts neurons in the activations' places, first to last, each corrected before the next is looked at."""
        thresholds = mse_thresholds(net, calibration, T, self.granularity)
        means = mean_activations(net, calibration)
        work = Work(copy.deepcopy(net), net, calibration, T, means, SpikeTrains(net, calibration, T))
        for name in execution_order(net, image):
            try:
                node = rounding_node(thresholds[name], T, self.v_init)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            self.before(work, name, thresholds[name])
            net.set_submodule(name, node.eval())
            self.correct(work, name, node)
            work.trains.keep(name)

    def before(self, work: Work, name: str, threshold: Tensor) -> None:
        """What is done to a layer's weights before its neuron is there: nothing in the light pipeline."""

    def correct(self, work: Work, name: str, node: IFNode) -> None:
        """Bias correction of one layer."""
        assert node.bias is not None
        node.bias = node.bias - per_channel(work.mean_rate(name) - work.means[name])

    def spiking(self, net: nn.Module, T: int, image: ImageShape = None) -> SpikingNetwork:
        """Good for the T of its calibration alone."""
        # The twin is the ANN itself, quantised: the corrections make up for spikes that come unevenly, and without
        # these they would be errors.
        twin = self.folded(image)
        thresholds = {name: module.threshold for name, module in net.named_modules() if isinstance(module, IFNode)}
        replace(twin, Activation, lambda name, _: QuantisedReLU(thresholds[name], T))
        return SpikingNetwork(net, only_T=T, quantised=twin, image=image)
