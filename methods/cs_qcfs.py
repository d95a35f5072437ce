"""CS-QCFS: channel-wise softplus QCFS.

Yang et al.: CS-QCFS: Bridging the Performance Gap in Ultra-low Latency Spiking Neural Networks, Neural Networks 2025
(key ``yang2025csqcfs`` in ``leaderboards/reported``)

QCFS with one threshold for each channel c, kept positive by construction:

    theta_c = softplus(s_c) = ln(1 + e^{s_c}),
    a_c     = theta_c clip( floor(z_c L / theta_c + 1/2) / L, 0, 1 ),      d theta_c / d s_c = sigmoid(s_c).

Conversion: theta_c for each channel, v_0 = theta_c / 2. With L = T = 1 the SNN equals its ANN exactly.

From the paper as published: channel-wise thresholds, softplus, their place inside QCFS, the results at T = 1.
Not found in any text: architecture, L, learning rate, the initial s. Reconstructed here: s = ln(e^theta_0 - 1) with
theta_0 = ``lambda_init`` = 8 as in QCFS, and no weight decay on s (``s_weight_decay``), because it would pull theta to
ln 2 and not to 0. After a linear layer a channel is a feature.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.activations import Activation, Region, clip_floor_shift
from bench.snn.graph.trace import input_shapes
from bench.snn.neurons import IFNode, SpikingNeuron
from methods.training import TrainingModule


class ChannelQCFSActivation(Activation):
    """Clip-floor-shift with ``theta_c = softplus(s_c)``.

    Args:
        L: quantisation steps.
        shape: of one image's input, ``[C, H, W]`` or ``[F]``.
        threshold: initial value of every theta.
        region: gradient region.
    """

    def __init__(self, L: int, shape: torch.Size, threshold: float, region: Region) -> None:
        super().__init__()
        self.L, self.region = L, region
        # Inverse of softplus, written so that it does not overflow.
        start = threshold + math.log(-math.expm1(-threshold))
        self.s = nn.Parameter(torch.full((shape[0], *[1] * (len(shape) - 1)), start))

    @property
    def threshold(self) -> Tensor:
        """The thresholds theta, ``[C, 1, 1]`` or ``[F]``."""
        return F.softplus(self.s)

    def forward(self, z: Tensor) -> Tensor:
        """Quantises pre-activations ``[B, C, H, W]`` or ``[B, F]``."""
        return clip_floor_shift(z, self.threshold, self.L, self.region)


class CSQCFS(TrainingModule):
    """Channel-wise softplus thresholds in QCFS (Yang et al., Neural Networks 2025).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        L: quantisation steps in training.
        lambda_init: initial value of every theta.
        s_weight_decay: weight decay on s; ``None`` uses ``weight_decay``.
        lambda_lr_scale: learning rate of s as a fraction of ``lr``.
        region: region in which the gradient passes, as in QCFS.
        **kwargs: pooling and optimiser settings of :class:`methods.training.TrainingModule`.
    """

    def __init__(
        self,
        net: nn.Module,
        L: int = 4,
        lambda_init: float = 8.0,
        s_weight_decay: float | None = 0.0,
        lambda_lr_scale: float = 1.0,
        region: Region = "clip_first",
        **kwargs: Any,
    ) -> None:
        require_within("[1, 65536]", L=L)
        require_within("(0, inf)", lambda_init=lambda_init)
        require_within("[0, 1]", lambda_lr_scale=lambda_lr_scale)
        if s_weight_decay is not None:
            require_within("[0, inf)", s_weight_decay=s_weight_decay)
        super().__init__(net, **kwargs)
        self.threshold_options(
            weight_decay=s_weight_decay, lr=None if lambda_lr_scale == 1 else self.lr * lambda_lr_scale
        )
        shapes = input_shapes(net, nn.ReLU, self.image)
        self.install(lambda name: ChannelQCFSActivation(L, shapes[name], lambda_init, region))

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Uses theta_c and v_0 = theta_c / 2."""
        assert isinstance(activation, ChannelQCFSActivation)
        return IFNode(activation.threshold, v_init=0.5)
