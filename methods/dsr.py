"""DSR: differentiation on spike representation.

Meng, Xiao, Yan, Wang, Lin, Luo: Training High-Performance Low-Latency Spiking Neural Networks by Differentiation on
Spike Representation, CVPR 2022, https://arxiv.org/abs/2205.00459

In the forward pass the SNN runs its T steps. Each neuron starts at 0, fires at a fraction alpha of its threshold and is
reset by the whole threshold,

    u_t = v_{t-1} + x_t,    s_t = [u_t >= alpha theta],    v_t = u_t - theta s_t,    v_0 = 0.

The backward pass is not unrolled. A layer's spikes are represented by their mean, which is nearly a function of the
mean current,

    r  =  mean over T of theta s_t  ~  clip( mean over T of x_t, 0, theta ),

and this function is differentiated. Inside the range the derivative for the mean current is 1, shared evenly by the
steps. Above it the derivative for theta is 1.

With v shifted by (1 - alpha) theta the neuron fires at theta and starts at v_0 = (1 - alpha) theta. It is built this
way here; with alpha = 1/2 it is the neuron of QCFS. theta is trained, one for each layer, and kept above a bound.

From the paper or its authors' code: alpha = 0.5, theta = 6 at the start, the bound 0.01, T = 20 (5 with learning rate
0.05), SGD with learning rate 0.1, momentum 0.9, weight decay 5e-4, a cosine over 200 epochs.
Left out: the neurons after the last pooling and after the logits, which that code has and which limit the logits to
[0, theta]; the linear warm-up of 400 iterations; LIF neurons.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.calibration import Batch
from methods.spike_training import SpikeTrainingModule, SpikingActivation, rate_gradient


class DSRActivation(SpikingActivation):
    """An IF neuron with the gradient of its rate."""

    def spikes(self, x_TBX: Tensor) -> Tensor:
        """See :class:`methods.spike_training.SpikingActivation`."""
        return rate_gradient(x_TBX, self.threshold, self.emit)


class DSR(SpikeTrainingModule):
    """Differentiation on spike representation (https://arxiv.org/abs/2205.00459).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        T: steps in training.
        alpha: fraction of theta at which a neuron that starts at 0 fires.
        theta_init: initial value of every threshold if no net is given.
        theta_bound: lower bound of every threshold.
        theta_lr_scale: learning rate of the thresholds as a fraction of ``lr``. Their gradient is a sum over a whole
            layer, so a full step can push a small threshold to the bound.
        percentile: percentile of the layer's activations at which each theta starts if ``--ckpt`` gives a ReLU net.
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
        require_within("(0, 1]", alpha=alpha)
        require_within("(0, inf)", theta_bound=theta_bound)
        require_within(f"[{theta_bound}, inf)", theta_init=theta_init)
        require_within("[0, 1]", theta_lr_scale=theta_lr_scale)
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
