"""LTB: local threshold balancing, and the delayed read-out.

Bu, Li, Yu: Inference-Scale Complexity in ANN-SNN Conversion, CVPR 2025,
https://arxiv.org/abs/2409.03368

A trained ReLU net with folded batch normalisation runs over unlabelled images. Each ReLU becomes clip(z, 0, theta_c),
with a threshold for each channel. It starts at 0 and is raised by what it cuts off,

    theta_c  <-  theta_c + 2 eta mean( (z - theta_c) [z > theta_c] ),

before the layer passes clip(z, 0, theta_c) on. All layers are balanced at once, each on clipped input. The mean is over
images and positions. The step is gradient descent on the mean square of what clipping takes away; it needs no labels,
no backward pass and no other layer. The SNN: IF, soft reset, theta_c, v_0 = theta_c / 2.

Max-pooling after a ReLU is moved before it and pools currents, as in the paper. The ReLU net computes the same, and no
spikes are pooled. If spikes come unevenly, the largest current of each step is above the maximum of the mean currents,
and more steps do not remove this error.

In the first steps the last layers have not fired yet. The delayed read-out (``--snn.delay auto``, for all methods
whose layers do not wait for their whole input; ``bench.snn.readout``) leaves these steps out: with

    t_0 = sum over layers of  min over neurons of  (theta - v_0) / mean relu(z)

the answer at T is the mean over steps t_0 + 1 .. T, or over the last four if fewer would be left. T counts from the
first input.

From the paper or its authors' code: the above; eta = 1, 1,000 to 5,000 batches of 100 images.
Chosen here: images without augmentation (the authors augment), ``calibration_images`` of them, repeated; t_0 with the
thresholds of channels, rounded down; a neuron fires at equality, as all neurons here do, and not only above theta.
The rule only raises theta. From 0 and with eta = 1 it overshoots if more than half of a channel's inputs lie above
theta (if all inputs equal c, theta is 2c after one batch), and theta stays too high; a smaller eta avoids this. A
channel that no image activates keeps theta = 0 and sends nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.activations import Activation, ReLUActivation
from bench.snn.calibration import Batch, joined, require_activation, require_batch, set_thresholds
from bench.snn.graph.pool_first import pool_first
from bench.snn.graph.trace import ImageShape
from bench.snn.neurons import IFNode, SpikingNeuron
from bench.snn.replace import replace
from methods.base import ConversionModule
from methods.thresholds import silencing, threshold_of


class BalancingActivation(Activation):
    """Raises its threshold by what it would clip, then clips.

    Args:
        eta: step size.
        per_channel: one threshold for each channel, ``[C, 1, 1]`` or ``[F]``; otherwise a scalar.
        ceiling: highest value of the activation, 6 for ``nn.ReLU6``; theta never exceeds it.

    Attributes:
        threshold: theta; ``None`` before the first batch.
        change: increase of theta in the last batch, as a fraction of theta; mean over channels.
    """

    def __init__(self, eta: float, per_channel: bool, ceiling: float = math.inf) -> None:
        super().__init__()
        self.eta, self.per_channel, self.ceiling = eta, per_channel, ceiling
        self.threshold: Tensor | None = None
        self.change = math.inf

    def forward(self, z: Tensor) -> Tensor:
        """Updates the threshold on one batch of pre-activations ``[B, C, H, W]`` or ``[B, F]``, then clips it."""
        over = [0, *range(2, z.ndim)] if self.per_channel else list(range(z.ndim))
        shape = z.shape[1:2] + (1,) * (z.ndim - 2) if self.per_channel else ()
        a = torch.relu(z).clamp_max(self.ceiling)
        old = z.new_zeros(shape) if self.threshold is None else self.threshold
        raised = old + 2 * self.eta * torch.relu(a - old).mean(over).reshape(shape)
        self.threshold = raised.clamp_max(self.ceiling)
        self.change = float(((self.threshold - old) / self.threshold.clamp_min(1e-30)).mean())
        return torch.minimum(a, self.threshold)


class LTB(ConversionModule):
    """Local threshold balancing (https://arxiv.org/abs/2409.03368).

    Args:
        net: trained network with ReLU activations; max-pooling may follow them.
        calibration_images: number of training images, without augmentation.
        iterations: maximal number of batches; with fewer than 1,000 the thresholds still clip the ANN itself.
        batch: images in a batch.
        eta: step size.
        tolerance: stop if a batch raises the thresholds by less than this fraction, on average.
        granularity: one threshold for each channel or layer.
    """

    pools_currents = True

    def __init__(
        self,
        net: nn.Module,
        calibration_images: int = 5000,
        iterations: int = 1000,
        batch: int = 100,
        eta: float = 1.0,
        tolerance: float = 0.0,
        granularity: Literal["channel", "layer"] = "channel",
    ) -> None:
        require_within("[1, inf)", calibration_images=calibration_images, iterations=iterations, batch=batch)
        require_batch(calibration_images, batch)
        require_within("(0, 1]", eta=eta)
        require_within("[0, 1)", tolerance=tolerance)
        require_activation(net, ReLUActivation, type(self).__name__, "ReLU")
        super().__init__(pool_first(net))
        self.calibration_images, self.iterations, self.batch = calibration_images, iterations, batch
        self.eta, self.tolerance, self.granularity = eta, tolerance, granularity

    @torch.no_grad()
    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Balances all thresholds on the images, batch by batch."""
        layers: dict[str, BalancingActivation] = {}
        per_channel = self.granularity == "channel"

        def balancing(name: str, activation: ReLUActivation) -> BalancingActivation:
            return layers.setdefault(name, BalancingActivation(self.eta, per_channel, activation.ceiling))

        replace(net, ReLUActivation, balancing)
        images = joined(calibration, self.batch)
        batches = torch.split(images, self.batch)
        for images in itertools.islice(itertools.cycle(batches), self.iterations):
            net(images)
            if sum(layer.change for layer in layers.values()) < self.tolerance * len(layers):
                break
        replace(net, BalancingActivation, lambda _, layer: ReLUActivation(layer.ceiling))
        set_thresholds(net, {name: layer.threshold for name, layer in layers.items() if layer.threshold is not None})

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Returns an IF neuron with soft reset and v_0 = theta / 2."""
        return IFNode(*silencing(threshold_of(activation), 0.5))
