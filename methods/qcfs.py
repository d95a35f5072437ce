"""QCFS: quantisation clip-floor-shift activation.

Bu, Fang, Ding, Dai, Yu, Huang: Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural
Networks, ICLR 2022, https://arxiv.org/abs/2303.04347

Training replaces ReLU by

    a = lambda clip( floor(z L / lambda + 1/2) / L, 0, 1 )

with a trainable threshold lambda for each layer.

Conversion keeps the weights and sets theta = lambda and v_0 = theta / 2. For a constant current z, an IF neuron with
soft reset then sends exactly clip(floor(z T / theta + 1/2), 0, T) spikes in T steps. This is the same function with T
instead of L, so the expected conversion error is 0 for any T and L.

From the paper or its authors' code: L = 4 on CIFAR-10, lambda = 8 at the start, SGD with momentum 0.9, learning rate
0.1 with a cosine to 0, weight decay 5e-4 on all parameters, 300 epochs. The derivative for lambda printed as Eq. 19
of the camera-ready is wrong, as its authors say; the correct one is in ``bench.snn.activations``.
Not stated in the paper: batch size and Cutout hole. The region of the gradient in its Eq. 18 is in none of the released
codes, which also differ from each other in all three; docs/recipes.md says which values the recipes use and why.
Chosen here: an initial lambda measured on data (``lambda_percentile``), for recipes too short to bring it down from 8.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.activations import Activation, QCFSActivation, Region
from bench.snn.calibration import Batch, require_activation
from bench.snn.neurons import IFNode, SpikingNeuron
from methods.base import ConversionModule
from methods.training import TrainingModule


def qcfs_node(activation: Activation) -> SpikingNeuron:
    """Returns the neuron of a QCFS activation: theta = lambda, v_0 = theta / 2."""
    assert isinstance(activation, QCFSActivation)
    return IFNode(activation.threshold, v_init=0.5)


class QCFSConversion(ConversionModule):
    """The QCFS conversion without training, for a net that was trained elsewhere.

    Args:
        net: trained network with QCFS activations.
    """

    def __init__(self, net: nn.Module) -> None:
        require_activation(net, QCFSActivation, "qcfs", "QCFS")
        super().__init__(net)

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """See :func:`qcfs_node`."""
        return qcfs_node(activation)


class QCFS(TrainingModule):
    """Quantisation clip-floor-shift (https://arxiv.org/abs/2303.04347).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        L: quantisation steps in training; a small L is better at low T, a large L reaches a higher accuracy at high T.
        lambda_init: initial value of every threshold.
        lambda_percentile: if given, each threshold starts at this percentile of its layer's positive pre-activations on
            100 training images instead; for short recipes.
        lambda_lr_scale: learning rate of the thresholds as a fraction of ``lr``. Their gradient is a sum over a whole
            layer, so a full step can push thresholds below zero if they start at the scale of the activations.
        region: region in which the gradient passes; ``clip_first`` as in the authors' final code, ``floor_first`` as in
            their first.
        **kwargs: optimiser settings of :class:`methods.training.TrainingModule`.
    """

    of_trained = QCFSConversion

    def __init__(
        self,
        net: nn.Module,
        L: int = 4,
        lambda_init: float = 8.0,
        lambda_percentile: float | None = None,
        lambda_lr_scale: float = 1.0,
        region: Region = "clip_first",
        **kwargs: Any,
    ) -> None:
        require_within("[1, 65536]", L=L)
        require_within("(0, inf)", lambda_init=lambda_init)
        if lambda_percentile is not None:
            require_within("(0, 100]", lambda_percentile=lambda_percentile)
        require_within("[0, 1]", lambda_lr_scale=lambda_lr_scale)
        super().__init__(net, **kwargs)
        self.L, self.lambda_init, self.lambda_percentile, self.region = L, lambda_init, lambda_percentile, region
        if lambda_lr_scale != 1:
            self.threshold_options(lr=self.lr * lambda_lr_scale)
        self.install(self.activation)

    def activation(self, name: str) -> QCFSActivation:
        """Returns a QCFS activation with its own lambda."""
        return QCFSActivation(self.L, self.lambda_init, self.region)

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Returns the paper's neuron: theta = lambda, v_0 = theta / 2."""
        return qcfs_node(activation)

    def prepare(self, calibration: Iterable[Batch]) -> None:
        """Sets the initial lambda from data if ``lambda_percentile`` is given."""
        if self.lambda_percentile is not None:
            images = torch.cat([images for images, _ in calibration])
            set_thresholds_by_percentile(self.net, images, self.lambda_percentile)


@torch.no_grad()
def set_thresholds_by_percentile(net: nn.Module, images: Tensor, percentile: float) -> None:
    """Sets each threshold to a percentile of its layer's positive inputs, measured with ReLU as the activation.

    Args:
        net: network with :class:`QCFSActivation`; its BN statistics are not changed.
        images: one batch ``[B, C, H, W]``.
        percentile: between 0 and 100.
    """
    probe = copy.deepcopy(net).train()
    scales: dict[str, Tensor] = {}

    def scale(name: str, z: Tensor) -> Tensor:
        positive = z[z > 0]
        # torch.quantile is limited to 16 million elements; kthvalue is not.
        rank = max(1, round(len(positive) * percentile / 100))
        scales[name] = positive.kthvalue(rank).values if len(positive) else torch.tensor(1.0)
        return z.relu()

    for name, module in probe.named_modules():
        if isinstance(module, QCFSActivation):
            module.register_forward_hook(lambda _, inputs, __, name=name: scale(name, inputs[0]))
    probe(images)
    for name, module in net.named_modules():
        if isinstance(module, QCFSActivation):
            module.threshold.copy_(scales[name])
