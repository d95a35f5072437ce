"""OPI: optimal initialisation of the membrane potential.

Bu, Ding, Yu, Huang: Optimized Potential Initialization for Low-latency Spiking Neural Networks, AAAI 2022,
https://arxiv.org/abs/2202.01440

With a constant current z in [0, V_th], an IF neuron with soft reset sends, in T steps,

    N = floor( (z T + v_0) / V_th ),     and     V_th N / T  is off from z by less than V_th / T.

For z uniform over a whole number of the intervals between two counts, the expected error is zero and its mean square
is smallest at

    v_0 = V_th / 2,

for any T. The network and its weights are not changed.

The texts disagree on the source net. The abstract and later surveys describe an unchanged ReLU net, with V_th the
largest activation of each layer (``source="relu"``, the default here, with ``percentile``). Others describe a trainable
clip(z, 0, lambda) with an L2 penalty of unknown strength and V_th = lambda (``source="clip"``, a net trained by
``tcl``).

From the paper: the initial value, and those it is compared with (zero, a constant, uniform and Gaussian draws).
Chosen here: the parameters of the draws, which were not found: uniform on [0, V_th), and a Gaussian with the same mean
and variance, so that the two differ only in shape; one draw for each neuron, the same for all images.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation, ClippedReLU
from bench.snn.calibration import Batch, Granularity, require_activation
from bench.snn.graph.trace import ImageShape, input_shapes
from bench.snn.neurons import IFNode, SpikingNeuron
from bench.snn.replace import replace
from methods.base import ConversionModule, refuse_without_effect
from methods.thresholds import ThresholdRule, threshold_of

CLIPPED = "--model.source clip, whose V_th is trained"
Draw = Literal["uniform", "gaussian"]


class OPI(ThresholdRule):
    """Initial membrane potentials of V_th / 2 (https://arxiv.org/abs/2202.01440).

    Args:
        net: trained network with ReLU (``source="relu"``) or clipped ReLU (``source="clip"``) activations.
        source: where V_th comes from: a percentile of the activations of a ReLU net (``relu``), or the trained ceiling
            of a clipped one (``clip``).
        calibration_images: number of training images, without augmentation, over which the percentile is taken. This
            and the next two options are for a ReLU net only.
        percentile: percentile of all activations of a layer; 100 is their maximum.
        granularity: one threshold for each layer, channel or neuron.
        v_init: initial membrane potential as a fraction of V_th, or the distribution from which it is drawn.
        draw_seed: seed of the draws; only if ``v_init`` is a distribution.
    """

    def __init__(
        self,
        net: nn.Module,
        source: Literal["relu", "clip"] = "relu",
        calibration_images: int = 1000,
        percentile: float = 100.0,
        granularity: Granularity = "layer",
        v_init: float | Draw = 0.5,
        draw_seed: int = 0,
    ) -> None:
        if v_init not in ("uniform", "gaussian") and (isinstance(v_init, str) or not 0 <= v_init < 1):
            raise UserError(f"--model.v_init {v_init}: must be at least 0 and below 1, or uniform or gaussian")
        if not isinstance(v_init, str):
            refuse_without_effect(OPI, f"--model.v_init {v_init} (only with uniform or gaussian)", draw_seed=draw_seed)
        if source == "relu":
            super().__init__(net, calibration_images, percentile, granularity)
        else:
            of_calibration = {"percentile": percentile, "granularity": granularity}
            refuse_without_effect(OPI, CLIPPED, calibration_images=calibration_images, **of_calibration)
            require_activation(net, ClippedReLU, "OPI with --model.source clip", "clipped")
            ConversionModule.__init__(self, net)
            self.calibration_images = 0  # the thresholds are trained
        self.source, self.start, self.draw_seed = source, v_init, draw_seed

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Sets V_th of a ReLU net; if ``v_init`` is drawn, also inserts the neurons, which need their layer's shape."""
        if self.source == "relu":
            super().calibrate(net, calibration, T, image)
        if isinstance(self.start, str):
            shapes = input_shapes(net, Activation, image)
            replace(net, Activation, lambda name, old: self.drawn(name, threshold_of(old), shapes[name]))

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Returns an IF neuron with soft reset that starts at ``v_init``."""
        assert not isinstance(self.start, str)
        return IFNode(threshold_of(activation), self.start)

    def drawn(self, name: str, threshold: Tensor, shape: torch.Size) -> IFNode:
        """Returns IF neurons with soft reset, each with an initial potential drawn for it."""
        # Each layer has its own random stream, so that it does not depend on the size of other layers.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.draw_seed}/{name}".encode()))
        if self.start == "uniform":
            start = torch.rand(shape, generator=generator)
        else:
            start = 0.5 + torch.randn(shape, generator=generator) / 12**0.5
        return IFNode(threshold, start.to(threshold))
