"""DCGS: differential coding with graded units.

Huang, Fang, Bu and others: Differential Coding for Training-Free ANN-to-SNN Conversion, ICML 2025,
https://arxiv.org/abs/2503.00301

A spike stands for a change. At each step the receivers add the mean of what a neuron has sent so far, which needs no
spike; the neuron spikes only if this mean is no longer right. With m_t the mean of what steps 1 .. t-1 stood for
(m_1 = 0),

    u = v_{t-1} + x_t - m_t;     s_t = fire(u);     v_t = u - s_t;     step t stands for m_t + s_t,

so a neuron with constant input falls silent. It has n levels theta_k = theta / 2^k, k = 0 .. n-1, and v_0 = 0:

    s_t = +theta_k  for the smallest k with  u >= 3/4 theta_k,
          -theta_k  for the smallest k with  u <= -3/4 theta_k  and  (sum of steps 1 .. t-1) + m_t >= theta_k,
           0        otherwise.

With one level (``neuron="if"``): v_0 = theta / 2, +theta if u >= theta, -theta if u <= 0 and the sum allows it.
The paper's form first runs a step without the image, which measures the biases, then shows the image once, and keeps
the expected input and output of each neuron. This form shows image and biases at every step, as all methods here do. It
gives the same outputs: expected inputs cancel, no step for the biases is needed, and the answer is the mean over the
steps.
The sum often equals theta_k exactly, so rounding errors would decide. The comparison therefore allows the sum to be too
small by a millionth.

Thresholds: for each channel either 100 iterations of :func:`methods.gaussian.gaussian_thresholds` with 64 levels, from
1, on mean and variance of its pre-activations, or the 99.9th percentile of its activations. The iterations have not
converged by then, which is part of the method: theta limits no value here, because the mean of a neuron's steps may
exceed it.

From the authors' code: the above; n = 4 in its ResNets, 8 in other nets.
Chosen here: moments from training images without augmentation (the released code takes them from the evaluation set); a
percentile over all images (there a running average over batches); 64 levels of the quantiser (``quantiser_levels``),
the default of the authors' function, to which their code passes T 2^n. A channel with theta = 0 sends nothing.
Max-pooling after a ReLU is moved before it and pools currents; the authors have a special neuron for it.
Costs: an event is s_t != 0, at any level, and an input to a layer is what differs from its mean so far. In hardware
each synapse (or each neuron) must store this mean and add it at every step; that is not counted. Nor is the shift of
the weight by which an event of theta / 2^k is added.
The alphabet is multi-level: 2n signed values.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.activations import Activation, ReLUActivation
from bench.snn.calibration import (
    Batch,
    activation_percentiles,
    require_activation,
    set_thresholds,
)
from bench.snn.compilation import compiled_for_shapes
from bench.snn.graph.pool_first import pool_first
from bench.snn.graph.trace import ImageShape
from bench.snn.neurons import SpikingNeuron, stack_steps
from methods.base import ConversionModule, refuse_without_effect
from methods.gaussian import channel_moments, gaussian_thresholds
from methods.thresholds import silencing, threshold_of

Rule = Literal["optimal", "percentile"]
ITERATIONS, START = 100, 1.0
TOLERANCE = 1e-6
# Fraction of a level at which a graded neuron sends it.
RISE = 0.75


class DifferentialNode(SpikingNeuron):
    """Sends signed, graded differences from the mean of what it has sent.

    Its output at a step is what the step stands for, ``m_t + s_t``. Events are counted on ``s_t``.

    Args:
        threshold: the largest level.
        levels: number of levels, each half the previous one; ``None`` for the IF version.
        v_init: initial potential as a fraction of theta.
    """

    coding = "differential"
    unbounded = True

    def __init__(self, threshold: Tensor, levels: int | None, v_init: float | Tensor) -> None:
        super().__init__(threshold, v_init)
        self.graded = levels is not None
        self.sizes = [0.5**k for k in range(levels or 1)]
        self.fires_at = RISE * self.sizes[-1] if self.graded else 1.0
        self.alphabet = "multi" if self.graded else "ternary"
        self.levels_per_step = 2 * levels if levels else 1
        self.reset()

    def reset(self) -> None:
        """Resets the potential and the sum of what was sent."""
        super().reset()
        self.sum: Tensor | None = None
        self.elapsed: Tensor | None = None

    def run(self, x_TBX: Tensor) -> Tensor:
        """See :class:`bench.snn.neurons.SpikingNeuron`."""
        v = self.initial(x_TBX[0]) if self.v is None else self.v
        total = torch.zeros_like(v) if self.sum is None else self.sum
        # A tensor: with a Python number, compiled code would be recompiled for each pass.
        elapsed = torch.zeros((), dtype=v.dtype, device=v.device) if self.elapsed is None else self.elapsed
        sent, fired = [], []
        for current in x_TBX:
            v, meaning, spike = self.step(current, v, total, elapsed)
            total, elapsed = total + meaning, elapsed + 1
            sent.append(meaning)
            fired.append(spike != 0)
        self.v, self.sum, self.elapsed = v, total, elapsed
        self.fired = torch.stack(fired)
        return stack_steps(sent, x_TBX)

    def step(self, current: Tensor, v: Tensor, total: Tensor, elapsed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs one step.

        Args:
            current: input of the step.
            v: potential before it.
            total: sum of what the steps before stood for.
            elapsed: their number.

        Returns:
            The potential after the step, what the step stands for, and the spike.
        """
        mean = total / elapsed.clamp_min(1)
        u = v + current - mean
        spike = self.fire(u, total + mean)
        return u - spike, mean + spike, spike

    def fire(self, u: Tensor, gate: Tensor) -> Tensor:
        """Returns the spike at potential ``u``; a negative spike is at most as large as ``gate``."""
        gate, spike = gate * (1 + TOLERANCE), torch.zeros_like(u)
        rise, fall = (RISE, -RISE) if self.graded else (1.0, 0.0)
        for size in reversed(self.sizes):
            level = size * self.threshold
            spike = torch.where((u <= fall * level) & (gate >= level), -level, spike)
            spike = torch.where(u >= rise * level, level, spike)
        return spike

    def events(self, out_TBX: Tensor) -> Tensor:
        """Counts each difference as one event, at any level."""
        return self.fired.to(torch.float32)

    def twin(self, T: int) -> nn.Module:
        """Returns the neuron's mean output after ``T`` steps of a constant current."""
        return DifferentialActivation(self, T)


class DifferentialActivation(Activation):
    """The mean output of a differential neuron under a constant current.

    Args:
        neuron: copied, not changed.
        T: steps.
    """

    def __init__(self, neuron: DifferentialNode, T: int) -> None:
        super().__init__()
        self.neuron, self.T = copy.deepcopy(neuron), T
        self.step = DifferentialNode.step  # not bound: a copy of this activation has its own neuron

    def compile_steps(self) -> None:
        """Compiles the step, which makes an evaluation several times faster: it runs T times for each T."""
        self.step = compiled_for_shapes(DifferentialNode.step)

    def forward(self, z: Tensor) -> Tensor:
        """Maps pre-activations of any shape to mean outputs."""
        v, total, elapsed = self.neuron.initial(z), torch.zeros_like(z), z.new_zeros(())
        for _ in range(self.T):
            v, meaning, _ = self.step(self.neuron, z, v, total, elapsed)
            total, elapsed = total + meaning, elapsed + 1
        return total / self.T


class DCGS(ConversionModule):
    """Differential coding with graded units (https://arxiv.org/abs/2503.00301).

    Args:
        net: trained network with ReLU activations; max-pooling may follow them.
        calibration_images: number of training images, without augmentation, from which thresholds are read.
        neuron: ``graded`` has ``levels`` levels; ``if`` has one and starts at theta / 2.
        levels: number n of levels of a graded neuron.
        thresholds: ``optimal`` for normally distributed pre-activations, or a ``percentile`` of the activations.
        quantiser_levels: levels of the quantiser for which ``optimal`` thresholds are computed.
        percentile: percentile of each channel's activations, for ``thresholds="percentile"``.
    """

    pools_currents = True
    saturates = False
    differential = True

    def __init__(
        self,
        net: nn.Module,
        calibration_images: int = 1000,
        neuron: Literal["graded", "if"] = "graded",
        levels: int = 4,
        thresholds: Rule = "optimal",
        quantiser_levels: int = 64,
        percentile: float = 99.9,
    ) -> None:
        require_within("[1, inf)", calibration_images=calibration_images)
        require_within("[1, 8]", levels=levels)
        require_within("[1, 65536]", quantiser_levels=quantiser_levels)
        require_within("(0, 100]", percentile=percentile)
        if neuron == "if":
            refuse_without_effect(DCGS, "--model.neuron if", levels=levels)
        if thresholds == "optimal":
            refuse_without_effect(DCGS, "--model.thresholds optimal", percentile=percentile)
        else:
            refuse_without_effect(DCGS, "--model.thresholds percentile", quantiser_levels=quantiser_levels)
        require_activation(net, ReLUActivation, type(self).__name__, "ReLU")
        super().__init__(pool_first(net))
        self.calibration_images, self.levels = calibration_images, levels if neuron == "graded" else None
        self.rule, self.quantiser_levels, self.percentile = thresholds, quantiser_levels, percentile

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Sets theta of each channel."""
        if self.rule == "percentile":
            found = activation_percentiles(net, calibration, self.percentile, "channel")
        else:
            found = {
                name: gaussian_thresholds(mean, deviation, self.quantiser_levels, ITERATIONS, START)
                for name, (mean, deviation) in channel_moments(net, calibration).items()
            }
        set_thresholds(net, found)

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Returns the differential neuron."""
        threshold, start = silencing(threshold_of(activation), 0.0 if self.levels else 0.5)
        return DifferentialNode(threshold, self.levels, start)
