"""LaSNN: layer-wise distillation of an ANN into its SNN.

Hong et al.: LaSNN: Layer-wise ANN-to-SNN Distillation for Effective and Efficient Training
in Deep Spiking Neural Networks, 2023, https://arxiv.org/abs/2304.09101

A trained ANN teaches the SNN that it was converted into. Both see the same images. In addition to the cross-entropy, a
loss pulls the attention map of each student layer towards the teacher's,

    A  =  sum over channels of a^2   (a map over the image; the student's a is its mean output over T),
    L  =  cross-entropy + beta sum over layers || A_T / |A_T| - A_S / |A_S| ||_2,

with surrogate gradients through the spikes.

From the paper's abstract: attention maps, layer by layer, of a trained teacher. The paper's equations were not found;
the above is the usual form of attention transfer, averaged over the images.
Chosen here: the student is the teacher's net and starts from its conversion; the abstract has a smaller student, and
distils instead of converting parameters. Because the paper's values were not found: beta = 1, T = 4, the surrogate of
``surrogate`` with alpha = 1, v_0 = theta / 2, and a fixed theta, the 99.9th percentile of the teacher's activations (or
its trained threshold). After a linear layer the map is the layer's squared activity itself, because there are no
channels to sum over. The teacher's activations are clipped at theta, the highest rate of the student. The record has
its accuracy as ``teacher``.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.calibration import Batch, activation_percentiles, watching
from bench.snn.processes import share
from methods.spike_training import FromTrainedNet, SpikingActivation
from methods.surrogate import SurrogateActivation


def attention(a: Tensor) -> Tensor:
    """Maps activations ``[B, C, H, W]`` (or ``[B, F]``) to attention maps, unit vectors ``[B, H W]`` (``[B, F]``)."""
    energy = a.square()
    return F.normalize((energy.sum(1) if a.ndim > 2 else energy).flatten(1), dim=1)


def distillation(teacher: dict[str, Tensor], student: dict[str, Tensor]) -> Tensor:
    """Returns the distance of the attention maps, summed over layers and averaged over images.

    Args:
        teacher: the teacher's activations for each layer name, ``[B, ...]``.
        student: the student's rates, likewise.
    """
    distances = [(attention(teacher[name]) - attention(rate)).norm(dim=1).mean() for name, rate in student.items()]
    return torch.stack(distances).sum()


class LaSNN(FromTrainedNet):
    """Layer-wise distillation (https://arxiv.org/abs/2304.09101).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        beta: weight of the distillation loss.
        alpha: sharpness of the surrogate's derivative, in units of 1 / theta.
        **kwargs: epochs of the teacher, a ReLU net, steps, initial potential and optimiser settings of
            :class:`methods.spike_training.FromTrainedNet`.
    """

    extras = ("teacher",)
    needs, rest = "lasnn distils a trained net", "the student"

    def __init__(self, net: nn.Module, beta: float = 1.0, alpha: float = 1.0, **kwargs: Any) -> None:
        require_within("[0, inf)", beta=beta)
        require_within("(0, inf)", alpha=alpha)
        super().__init__(net, **kwargs)
        self.beta = beta
        # With an infinite threshold the first epochs train a plain ReLU net.
        self.install(lambda _: SurrogateActivation(math.inf, self.v_init, alpha, detach_reset=True))
        self.teacher = copy.deepcopy(net).requires_grad_(False)

    def start_at(self, thresholds: dict[str, Tensor]) -> None:
        """Starts student and teacher from the given net."""
        super().start_at(thresholds)
        self.teacher.load_state_dict(self.net.state_dict())

    @property
    def distils(self) -> bool:
        """Whether the teacher's epochs are over and the student is trained."""
        return self.current_epoch >= self.ann_epochs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the teacher's cross-entropy, or the student's plus the distillation loss."""
        if not self.distils:
            return super().training_step(batch, batch_idx)
        if not torch.isfinite(next(iter(self.layers.values())).threshold):
            self.begin_student(batch)
        rates: dict[str, Tensor] = {}
        hooks = [
            layer.register_forward_hook(
                lambda _, __, output, name=name: rates.update({name: self.clock.unfold(output).mean(0)})
            )
            for name, layer in self.layers.items()
        ]
        loss = super().training_step(batch, batch_idx)
        for hook in hooks:
            hook.remove()
        seen: dict[str, Tensor] = {}
        with watching(self.teacher, lambda name, _, output: seen.update({name: output}), SpikingActivation):
            self.teacher(batch[0])
        distance = distillation(seen, rates)
        size = len(batch[1])
        self.log("train/distance", distance.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=size)
        return loss + self.beta * distance

    def begin_student(self, batch: Batch) -> None:
        """Makes the trained net the teacher, and its conversion the student."""
        super().start_at(activation_percentiles(self.net, [batch], self.percentile))
        share(self.net.buffers())
        self.teacher.load_state_dict(self.net.state_dict())

    def training_logits(self, images: Tensor) -> Tensor:
        """Returns the teacher's logits in its epochs, then those of the SNN."""
        return super().training_logits(images) if self.distils else self.forward(images)

    def validation_logits(self, images: Tensor) -> Tensor:
        """Returns the teacher's logits in its epochs, then those of the SNN."""
        return super().validation_logits(images) if self.distils else self.forward(images)

    def extra_logits(self, name: str, images: Tensor, batch_idx: int) -> Tensor:
        """Returns the teacher's logits."""
        logits: Tensor = self.teacher.eval()(images)
        return logits
