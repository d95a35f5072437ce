"""OPI: optimal initialisation of the membrane potential.

Bu, Ding, Yu, Huang: Optimized Potential Initialization for Low-latency Spiking Neural Networks, AAAI 2022,
https://arxiv.org/abs/2202.01440

With a constant current z in [0, V_th], an IF neuron with soft reset sends, in T steps,

    N = floor( (z T + v_0) / V_th ),     and     V_th N / T  is off from z by less than V_th / T.

For z uniform over a whole number of the intervals between two counts, the expected error is zero, and its mean square
the least, at

    v_0 = V_th / 2,

whatever T is. The network and its weights stay as they are.

The texts disagree on the source net. Abstract and later surveys have an unchanged ReLU net, V_th being the largest
activation of each layer (``source="relu"``, the default here, with ``percentile``); others describe a trainable
clip(z, 0, lambda) with an L2 penalty of unknown strength, V_th = lambda (``source="clip"``, a net that ``tcl`` trains).

From the paper: the initial value and the compared ones (zero, a constant, uniform and Gaussian draws).
Chosen here: the parameters of the draws, which were not found: uniform on [0, V_th), and a Gaussian of the same mean
and variance, so that they differ in shape alone; one draw for each neuron, the same for all images.
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
from methods.base import ConversionModule
from methods.thresholds import ThresholdRule, threshold_of

Draw = Literal["uniform", "gaussian"]


class OPI(ThresholdRule):
    """Membrane potentials that start at V_th / 2 (https://arxiv.org/abs/2202.01440).

    Args:
        net: trained network with ReLU (``source="relu"``) or clipped ReLU (``source="clip"``) activations.
        source: what V_th is: a percentile of the activations of a ReLU net, or the trained ceiling of a clipped one.
        calibration_images: training images, without augmentation, over which the percentile is taken; this and the
            next two are for a ReLU net alone.
        percentile: of all activations of a layer; 100 is their maximum.
        granularity: one threshold for each layer, channel or neuron.
        v_init: initial membrane potential as a fraction of V_th, or how it is drawn.
        draw_seed: of the draws; only where ``v_init`` is one.
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
        if draw_seed != 0 and not isinstance(v_init, str):
            raise UserError(
                f"--model.draw_seed {draw_seed}: --model.v_init {v_init} is not drawn; leave the seed out, or give "
                "--model.v_init uniform or gaussian"
            )
        if source == "relu":
            super().__init__(net, calibration_images, percentile, granularity)
        else:
            for option, value, default in (
                ("calibration_images", calibration_images, 1000),
                ("percentile", percentile, 100.0),
                ("granularity", granularity, "layer"),
            ):
                if value != default:
                    raise UserError(
                        f"--model.{option} {value}: --model.source clip takes V_th as it was trained; leave it out"
                    )
            require_activation(net, ClippedReLU, "OPI with --model.source clip", "clipped")
            ConversionModule.__init__(self, net)
            self.calibration_images = 0  # the thresholds are trained
        self.source, self.start, self.draw_seed = source, v_init, draw_seed

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """V_th from the activations, or as trained; neurons that start at a draw, which has their layer's shape."""
        if self.source == "relu":
            super().calibrate(net, calibration, T, image)
        if isinstance(self.start, str):
            shapes = input_shapes(net, Activation, image)
            replace(net, Activation, lambda name, old: self.drawn(name, threshold_of(old), shapes[name]))

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """IF with soft reset that starts at ``v_init``."""
        assert not isinstance(self.start, str)
        return IFNode(threshold_of(activation), self.start)

    def drawn(self, name: str, threshold: Tensor, shape: torch.Size) -> IFNode:
        """The same with a start that is drawn for each neuron."""
        # Each layer has its own stream, so that no other layer's size changes it.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.draw_seed}/{name}".encode()))
        if self.start == "uniform":
            start = torch.rand(shape, generator=generator)
        else:
            start = 0.5 + torch.randn(shape, generator=generator) / 12**0.5
        return IFNode(threshold, start.to(threshold))
