"""Max-norm: thresholds at the largest activation.

Diehl, Neil, Binas, Cook, Liu, Pfeiffer: Fast-classifying, high-accuracy spiking deep networks through weight and
threshold balancing, IJCNN 2015, https://doi.org/10.1109/IJCNN.2015.7280696

The paper's data-based normalisation rescales the weights of layer l by lambda_{l-1} / lambda_l, where

    lambda_l = max a_l   over the training images,

so that no neuron needs more than one spike in a step. With theta_l = lambda_l and unchanged weights the network is the
same: dividing a layer's current and threshold by one number changes no spike.

From the paper: the maximum, the constant bias current, and v_0 = 0.
Chosen here: soft reset (the paper resets to zero, which loses what exceeds the threshold; Rueckauer et al., 2017,
introduced the subtraction), constant input instead of Poisson trains, BN folded, and the maximum over
``calibration_images`` training images instead of all.
"""

from __future__ import annotations

from torch import nn

from methods.thresholds import ThresholdRule


class MaxNorm(ThresholdRule):
    """Theta is the largest activation of the layer (https://doi.org/10.1109/IJCNN.2015.7280696).

    Args:
        net: trained network with ReLU activations.
        calibration_images: number of training images, without augmentation, over which the maximum is taken.
    """

    def __init__(self, net: nn.Module, calibration_images: int = 1000) -> None:
        super().__init__(net, calibration_images, percentile=100.0)
