"""Thresholds read from the activations of a trained net, and the base class of methods that only choose them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.activations import Activation, ClippedReLU, ReLUActivation
from bench.snn.calibration import (
    Batch,
    Granularity,
    activation_percentiles,
    require_activation,
    set_thresholds,
)
from bench.snn.graph.trace import ImageShape
from bench.snn.neurons import IFNode, SpikingNeuron
from methods.base import ConversionModule


def threshold_of(activation: Activation) -> Tensor:
    """Returns theta of an activation whose threshold was set by calibration or training."""
    assert isinstance(activation, (ReLUActivation, ClippedReLU)) and activation.threshold is not None
    return activation.threshold


# An initial potential so far below theta that no current makes up for it. Theta itself must be positive and of ordinary
# size.
_NEVER = -1e9


def silencing(threshold: Tensor, v_init: float) -> tuple[Tensor, Tensor | float]:
    """Returns theta and the initial potential such that neurons that calibration found inactive never fire.

    Args:
        threshold: theta; for a channel or neuron that no calibration image activates, 0 or the smallest number, which
            :func:`bench.snn.calibration.activation_percentiles` returns.
        v_init: initial potential of the other neurons, as a fraction of theta.
    """
    # A rule may have multiplied the smallest number.
    active = threshold > 1000 * torch.finfo(torch.float32).tiny
    if bool(active.all()):
        return threshold, v_init
    return threshold.where(active, 1.0), torch.full_like(threshold, v_init).where(active, _NEVER)


def rounding_node(threshold: Tensor, T: int, v_init: float) -> IFNode:
    """Returns an IF neuron with half a quantisation step added in all, so that its count at step T rounds to nearest.

    Args:
        threshold: theta.
        T: steps over which the rest of the half step is spread.
        v_init: the part of the half step that is there at the start, as a fraction of theta.
    """
    return IFNode(threshold, v_init, bias=(0.5 - v_init) * threshold / T)


class ThresholdRule(ConversionModule):
    """Sets each threshold to a percentile of its layer's activations and leaves the ReLU net unchanged.

    Args:
        net: trained network with ReLU activations.
        calibration_images: number of training images, without augmentation, from which thresholds are read.
        percentile: percentile of the activations; 100 is their maximum.
        granularity: one threshold for each layer, channel or neuron.
        v_init: initial membrane potential as a fraction of the threshold.
    """

    def __init__(
        self,
        net: nn.Module,
        calibration_images: int = 1000,
        percentile: float = 100.0,
        granularity: Granularity = "layer",
        v_init: float = 0.0,
    ) -> None:
        require_within("[1, inf)", calibration_images=calibration_images)
        require_within("[0, 1)", v_init=v_init)
        require_within("(0, 100]", percentile=percentile)
        require_activation(net, ReLUActivation, type(self).__name__, "ReLU")
        super().__init__(net)
        self.calibration_images, self.percentile, self.granularity = calibration_images, percentile, granularity
        self.v_init = v_init

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Reads theta from the activations."""
        set_thresholds(net, activation_percentiles(net, calibration, self.percentile, self.granularity))

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """See :meth:`node`."""
        return self.node(threshold_of(activation))

    def node(self, threshold: Tensor) -> SpikingNeuron:
        """Returns an IF neuron with soft reset."""
        return IFNode(threshold, self.v_init)
