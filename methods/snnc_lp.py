"""SNNC, light pipeline: thresholds of least error and bias correction, layer by layer.

Li, Deng, Dong, Gong, Gu: A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration, ICML
2021, https://arxiv.org/abs/2106.06984

For a given T and a trained ReLU net with folded BN:

1. a grid search over theta = max a (1 - 0.01 i), i = 0 .. 94, finds theta_l with the least square error between a and
   clip-floor(a; T, theta) = theta / T clip( floor(a T / theta), 0, T ), as a running average (0.9) over batches;
2. each neuron gets theta / (2T) at every step, so that the floor rounds to nearest (with ``v_init`` a part of the half
   step is there at the start and the rest is added at every step; 0.5 is OPI's initial potential without a shift);
3. from the first layer to the last, each channel's bias is corrected by the error of the layer's output on the spikes
   that arrive:

    b_c  <-  b_c - ( mean of the SNN's output over T, images and positions  -  mean of the ANN's ).

The last layer stays analogue. A conversion holds for one T only.

From the paper or its authors' code: the above; channel-wise thresholds are the authors' option.
Chosen here: 1,024 calibration images, as the advanced pipeline has them. With channel-wise thresholds, each unit of a
hidden linear layer has its own; in the authors' code such a layer has one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from bench.errors import UserError
from bench.ranges import require_within
from bench.snn.activations import Activation, QuantisedReLU, ReLUActivation
from bench.snn.calibration import Batch, Granularity, require_activation
from bench.snn.graph.trace import ImageShape
from bench.snn.layerwise import SpikeTrains, execution_order, mean_activations, mse_thresholds, per_channel
from bench.snn.neurons import IFNode
from bench.snn.replace import replace
from bench.snn.simulate import SpikingNetwork
from methods.base import ConversionModule
from methods.thresholds import rounding_node


@dataclass
class Work:
    """The state of a calibration.

    Attributes:
        ann: the original network, BN folded.
        net: the network under conversion; its activations become neurons from the first to the last.
        batches: calibration images.
        T: steps.
        means: for each layer name, the mean activation of each neuron in the ANN.
        trains: the spike trains of the layers converted so far.
        refitted: weights already refitted for an earlier layer.
    """

    ann: nn.Module
    net: nn.Module
    batches: Sequence[Batch]
    T: int
    means: dict[str, Tensor]
    trains: SpikeTrains
    refitted: set[nn.Parameter] = field(default_factory=set)

    def mean_rate(self, name: str) -> Tensor:
        """Returns the mean output of one layer of the SNN over T and images, ``[C, H, W]``."""
        return self.trains.rates(name).double().mean(0).float()


class SNNCLight(ConversionModule):
    """Calibration of thresholds and biases (https://arxiv.org/abs/2106.06984).

    Args:
        net: trained network with ReLU activations.
        calibration_images: number of training images, without augmentation.
        granularity: one threshold for each layer or channel.
        v_init: initial membrane potential as a fraction of theta, at most 0.5.
    """

    per_T = True

    def __init__(
        self,
        net: nn.Module,
        calibration_images: int = 1024,
        granularity: Granularity = "layer",
        v_init: float = 0.0,
    ) -> None:
        require_within("[1, inf)", calibration_images=calibration_images)
        require_within("[0, 0.5]", v_init=v_init)
        if granularity == "neuron":
            raise UserError("--model.granularity neuron: SNNC has one threshold for each layer or channel")
        require_activation(net, ReLUActivation, type(self).__name__, "ReLU")
        super().__init__(net)
        self.calibration_images, self.granularity, self.v_init = calibration_images, granularity, v_init

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Replaces the activations by neurons, first to last, and corrects each before it goes on to the next."""
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
        """Changes a layer's weights before its neuron is inserted; the light pipeline changes nothing."""

    def correct(self, work: Work, name: str, node: IFNode) -> None:
        """Corrects the bias of one layer."""
        assert node.bias is not None
        node.bias = node.bias - per_channel(work.mean_rate(name) - work.means[name])

    def spiking(self, net: nn.Module, T: int, image: ImageShape = None) -> SpikingNetwork:
        """Builds an SNN whose quantised twin is the uncorrected ANN."""
        # The corrections compensate for spikes that arrive unevenly. The twin has no spikes, so in it they would be
        # errors.
        twin = self.folded(image)
        thresholds = {name: module.threshold for name, module in net.named_modules() if isinstance(module, IFNode)}
        replace(twin, Activation, lambda name, _: QuantisedReLU(thresholds[name], T))
        return SpikingNetwork(net, only_T=T, quantised=twin, image=image)
