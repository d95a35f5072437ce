"""Robust norm: thresholds at a percentile of the activations.

Rueckauer, Lungu, Hu, Pfeiffer, Liu: Conversion of Continuous-Valued Deep Networks to Efficient Event-Driven Networks
for Image Classification, Frontiers in Neuroscience 2017, https://doi.org/10.3389/fnins.2017.00682

The largest of millions of activations is an outlier, and a threshold at that value makes all other neurons slow. With
the p-th percentile,

    theta_l = P_p { a_l } over the training images,

a fraction 1 - p/100 of the activations saturates and all others converge sooner.

From the paper: p = 99.9, soft reset, v_0 = 0, BN folded, the image as a constant current.
Chosen here: the percentile over ``calibration_images`` training images, interpolated as numpy does; optionally one
threshold for each channel (the paper has one for each layer). Zeros are included. The authors' SNN toolbox takes the
percentile of the non-zero activations, which on a ReLU ResNet-20 is 1.02 to 1.36 times as high, depending on the layer.
"""

from __future__ import annotations

from torch import nn

from bench.snn.calibration import Granularity
from methods.thresholds import ThresholdRule


class RobustNorm(ThresholdRule):
    """Theta is a percentile of the layer's activations (https://doi.org/10.3389/fnins.2017.00682).

    Args:
        net: trained network with ReLU activations.
        calibration_images: number of training images, without augmentation, over which the percentile is taken.
        percentile: percentile of all activations of a layer, zeros included.
        granularity: one threshold for each layer, as in the paper, or for each channel or neuron.
    """

    def __init__(
        self,
        net: nn.Module,
        calibration_images: int = 1000,
        percentile: float = 99.9,
        granularity: Granularity = "layer",
    ) -> None:
        super().__init__(net, calibration_images, percentile, granularity)
