"""FTBC: forward temporal bias correction.

Wu, Bojkovic, Gu, Suo, Zou: FTBC: Forward Temporal Bias Correction for Optimizing ANN-SNN Conversion, ECCV 2024,
https://arxiv.org/abs/2403.18388

Each channel has a correction current for each step,

    u = v(t-1) + x(t) - b_c(t);     s(t) = theta [ u >= theta ];     v(t) = u - s(t),

Each batch of calibration images goes through the net layer by layer, each layer on the spikes that the layers before it
have just sent, and step by step. With a the ANN's activation on the same images, at each step of a layer:

    s = theta [ v(t-1) + x(t) - b_c(t) >= theta ];     e_c = mean over images and positions of (s - a);
    b_c(t) <- b_c(t) + alpha e_c;                      then the step is taken with the new b_c(t).

No labels and no backward pass are needed. v_0 = theta / 2. theta does not depend on T, so step t does not depend on
later steps: the corrections for few steps are, bit for bit, the first ones for many, and all T are read from one run.
Source: a net trained by QCFS (theta = lambda), or a ReLU net (theta a percentile of its layer's activations).

From the released code (a third party's copy, https://github.com/bjourne/FTBC-tmp): the rule, the order (all layers for
one batch, then the next batch), alpha = 0.5, batches of 200.
Chosen here: 2 batches and 3 passes (the released scripts have from 1 to 50). The ANN of a QCFS net keeps its L (in the
released code it is always 8). All layers are corrected; the released code leaves out those after a residual sum. Its
QCFS version simulates without the corrections found so far, so further passes add the same error again.
Costs: the corrections count as biases, which cost nothing. Unlike a bias, hardware must store one for each step.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.ranges import require_within
from bench.snn.activations import Activation, QCFSActivation, ReLUActivation
from bench.snn.calibration import (
    Batch,
    activation_percentiles,
    joined,
    observe,
    require_activation,
    require_batch,
    set_thresholds,
)
from bench.snn.graph.trace import ImageShape
from bench.snn.layerwise import SpikeTrains, execution_order, per_channel
from bench.snn.neurons import IFNode, SpikingNeuron
from methods.base import ConversionModule, refuse_without_effect


class CorrectedIFNode(IFNode):
    """IF neuron with a correction current for each channel and step.

    Args:
        threshold: theta.
        corrections: ``[T, C, 1, 1]`` (``[T, F]`` after a linear layer), subtracted from the current.
            :func:`bench.snn.simulate.simulate` takes at most T steps; a pass that overshoots uses the last one again.
    """

    corrections: Tensor

    def __init__(self, threshold: Tensor, corrections: Tensor) -> None:
        super().__init__(threshold, v_init=0.5)
        self.register_buffer("corrections", corrections)
        self.most_T = len(corrections)
        self.elapsed: Tensor | None = None

    def reset(self) -> None:
        """Resets the potential and the step."""
        super().reset()
        self.elapsed = None

    def step(self, v: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`bench.snn.neurons.IFNode`."""
        # A tensor: with a Python number, compiled code would be recompiled for each pass.
        t = torch.zeros((), dtype=torch.long, device=v.device) if self.elapsed is None else self.elapsed
        self.elapsed = (t + 1).clamp_max(len(self.corrections) - 1)
        return super().step(v, current - self.corrections[t])


class FTBC(ConversionModule):
    """Forward temporal bias correction (https://arxiv.org/abs/2403.18388).

    Args:
        net: trained network with QCFS (``source="qcfs"``) or ReLU (``source="relu"``) activations.
        source: kind of the net.
        calibration_images: number of training images, without augmentation.
        batch: images per correction.
        passes: passes over all batches.
        alpha: fraction of the error that is added to the correction.
        percentile: percentile of a layer's activations that is its theta; only with ``source="relu"``.
    """

    def __init__(
        self,
        net: nn.Module,
        source: Literal["qcfs", "relu"] = "qcfs",
        calibration_images: int = 400,
        batch: int = 200,
        passes: int = 3,
        alpha: float = 0.5,
        percentile: float = 99.9,
    ) -> None:
        require_within("[1, inf)", calibration_images=calibration_images, batch=batch, passes=passes)
        require_batch(calibration_images, batch)
        require_within("(0, 1]", alpha=alpha)
        require_within("(0, 100]", percentile=percentile)
        if source == "qcfs":
            refuse_without_effect(FTBC, "--model.source qcfs, whose theta is trained", percentile=percentile)
        kind, called = (QCFSActivation, "QCFS") if source == "qcfs" else (ReLUActivation, "ReLU")
        require_activation(net, kind, type(self).__name__, called)
        super().__init__(net)
        self.source, self.calibration_images, self.batch = source, calibration_images, batch
        self.passes, self.alpha, self.percentile = passes, alpha, percentile

    @torch.no_grad()
    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Replaces the activations by neurons and corrects all of them with one batch after the other."""
        if sys.maxsize == T:
            raise UserError("FTBC finds a current for each step; give convert(..., T=...)")
        if self.source == "relu":
            set_thresholds(net, activation_percentiles(net, calibration, self.percentile))
        parts = [(images, images) for images in torch.split(joined(calibration, self.batch), self.batch)]
        targets: dict[str, list[Tensor]] = {}
        observe(net, parts, lambda name, _, a: targets.setdefault(name, []).append(per_channel(a.mean(0))))
        nodes: dict[str, CorrectedIFNode] = {}
        for name in execution_order(net, image):
            activation = net.get_submodule(name)
            assert isinstance(activation, (QCFSActivation, ReLUActivation)) and activation.threshold is not None
            none = torch.zeros_like(targets[name][0])
            nodes[name] = CorrectedIFNode(activation.threshold, torch.stack([none] * T)).eval()
            net.set_submodule(name, nodes[name])
        trains = [SpikeTrains(net, [part], T) for part in parts]
        for _, (number, batch) in itertools.product(range(self.passes), enumerate(trains)):
            for name, node in nodes.items():
                steps = self.corrected(node, batch.currents(name), targets[name][number])
                batch.keep(name, [torch.stack(list(steps))])

    def corrected(self, node: CorrectedIFNode, currents: Iterable[Tensor], target: Tensor) -> Iterator[Tensor]:
        """Runs one layer, corrects each step before it is taken, and yields the layer's output step by step.

        Args:
            node: the layer's neuron, whose corrections are changed in place.
            currents: its input at each step.
            target: the ANN's mean activation of each channel.
        """
        v = torch.zeros(())
        for t, x in enumerate(currents):
            if t == 0:
                v = node.initial(x)
            s = torch.where(v + x - node.corrections[t] >= node.threshold, node.threshold.to(x), 0.0)
            node.corrections[t] += self.alpha * (per_channel(s.mean(0)) - target)
            out, v = IFNode.step(node, v, x - node.corrections[t])
            yield out

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Never called: :meth:`calibrate` has replaced all activations."""
        raise AssertionError(name)
