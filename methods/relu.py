"""ReLU networks: the common source of the methods that convert a trained net.

Trained as any ReLU net is, with average pooling in the place of max-pooling unless told otherwise
(``--model.max_pool keep``, for ``burst``, whose LIPooling then pools the plain spikes as well). Converted by itself it
has each threshold at the largest activation of its layer and starts empty, which is the rule of ``max_norm``
(Diehl, Neil, Binas, Cook, Liu, Pfeiffer: Fast-classifying, high-accuracy spiking deep networks through weight and
threshold balancing, IJCNN 2015, https://doi.org/10.1109/IJCNN.2015.7280696); the other rules read the same checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from bench.snn.activations import Activation, ReLUActivation
from bench.snn.calibration import Batch, activation_percentiles, require_images, set_thresholds
from bench.snn.neurons import IFNode, SpikingNeuron
from methods.training import TrainingModule


class ReLU(TrainingModule):
    """A plain ReLU net, converted by its layers' largest activations (Diehl et al., IJCNN 2015).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        calibration_images: training images, without augmentation, from which thresholds are read.
        **kwargs: pooling and optimiser settings of :class:`methods.training.TrainingModule`.
    """

    pools_by_inhibition = True

    def __init__(self, net: nn.Module, calibration_images: int = 1000, **kwargs: Any) -> None:
        require_images(calibration_images)
        super().__init__(net, **kwargs)
        self.calibration_images = calibration_images

    def activation(self, name: str) -> ReLUActivation:
        """Plain ReLU."""
        return ReLUActivation()

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int) -> None:
        """Theta is the layer's largest activation."""
        set_thresholds(net, activation_percentiles(net, calibration, 100.0))

    def neuron(self, activation: Activation) -> SpikingNeuron:
        """IF with soft reset that starts empty."""
        assert isinstance(activation, ReLUActivation)
        assert activation.threshold is not None
        return IFNode(activation.threshold, v_init=0.0)
