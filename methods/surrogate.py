"""Surrogate gradients: backpropagation through time, the reference for the methods that train through spikes.

Ledinauskas, Ruseckas, Jursenas, Burachas: Training Deep Spiking Neural Networks, 2020,
https://arxiv.org/abs/2006.04436

A spike is a step function of the membrane potential, so its derivative is zero wherever it exists. The forward pass
uses the neuron unchanged,

    u_t = v_{t-1} + x_t,    s_t = [u_t >= theta],    v_t = u_t - theta s_t,

and the backward pass replaces the derivative of the step by that of a smooth function that rises at the threshold,

    d s_t / d u_t  =  1 / (1 + alpha |u_t - theta|)^2,

so that gradients flow through all layers and steps. Batch normalisation works on the input currents, with statistics
over images and steps together.

From the paper: the above with theta = 1, and batch normalisation.
Not found there: alpha, cited elsewhere as about 10, and whether gradients pass the reset. Here they do not
(``detach_reset``), which is the common choice.
Chosen here: potentials are measured in units of theta, so that a converted net has the same derivative whatever its
thresholds (the output theta s_t then has the derivative above with |u_t / theta - 1|); v_0 = theta / 2, as in
conversions; a fixed theta, 1 or that of the given net; read-out by the mean of the logits; this suite's SGD.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.ranges import require_within
from methods.spike_training import Emit, SpikeTrainingModule, SpikingActivation


class _ThroughTime(torch.autograd.Function):
    """Runs an IF neuron for T steps, and its backward pass backward in time."""

    @staticmethod
    def forward(
        ctx: Any, x_TBX: Tensor, v_0: Tensor, theta: Tensor, emit: Emit, alpha: float, detach_reset: bool
    ) -> Tensor:
        out_TBX = emit(x_TBX)
        ctx.save_for_backward(x_TBX, out_TBX, v_0, theta)
        ctx.alpha, ctx.detach_reset = alpha, detach_reset
        return out_TBX

    @staticmethod
    def backward(ctx: Any, grad_TBX: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        x_TBX, out_TBX, v, theta = ctx.saved_tensors
        slopes = []
        for current, out in zip(x_TBX, out_TBX, strict=True):
            u = v + current
            slopes.append((1 + ctx.alpha * (u / theta - 1).abs()).pow_(-2))
            v = u - out
        grads: list[Tensor] = []
        grad_v = torch.zeros_like(x_TBX[0])
        for grad, slope in zip(reversed(grad_TBX), reversed(slopes), strict=True):
            grad_u = grad * slope + (grad_v if ctx.detach_reset else grad_v * (1 - slope))
            grads.append(grad_u)
            grad_v = grad_u
        return torch.stack(grads[::-1]), None, None, None, None, None


def through_time(
    x_TBX: Tensor, v_0: Tensor, theta: Tensor, emit: Emit, alpha: float, detach_reset: bool = True
) -> Tensor:
    """Returns the output of an IF neuron with soft reset, with the surrogate's gradient.

    Args:
        x_TBX: input currents ``[T, B, ...]``.
        v_0: initial potential, broadcastable to one image's input.
        theta: threshold, likewise.
        emit: returns the output of the neuron for input currents.
        alpha: sharpness of the derivative.
        detach_reset: whether the reset is a constant to the gradient.

    Returns:
        The output, ``[T, B, ...]``.
    """
    output: Tensor = _ThroughTime.apply(x_TBX, v_0, theta, emit, alpha, detach_reset)
    return output


class SurrogateActivation(SpikingActivation):
    """An IF neuron with the surrogate's gradient.

    Args:
        threshold: theta.
        v_init: initial membrane potential as a fraction of theta.
        alpha: sharpness of the derivative.
        detach_reset: whether the reset is a constant to the gradient.
    """

    def __init__(self, threshold: float, v_init: float, alpha: float, detach_reset: bool) -> None:
        super().__init__(threshold, v_init)
        self.alpha, self.detach_reset = alpha, detach_reset

    def spikes(self, x_TBX: Tensor) -> Tensor:
        """See :class:`methods.spike_training.SpikingActivation`."""
        v_0 = self.v_init * self.threshold
        return through_time(x_TBX, v_0, self.threshold, self.emit, self.alpha, self.detach_reset)


class Surrogate(SpikeTrainingModule):
    """Backpropagation through time with a surrogate derivative (https://arxiv.org/abs/2006.04436).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        alpha: sharpness of the derivative, in units of 1 / theta.
        detach_reset: whether the reset is a constant to the gradient.
        theta: threshold of every neuron if no net is given.
        **kwargs: steps, initial potential and optimiser settings of
            :class:`methods.spike_training.SpikeTrainingModule`.
    """

    def __init__(
        self, net: nn.Module, alpha: float = 10.0, detach_reset: bool = True, theta: float = 1.0, **kwargs: Any
    ) -> None:
        require_within("(0, inf)", alpha=alpha, theta=theta)
        super().__init__(net, **kwargs)
        self.install(lambda _: SurrogateActivation(theta, self.v_init, alpha, detach_reset))
