"""Parallel conversion.

Hao, Ma, Chen, Zhang, Yu, Huang: Faster and Stronger: When ANN-SNN Conversion Meets Parallel Spiking Calculation, ICML
2025, https://arxiv.org/abs/2412.13610

A layer waits for all T steps of its input and takes their mean x. T comparators then decide all steps at once:

    s(t) = theta [ (T / t) x + v_0 / t >= theta ],     t = 1 .. T,     v_0 = theta / 2.

The number of spikes is clip( floor( T x / theta + 1/2 ), 0, T ) for any order of the input. On a QCFS net with L = T
the SNN is therefore exactly the quantised ANN. For other nets, DA-QCFS aligns distributions. With a shift phi and a
gain psi for each channel, the activation of T levels is

    a = clip( floor( (z + phi) T / theta + 1/2 ) / T, 0, 1 ) (theta + psi),

and moving averages with weight 0.01 over batches of training images align the means of each channel in this network
with those in the net as it was trained (of L levels, or a ReLU clipped at its channel's maximum):

    phi <- 0.99 phi + 0.01 ( mean z of that net  -  mean z of this ),
    psi <- 0.99 psi + 0.01 ( mean a of that net  -  mean a of this ).

Both networks see the same images, and each layer of this one sees the aligned output of the layers before it.
Sources: a net trained by QCFS, with theta = lambda (L = T needs no alignment), or a ReLU net, with theta the largest
activation of a channel.

From a third party's copy of the authors' code (https://github.com/bjourne/hao_s2025): the above. The early steps fire
first; the paper's formula fills the late ones first, with the same count.
Chosen here: number of images and batches; linear layers are aligned as well, which that code leaves out. A channel that
no image activates sends nothing.
Each layer waits T steps for its predecessor, so each layer adds T steps to the latency.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.ranges import require_within
from bench.snn.activations import Activation, QCFSActivation, ReLUActivation
from bench.snn.calibration import (
    Batch,
    activation_percentiles,
    require_activation,
    set_thresholds,
    watching,
)
from bench.snn.graph.trace import ImageShape
from bench.snn.layerwise import per_channel
from bench.snn.neurons import SpikingNeuron
from bench.snn.replace import replace
from methods.base import refuse_without_effect
from methods.counting import CountFirst, CountFirstNode
from methods.thresholds import silencing

WEIGHT = 0.01


class AlignedActivation(Activation):
    """The activation of T levels, with shift and gain. It learns both while ``targets`` is set.

    Args:
        threshold: theta.
        start: initial potential as a fraction of theta.
        T: number of levels.
        ceiling: highest output, that of a ReLU6; the gain is limited to what it leaves.

    Attributes:
        shift: phi; one for each channel after learning.
        gain: psi, likewise.
        targets: mean pre-activation and mean activation of each channel in the net as it was trained.
    """

    threshold: Tensor
    start: Tensor
    shift: Tensor
    gain: Tensor
    most_gain: Tensor

    def __init__(self, threshold: Tensor, start: Tensor | float, T: int, ceiling: float = math.inf) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold.detach().clone())
        self.register_buffer("start", torch.as_tensor(start).to(threshold).clone())
        self.register_buffer("shift", torch.zeros_like(threshold))
        self.register_buffer("gain", torch.zeros_like(threshold))
        self.register_buffer("most_gain", ceiling - self.threshold)
        self.T = T
        self.targets: tuple[Tensor, Tensor] | None = None

    def forward(self, z: Tensor) -> Tensor:
        """Quantises pre-activations ``[B, C, H, W]`` or ``[B, F]``."""
        if self.targets is not None:
            self.shift = (1 - WEIGHT) * self.shift + WEIGHT * (self.targets[0] - per_channel(z.mean(0)))
        count = torch.floor((z + self.shift) * (self.T / self.threshold) + self.start).clamp(0, self.T)
        a = count / self.T * (self.threshold + self.gain)
        if self.targets is not None:
            gain = (1 - WEIGHT) * self.gain + WEIGHT * (self.targets[1] - per_channel(a.mean(0)))
            self.gain = gain.minimum(self.most_gain)
        return a


class ParallelNode(CountFirstNode):
    """Decides all steps at once from the sum of its input.

    Args:
        activation: the activation whose count the neuron sends.
    """

    shift: Tensor
    gain: Tensor

    def __init__(self, activation: AlignedActivation) -> None:
        super().__init__(activation.threshold, activation.T, activation.start)
        self.register_buffer("shift", activation.shift.clone())
        self.register_buffer("gain", activation.gain.clone())

    def send(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`methods.counting.CountFirstNode`."""
        T = self.lookahead
        v = v + T * self.shift
        fires = torch.stack([v >= t * self.threshold for t in range(1, T + 1)])
        out_TBX = torch.where(fires, self.threshold + self.gain, 0.0).to(v.dtype)
        return out_TBX, v - fires.sum(0) * self.threshold

    def twin(self, T: int) -> nn.Module:
        """Returns the activation itself, which the neuron equals."""
        twin = AlignedActivation(self.threshold, self.v_init, T)
        twin.shift, twin.gain = self.shift.clone(), self.gain.clone()
        return twin


class Parallel(CountFirst):
    """Parallel conversion, with DA-QCFS unless L = T (https://arxiv.org/abs/2412.13610).

    Args:
        net: trained network with QCFS (``source="qcfs"``) or ReLU (``source="relu"``) activations.
        source: kind of the net.
        align: ``auto`` aligns distributions unless the net is a QCFS net with L = T; ``never`` does not align.
        calibration_images: number of training images, without augmentation.
        iterations: number of batches of 50 images; after 500 the initial value has a weight of 0.7 % in an average.
    """

    def __init__(
        self,
        net: nn.Module,
        source: Literal["qcfs", "relu"] = "qcfs",
        align: Literal["auto", "never"] = "auto",
        calibration_images: int = 1000,
        iterations: int = 500,
    ) -> None:
        require_within("[1, inf)", calibration_images=calibration_images, iterations=iterations)
        if align == "never":
            refuse_without_effect(Parallel, "--model.align never", iterations=iterations)
            if source == "qcfs":
                refuse_without_effect(Parallel, "--model.align never", calibration_images=calibration_images)
        kind, called = (QCFSActivation, "QCFS") if source == "qcfs" else (ReLUActivation, "ReLU")
        require_activation(net, kind, type(self).__name__, called)
        super().__init__(net)
        self.source, self.align, self.iterations = source, align, iterations
        self.calibration_images = 0 if source == "qcfs" and align == "never" else calibration_images

    @torch.no_grad()
    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Replaces the activations by aligned activations of T levels."""
        ann = copy.deepcopy(net)
        if self.source == "relu":
            set_thresholds(net, activation_percentiles(net, calibration, 100.0, "channel"))
        layers: dict[str, AlignedActivation] = {}

        def aligned(name: str, activation: Activation) -> AlignedActivation:
            assert isinstance(activation, (QCFSActivation, ReLUActivation)) and activation.threshold is not None
            highest = activation.ceiling if isinstance(activation, ReLUActivation) else math.inf
            if self.source == "relu":
                clip = activation.threshold
                ann.get_submodule(name).register_forward_hook(lambda _, __, a: torch.minimum(a, clip))
            theta, start = silencing(activation.threshold.detach(), 0.5)
            return layers.setdefault(name, AlignedActivation(theta, start, T, highest))

        exact = all(isinstance(m, QCFSActivation) and m.L == T for m in net.modules() if isinstance(m, Activation))
        replace(net, Activation, aligned)
        if self.align == "never" or exact:
            return
        if not calibration:
            raise UserError("conversion needs calibration images and got none")

        targets: list[dict[str, tuple[Tensor, Tensor]]] = []

        def note(name: str, z: Tensor, a: Tensor) -> None:
            targets[-1][name] = per_channel(z.mean(0)), per_channel(a.mean(0))

        with watching(ann, note):
            for images, _ in calibration:
                targets.append({})
                ann(images)
        batches = zip(calibration, targets, strict=True)
        for (images, _), means in itertools.islice(itertools.cycle(batches), self.iterations):
            for name, layer in layers.items():
                layer.targets = means[name]
            net(images)
        for layer in layers.values():
            layer.targets = None

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Returns the neuron that sends the activation's count as spikes."""
        assert isinstance(activation, AlignedActivation)
        return ParallelNode(activation)
