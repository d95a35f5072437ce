"""ReLU networks: the common source of the methods that convert a trained net.

The net is trained like any ReLU net. Max-pooling is replaced by average pooling unless ``--model.max_pool keep`` is
given, for ``burst``, which pools spikes by LIPooling, and for ``dcgs``, ``hmt`` and ``ltb``, which pool currents.
Converted by itself, the net pools as ``burst`` does, each threshold is the largest activation of its layer, and
membranes start at 0. This is the rule of ``max_norm`` (Diehl, Neil, Binas, Cook, Liu, Pfeiffer: Fast-classifying,
high-accuracy spiking deep networks through weight and threshold balancing, IJCNN 2015,
https://doi.org/10.1109/IJCNN.2015.7280696). The other rules read the same checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bench.ranges import require_within
from bench.snn.activations import Activation, ReLUActivation
from bench.snn.calibration import Batch, activation_percentiles, set_thresholds
from bench.snn.graph.trace import ImageShape
from bench.snn.neurons import IFNode, SpikingNeuron
from methods.thresholds import threshold_of
from methods.training import TrainingModule


class ReLU(TrainingModule):
    """A ReLU net, converted with thresholds at its layers' largest activations (Diehl et al., IJCNN 2015).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        calibration_images: number of training images, without augmentation, from which thresholds are read.
        **kwargs: pooling and optimiser settings of :class:`methods.training.TrainingModule`.
    """

    pools_by_inhibition = True

    def __init__(self, net: nn.Module, calibration_images: int = 1000, **kwargs: Any) -> None:
        require_within("[1, inf)", calibration_images=calibration_images)
        super().__init__(net, **kwargs)
        self.calibration_images = calibration_images
        self.install(lambda _: ReLUActivation())

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Sets theta to the layer's largest activation."""
        set_thresholds(net, activation_percentiles(net, calibration, 100.0))

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Returns an IF neuron with soft reset."""
        return IFNode(threshold_of(activation), v_init=0.0)
