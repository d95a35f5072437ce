"""PTL: progressive tandem learning.

Wu, Xu, Han, Zhou, Zhang, Li, Tan: Progressive Tandem Learning for Pattern Recognition with Deep Spiking Neural
Networks, TPAMI 2021, https://arxiv.org/abs/2007.01204

The layers of a trained ReLU net become spiking layers one after another, from the first. After each conversion the rest
of the net learns to cope with the spikes that arrive. A converted layer is a tandem of two layers with the same
weights,

    forward:   u_t = v_{t-1} + x_t,   s_t = [u_t >= theta],   v_t = u_t - theta s_t,   v_0 = 0,   for T steps,
    backward:  the gradient of a = relu( mean over T of x_t ), the ReLU layer that sees the spike counts,

with theta the 99.9th percentile of its activation on one batch at the time of conversion. In stage k the layers 1 .. k
spike and the later ones are still ReLU of the mean; the weights before layer k are frozen, and the rest is trained. The
classifier is analogue.

From the paper or its authors' code: the above; T = 16; a stage ends when the held-out accuracy has not risen for 6
epochs (``patience``; that code has Adam, 1e-3, batch 512).
Chosen here: a spike weighs theta and a layer's activation is the mean over T, as everywhere in this suite, so that the
initial function is that of the ReLU net (there a spike weighs 1, a count is passed on, batch normalisation absorbs the
scale, and theta is the percentile / T); the image is shown at every step (there as one current at the first step); this
suite's SGD; stages of a fixed length (``epochs_per_layer``) for runs too short for the paper's rule; the weights of the
layer that was converted last are trained (there, from the second stage on, they are frozen at once); a stage begins
from the last epoch of the one before (there from its best).
"""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.ranges import require_within
from bench.snn.calibration import Batch, watching
from bench.snn.graph.check import BatchNorm
from bench.snn.graph.trace import segment
from bench.snn.layerwise import execution_order
from datamodules.base import ImageDataModule
from methods.base import refuse_without_effect
from methods.spike_training import FromTrainedNet, SpikingActivation, rate_gradient


class TandemActivation(SpikingActivation):
    """A ReLU of the mean current while its threshold is infinite; afterwards spikes with that ReLU's gradient.

    Args:
        v_init: initial membrane potential as a fraction of theta.
    """

    ceiling: Tensor

    def __init__(self, v_init: float) -> None:
        super().__init__(math.inf, v_init)
        self.register_buffer("ceiling", torch.tensor(math.inf), persistent=False)

    @property
    def converted(self) -> bool:
        """Whether the layer spikes."""
        return bool(torch.isfinite(self.threshold))

    def emit(self, x_TBX: Tensor) -> Tensor:
        """See :class:`methods.spike_training.SpikingActivation`."""
        return super().emit(x_TBX) if self.converted else x_TBX.mean(0).relu().expand_as(x_TBX).contiguous()

    def spikes(self, x_TBX: Tensor) -> Tensor:
        """See :class:`methods.spike_training.SpikingActivation`."""
        return rate_gradient(x_TBX, self.ceiling, self.emit)


class Tandem(FromTrainedNet):
    """Progressive tandem learning (https://arxiv.org/abs/2007.01204).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        T: steps in training.
        v_init: initial membrane potential as a fraction of theta.
        epochs_per_layer: length of a stage, which may be a fraction of an epoch; ``None`` for the paper's rule.
        patience: for the paper's rule, the number of epochs without a rise of the held-out accuracy after which a stage
            ends.
        percentile: percentile of the layer's activations to which each theta is set.
        **kwargs: epochs of the ReLU net and optimiser settings of :class:`methods.spike_training.FromTrainedNet`.
    """

    stage: Tensor
    best: Tensor
    waited: Tensor

    needs, rest = "tandem begins from a trained ReLU net", "the spikes"

    def __init__(
        self,
        net: nn.Module,
        T: int = 16,
        v_init: float = 0.0,
        epochs_per_layer: float | None = None,
        patience: int = 6,
        percentile: float = 99.9,
        **kwargs: Any,
    ) -> None:
        if epochs_per_layer is not None:
            require_within("(0, inf)", epochs_per_layer=epochs_per_layer)
            refuse_without_effect(Tandem, "--model.epochs_per_layer", patience=patience)
        require_within("[1, inf)", patience=patience)
        super().__init__(net, T=T, v_init=v_init, percentile=percentile, **kwargs)
        self.epochs_per_layer, self.patience = epochs_per_layer, patience
        # State of the paper's rule, kept in checkpoints.
        self.register_buffer("stage", torch.tensor(1))
        self.register_buffer("best", torch.tensor(-1.0))
        self.register_buffer("waited", torch.tensor(0))
        self.install(lambda _: TandemActivation(self.v_init))
        self.order = execution_order(net, self.image)
        # The part that computes each layer's input; in a list, or Lightning would register it as part of the model.
        self._segments = [[segment(net, name, self.image)[0] for name in self.order]]

    def start_at(self, thresholds: dict[str, Tensor]) -> None:
        """Keeps all thresholds infinite; they are set layer by layer in training."""

    def check_training(self, trainer: pl.Trainer, datamodule: ImageDataModule | None) -> None:
        """Refuses a schedule that does not finish, and training in several processes.

        Raises:
            UserError: names the option to change.
        """
        if trainer.world_size > 1:
            raise UserError("tandem: freezes one layer after another, each with a threshold from one batch; train it "
                            "in one process")  # fmt: skip
        super().check_training(trainer, datamodule)
        epochs, layers = trainer.max_epochs or 0, len(self.order)
        if self.epochs_per_layer is None:
            if trainer.limit_val_batches == 0:
                raise UserError(
                    "tandem: the accuracy on held-out images decides when a stage ends; give --data.val_split N, or "
                    "--model.epochs_per_layer E"
                )
        elif (layers - 1) * self.epochs_per_layer >= epochs - self.ann_epochs:
            raise UserError(
                f"--model.epochs_per_layer {self.epochs_per_layer:g}: {layers} layers do not fit into "
                f"{epochs - self.ann_epochs} epochs; the last stage must begin within them"
            )

    def stage_of(self, batch_idx: int) -> int:
        """Returns how many layers spike at this batch.

        With the paper's rule all layers spike in the last epoch. With stages of a fixed length, which may begin between
        two batches, all layers spike in the last batch.
        """
        if self.current_epoch < self.ann_epochs:
            return 0
        last = self.current_epoch + 1 == self.trainer.max_epochs
        if self.epochs_per_layer is None:
            return len(self.order) if last else int(self.stage)
        if last and batch_idx + 1 == self.trainer.num_training_batches:
            return len(self.order)
        done = self.current_epoch - self.ann_epochs + batch_idx / self.trainer.num_training_batches
        return min(1 + math.floor(done / self.epochs_per_layer + 1e-9), len(self.order))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Converts the layers that are due, freezes those before the last of them, and returns the cross-entropy."""
        stage = self.stage_of(batch_idx)
        for name in self.order[:stage]:
            if not self.converted(name):
                self.convert_layer(name, batch[0])
        for part in self._segments[0][: max(0, stage - 1)]:
            part.requires_grad_(False)
            for module in part.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        return super().training_step(batch, batch_idx)

    def training_logits(self, images: Tensor) -> Tensor:
        """Returns the logits of the ReLU net, or of the net whose first layers spike."""
        return super().training_logits(images) if self.converted(self.order[0]) else self.forward(images)

    def validation_logits(self, images: Tensor) -> Tensor:
        """Returns the logits of the ReLU net, or of the net whose first layers spike."""
        return super().validation_logits(images) if self.converted(self.order[0]) else self.forward(images)

    def converted(self, name: str) -> bool:
        """Returns whether a layer spikes."""
        layer = self.layers[name]
        assert isinstance(layer, TandemActivation)
        return layer.converted

    def convert_layer(self, name: str, images: Tensor) -> None:
        """Sets one threshold from the activations caused by the spikes of the previous layers."""
        found: list[Tensor] = []

        def see(seen: str, _: Tensor, output: Tensor) -> None:
            if seen == name:
                values = output[: len(images)].flatten().float()
                rank = max(1, math.ceil(len(values) * self.percentile / 100))
                found.append(values.kthvalue(rank).values)

        with watching(self.net, see, SpikingActivation):
            self.unrolled(images)
        self.layers[name].threshold.copy_(found[0].clamp_min(torch.finfo(torch.float32).tiny))

    def on_train_epoch_end(self) -> None:
        """Applies the paper's rule: begins the next stage after ``patience`` epochs without a rise."""
        super().on_train_epoch_end()
        if self.epochs_per_layer is not None or self.current_epoch < self.ann_epochs:
            return
        accuracy = self.trainer.callback_metrics["val/acc"].to(self.best)
        rises = bool(accuracy > self.best)
        self.best.copy_(torch.maximum(accuracy, self.best))
        self.waited.copy_(torch.zeros_like(self.waited) if rises else self.waited + 1)
        if self.waited >= self.patience:
            self.stage.add_(1).clamp_(max=len(self.order))
            self.best.fill_(-1.0)
            self.waited.zero_()
