"""TCL: trainable clipping layers.

Ho, Chang: TCL: an ANN-to-SNN Conversion with Trainable Clipping Layers, DAC 2021, https://arxiv.org/abs/2008.04509

Thresholds read from a trained net trade accuracy against latency: too low, and neurons saturate; too high, and neurons
are slow. TCL trains this trade-off: after each layer

    a = clip( z, 0, lambda ),     d a / d lambda = 1 where z > lambda, else 0,

with an L2 penalty on lambda that pulls it down. Conversion: theta = lambda, v_0 = 0, soft reset, weights unchanged.

From the paper: the clipping, lambda = 4 at the start on CIFAR-10, the penalty.
Not found there: the strength of the penalty and the optimiser's settings. Here lambda has the weight decay and the
settings of all other parameters (``lambda_weight_decay``, default ``weight_decay``).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from bench.ranges import require_within
from bench.snn.activations import Activation, ClippedReLU
from bench.snn.neurons import IFNode, SpikingNeuron
from methods.training import TrainingModule


class TCL(TrainingModule):
    """Trainable clipping layers (https://arxiv.org/abs/2008.04509).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        lambda_init: initial value of every ceiling.
        lambda_weight_decay: strength of the L2 penalty on the ceilings; ``None`` uses ``weight_decay``.
        **kwargs: pooling and optimiser settings of :class:`methods.training.TrainingModule`.
    """

    def __init__(
        self, net: nn.Module, lambda_init: float = 4.0, lambda_weight_decay: float | None = None, **kwargs: Any
    ) -> None:
        require_within("(0, inf)", lambda_init=lambda_init)
        if lambda_weight_decay is not None:
            require_within("[0, inf)", lambda_weight_decay=lambda_weight_decay)
        super().__init__(net, **kwargs)
        self.lambda_init = lambda_init
        self.threshold_options(weight_decay=lambda_weight_decay)
        self.install(lambda _: ClippedReLU(lambda_init, trainable=True))

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Uses theta = lambda and v_0 = 0."""
        assert isinstance(activation, ClippedReLU)
        return IFNode(activation.threshold, v_init=0.0)
