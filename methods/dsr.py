"""DSR: differentiation on spike representation.

Meng, Xiao, Yan, Wang, Lin, Luo: Training High-Performance Low-Latency Spiking Neural Networks by Differentiation on
Spike Representation, CVPR 2022, https://arxiv.org/abs/2205.00459

Forward the SNN runs its T steps. Each neuron starts empty, fires at a fraction alpha of its threshold and is reset by
the whole threshold,

    u_t = v_{t-1} + x_t,    s_t = [u_t >= alpha theta],    v_t = u_t - theta s_t,    v_0 = 0.

Backward nothing is unrolled: a layer's spikes are represented by their mean, which is nearly a function of the mean
current,

    r  =  mean over T of theta s_t  ~  clip( mean over T of x_t, 0, theta ),

and this function is differentiated: 1 inside, shared evenly by the steps, and 1 for theta above.

With v shifted by (1 - alpha) theta the neuron fires at theta and starts at v_0 = (1 - alpha) theta; that is how it is
built here, and with alpha = 1/2 it is the neuron of QCFS. theta is trained, one for each layer, and kept above a bound.

From the paper or its authors' code: alpha = 0.5, theta = 6 at the start, the bound 0.01, T = 20 (5 with learning rate
0.05), SGD with learning rate 0.1, momentum 0.9, weight decay 5e-4, a cosine over 200 epochs.
Not built: neurons behind the last pooling and behind the logits, which that code has and which limit the logits to
[0, theta]; the linear warm-up of 400 iterations; LIF neurons.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from bench.errors import UserError
from methods.base import Batch
from methods.spike_training import SpikeTrainingModule, SpikingActivation, rate_gradient


class DSRActivation(SpikingActivation):
    """An IF neuron whose gradient is that of its rate."""

    def spikes(self, x_TBX: Tensor) -> Tensor:
        """See :class:`methods.spike_training.SpikingActivation`."""
        return rate_gradient(x_TBX, self.threshold, self.emit)


class DSR(SpikeTrainingModule):
    """Differentiation on spike representation (https://arxiv.org/abs/2205.00459).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        T: steps of training.
        alpha: fraction of theta at which a neuron that starts empty fires.
        theta_init: start of every threshold where no net is given.
        theta_bound: below which no threshold falls.
        theta_lr_scale: learning rate of the thresholds as a fraction of ``lr``; a step on their gradient, a sum over
            a whole layer, can throw a small one to the bound.
        percentile: of its layer's activations, as which each theta starts where ``--ckpt`` gives a ReLU net.
        **kwargs: optimiser settings of :class:`methods.training.TrainingModule`.
    """

    def __init__(
        self,
        net: nn.Module,
        T: int = 20,
        alpha: float = 0.5,
        theta_init: float = 6.0,
        theta_bound: float = 0.01,
        theta_lr_scale: float = 1.0,
        percentile: float = 99.9,
        **kwargs: Any,
    ) -> None:
        if not 0 < alpha <= 1:
            raise UserError(f"--model.alpha {alpha}: must be above 0 and at most 1")
        if not 0 < theta_bound < math.inf:
            raise UserError(f"--model.theta_bound {theta_bound}: must be positive and finite")
        if not theta_bound <= theta_init < math.inf:
            raise UserError(f"--model.theta_init {theta_init}: must be finite and at least the bound, {theta_bound}")
        if not 0 <= theta_lr_scale <= 1:
            raise UserError(f"--model.theta_lr_scale {theta_lr_scale}: must be from 0 to 1")
        super().__init__(net, T=T, v_init=1 - alpha, percentile=percentile, **kwargs)
        self.theta_bound = theta_bound
        if theta_lr_scale != 1:
            self.threshold_options(lr=self.lr * theta_lr_scale)
        self.install(lambda _: DSRActivation(theta_init, self.v_init, trainable=True))

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Keeps every theta above the bound."""
        with torch.no_grad():
            for layer in self.layers.values():
                layer.threshold.clamp_(min=self.theta_bound)
