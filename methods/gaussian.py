"""Thresholds with the least square error for normally distributed inputs, shared by DCGS and H-MT."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.snn.calibration import Batch, observe, units


def channel_moments(net: nn.Module, batches: Sequence[Batch]) -> dict[str, tuple[Tensor, Tensor]]:
    """Measures mean and standard deviation of each channel's pre-activations, in double precision.

    Args:
        net: network whose activations are :class:`bench.snn.activations.Activation`.
        batches: calibration images; mean and variance are taken over all images and positions.

    Returns:
        For each layer name, mean and standard deviation, both ``[C, 1, 1]`` or ``[F]``.
    """
    sums: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, z: Tensor, _: Tensor) -> None:
        rows, shapes[name] = units(z.detach().double(), "channel")
        found = torch.stack([torch.full_like(rows[:, 0], rows.shape[1]), rows.sum(1), rows.square().sum(1)])
        sums[name] = sums[name] + found if name in sums else found

    observe(net, batches, add)
    moments = {}
    for name, (count, first, second) in sums.items():
        mean = first / count
        deviation = (second / count - mean.square()).clamp_min(0).sqrt()
        moments[name] = (mean.reshape(shapes[name]), deviation.reshape(shapes[name]))
    return moments


def gaussian_thresholds(mean: Tensor, deviation: Tensor, levels: int, iterations: int, start: float) -> Tensor:
    """Iterates the ceiling ``theta`` of a quantiser towards the least square error on normally distributed inputs.

    With ``n(z) = clip(round(z M / theta), 0, M)``, the best step size for the present rounding is ``E[z n] / E[n^2]``.
    Each iteration sets ``theta`` to M such steps. In closed form, ``theta <- k theta`` with

        k = [ mu / theta mean erfc_i + sigma sqrt(2 / pi) / theta mean exp_i ] / (sum (2i - 1) erfc_i / M^2),

    erfc_i = 1 - erf(g_i) and exp_i = exp(-g_i^2) at g_i = ((2i - 1) theta / 2M - mu) / (sqrt(2) sigma), i = 1 .. M.
    From a start far above all inputs both would be 0, so it is lowered to where the first level is 20 sigma above mu.

    Args:
        mean: mu of each channel, in double precision.
        deviation: sigma of each channel.
        levels: number M of levels.
        iterations: number of iterations; they need not converge.
        start: initial theta.

    Returns:
        theta in the shape of ``mean``, single precision: ``start`` if the result is not finite (a channel without any
        variance, or whose inputs are all far below 0), 0 if it is negative.
    """
    highest = 2 * levels * (mean + 20 * deviation)
    theta = torch.full_like(mean, start).minimum(highest.where(highest > 0, start))
    odd = 2 * torch.arange(1, levels + 1, dtype=mean.dtype, device=mean.device) - 1
    mu, sigma = mean[..., None], deviation[..., None]
    for _ in range(iterations):
        g = (odd * theta[..., None] / (2 * levels) - mu) / (math.sqrt(2) * sigma)
        erfc, exp = torch.erfc(g), torch.exp(-g.square())
        top = mean / theta * erfc.mean(-1) + deviation * math.sqrt(2 / math.pi) / theta * exp.mean(-1)
        theta = theta * (top / ((odd * erfc).sum(-1) / levels**2))
    return theta.where(torch.isfinite(theta), start).clamp_min(0).float()
