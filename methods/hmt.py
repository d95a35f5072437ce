"""H-MT: multi-threshold neurons with optimal thresholds.

Zhang, Huang, Bu, Huang, Yu: H-MT, AAAI 2026, https://github.com/faizwh/H-MT

A neuron has n thresholds lambda, 2 lambda, .. , 2^(n-1) lambda on one membrane. At each step, from the largest down,
each threshold that the potential has reached is sent and subtracted:

    u = v(t-1) + x(t),     k = clip( floor(u / lambda), 0, 2^n - 1 ),     it sends k lambda,     v(t) = u - k lambda,

v_0 = lambda / 2. The neuron sends the binary digits of k, one spike for each digit 1. Each channel has its own lambda:

* ``optimal``: pre-activations are assumed to be normally distributed, with mean and variance over training images. The
  ceiling (2^n - 1) lambda of a quantiser with T (2^n - 1) levels is iterated towards the least square error, 1,500
  times from lambda = 1 (:func:`methods.gaussian.gaussian_thresholds`). With n = 8 the iterations do not converge, and
  lambda is too large, in proportion to T: the accuracy in the paper falls from T = 2 to T = 4.
* ``q999``: the 99.9th percentile of the activations divided by 2^n - 1; ``q999x2``: twice that, as in the released
  code.

From the paper or its authors' code: the above. The levels of the quantiser depend on T, and so does the conversion.
Chosen here: training images without augmentation (the released code takes those of the evaluation set); a percentile
over all images (there a running average over batches). The title of the paper was not found. Max-pooling after a ReLU
is moved before it and pools currents, with an error that more steps do not remove (:mod:`methods.ltb`). A channel with
lambda = 0 sends nothing.
Costs: each digit 1 is one event. The shift of the weight by which 2^i lambda is added is not counted.
The alphabet is multi-level, with 2^n - 1 levels in a step: T such steps are not comparable with T binary steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from bench.ranges import require_within
from bench.snn.activations import Activation, ReLUActivation
from bench.snn.calibration import Batch, activation_percentiles, require_activation, set_thresholds
from bench.snn.graph.pool_first import pool_first
from bench.snn.graph.trace import ImageShape
from bench.snn.neurons import SpikingNeuron
from methods.base import ConversionModule
from methods.burst import BurstIFNode
from methods.gaussian import channel_moments, gaussian_thresholds
from methods.thresholds import silencing, threshold_of

ITERATIONS = 1500
PERCENTILE = 99.9


class HMT(ConversionModule):
    """Multi-threshold neurons (H-MT, AAAI 2026).

    Args:
        net: trained network with ReLU activations; max-pooling may follow them.
        bits: number n of thresholds of a neuron.
        thresholds: ``optimal``, ``q999`` or ``q999x2``.
        calibration_images: number of training images, without augmentation, from which thresholds are read.
    """

    pools_currents = True
    per_T = True
    saturates = False

    def __init__(
        self,
        net: nn.Module,
        bits: int = 4,
        thresholds: Literal["optimal", "q999", "q999x2"] = "optimal",
        calibration_images: int = 1000,
    ) -> None:
        require_within("[1, 8]", bits=bits)
        require_within("[1, inf)", calibration_images=calibration_images)
        require_activation(net, ReLUActivation, type(self).__name__, "ReLU")
        super().__init__(pool_first(net))
        self.levels, self.rule, self.calibration_images = 2**bits - 1, thresholds, calibration_images

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Sets the ceiling (2^n - 1) lambda of each channel."""
        if self.rule == "optimal":
            start = float(self.levels)
            ceilings = {
                name: gaussian_thresholds(mean, deviation, T * self.levels, ITERATIONS, start)
                for name, (mean, deviation) in channel_moments(net, calibration).items()
            }
        else:
            factor = 2 if self.rule == "q999x2" else 1
            found = activation_percentiles(net, calibration, PERCENTILE, "channel")
            ceilings = {name: factor * ceiling for name, ceiling in found.items()}
        set_thresholds(net, ceilings)

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Sends up to 2^n - 1 units of lambda in a step, as binary digits."""
        unit, start = silencing(threshold_of(activation) / self.levels, 0.5)
        return BurstIFNode(unit, self.levels, start, binary=True)
