"""RNL and RIL: rate norm layers, and training for fast inference.

Ding, Yu, Tian, Huang: Optimal ANN-SNN Conversion for Fast and Accurate Inference in Deep Spiking Neural Networks, IJCAI
2021, https://arxiv.org/abs/2105.11654

A rate norm layer outputs a rate, as an IF neuron does:

    theta = sigmoid(q) M + 1e-6,     a = clip( relu(z) / theta, 0, 1 ).

M is an exponential average (momentum 0.1) of the batch's largest relu(z), updated in training only. The next layer
reads rates, so the weights convert unchanged, spikes have amplitude 1, v_0 = 0, and the reset is soft.

Stage 1 (accuracy): q fixed at 10; cross-entropy. Stage 2 (speed): weights frozen, M locked, one q for all layers that
starts at 4:

    loss = 1 - cos( teacher logits, logits ) + beta mean_l Omega_l,
    Omega_l = |r_l|_1 / ( |r_l|_2^2 + 1e-5 ),

over the batch, for each layer's rates and for relu(logits) / max. Larger rates converge sooner, and Omega favours them.
The teacher is the frozen net of stage 1. Since weights and M are locked, it is this net with q = 10. (In the released
code the student is its own teacher, and the cosine term vanishes.)

From the paper or its authors' code: the above; SGD 0.1, momentum 0.9, weight decay 1e-4, batch 50, 200 epochs, learning
rate x 0.1 after 100 and 150; stage 2 with SGD 1e-3 (0.01 in their fast training), momentum 0.9; beta = 0.1.
Chosen here: the length of stage 2 (``stage2_epochs``, the last epochs of the run), with BN in evaluation mode; M starts
at the first batch's value (in the released code at 1.0); q has a constant learning rate and no weight decay (there
x 0.1 after 100 and 150 epochs, and 1e-4).
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from bench.errors import UserError
from bench.ranges import require_within
from bench.snn.activations import Activation, clip
from bench.snn.calibration import Batch
from bench.snn.neurons import IFNode, SpikingNeuron
from datamodules.base import ImageDataModule
from methods.training import TrainingModule

Q_ACCURATE = 10.0
MOMENTUM = 0.1  # of the average of the batch maximum


class RateNorm(Activation):
    """``clip(relu(z) / theta, 0, 1)`` with ``theta = sigmoid(q) M + 1e-6``; M is an average of the batch maximum."""

    M: Tensor
    q: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("M", torch.zeros(()))
        self.register_buffer("q", torch.tensor(Q_ACCURATE))

    @property
    def threshold(self) -> Tensor:
        """The threshold theta, a scalar."""
        return torch.sigmoid(self.q) * self.M + 1e-6

    def forward(self, z: Tensor) -> Tensor:
        """Maps pre-activations of any shape to rates."""
        if self.training:
            with torch.no_grad():
                largest = z.relu().max().to(self.M.dtype)
                self.M.copy_(torch.where(self.M > 0, self.M.lerp(largest, MOMENTUM), largest))
        return (clip(z, self.threshold) / self.threshold).to(z.dtype)


class RNL(TrainingModule):
    """Rate norm layers, trained for accuracy and then for speed (https://arxiv.org/abs/2105.11654).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        stage2_epochs: number of epochs of stage 2, the last of the run; 0 for stage 1 only.
        q_init: initial q of stage 2.
        q_lr: learning rate of q.
        q_momentum: momentum of the SGD on q.
        beta: weight of Omega.
        lr: learning rate of the weights; it falls tenfold after half and after three quarters of stage 1.
        weight_decay: weight decay on all parameters but q.
        **kwargs: pooling and optimiser settings of :class:`methods.training.TrainingModule`.
    """

    def __init__(
        self,
        net: nn.Module,
        stage2_epochs: int = 1,
        q_init: float = 4.0,
        q_lr: float = 1e-3,
        q_momentum: float = 0.9,
        beta: float = 0.1,
        lr: float = 0.1,
        weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        require_within("[0, inf)", stage2_epochs=stage2_epochs)
        require_within("[0, inf)", q_lr=q_lr, beta=beta)
        require_within("[0, 1)", q_momentum=q_momentum)
        super().__init__(net, lr=lr, weight_decay=weight_decay, **kwargs)
        self.stage2_epochs, self.q_lr, self.q_momentum, self.beta = stage2_epochs, q_lr, q_momentum, beta
        self.q = nn.Parameter(torch.tensor(float(q_init)))
        self.install(lambda _: RateNorm())

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Uses theta of the rate norm layer, v_0 = 0 and spikes of amplitude 1."""
        assert isinstance(activation, RateNorm)
        node = IFNode(activation.threshold, v_init=0.0)
        node.unit_spikes = True
        return node

    @property
    def layers(self) -> list[RateNorm]:
        """The rate norm layers."""
        return [module for module in self.net.modules() if isinstance(module, RateNorm)]

    def set_q(self, q: Tensor) -> None:
        """Sets the same q in all layers; gradients flow to it."""
        for layer in self.layers:
            layer.q = q.to(layer.M).clone()

    @property
    def stage1_epochs(self) -> int:
        """Epochs before stage 2."""
        return (self.trainer.max_epochs or 0) - self.stage2_epochs

    def check_training(self, trainer: pl.Trainer, datamodule: ImageDataModule | None) -> None:
        """Refuses a run without epochs for stage 1, or one that DDP would stop at its second step.

        Raises:
            UserError: stage 2 takes all epochs, or the strategy expects gradients of all parameters at every step.
        """
        # Lightning has no public access to the options that a strategy passes to DDP.
        wrapped: dict[str, object] = getattr(trainer.strategy, "_ddp_kwargs", {})
        if trainer.world_size > 1 and not wrapped.get("find_unused_parameters"):
            raise UserError(
                "rnl: its two stages train different parameters; with several processes give "
                "--trainer.strategy ddp_find_unused_parameters_true"
            )
        epochs = trainer.max_epochs or 0
        if self.stage2_epochs >= epochs:
            raise UserError(f"--model.stage2_epochs {self.stage2_epochs}: leaves none of {epochs} epochs to stage 1")

    def on_train_epoch_start(self) -> None:
        """Freezes the weights when stage 2 begins (or continues in a resumed run)."""
        second = self.current_epoch >= self.stage1_epochs
        self.net.requires_grad_(not second)
        self.q.requires_grad_(second)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the cross-entropy, or the loss of stage 2."""
        if self.current_epoch < self.stage1_epochs:
            return super().training_step(batch, batch_idx)
        images, labels = batch
        loss = self.speed_loss(images)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        return loss

    def speed_loss(self, images: Tensor) -> Tensor:
        """Returns the loss of stage 2, whose only variable is q."""
        self.net.eval()
        with torch.no_grad():
            self.set_q(torch.tensor(Q_ACCURATE))
            teacher = self.net(images).float()
        rates: list[Tensor] = []
        hooks = [layer.register_forward_hook(lambda _, __, output: rates.append(output)) for layer in self.layers]
        self.set_q(self.q)
        logits = self.net(images).float()
        for hook in hooks:
            hook.remove()
        # Layers keep the value without its graph, so that a copy of the model does not hold the graph of this step.
        self.set_q(self.q.detach())
        positive = logits.relu()
        rates.append(positive / positive.max().clamp_min(1e-5))
        omega = torch.stack([r.float().abs().sum() / (r.float().square().sum() + 1e-5) for r in rates])
        return (1 - F.cosine_similarity(teacher, logits).mean()) + self.beta * omega.mean()

    def on_train_epoch_end(self) -> None:
        """Writes the present q to the layers, so that the checkpoint contains it."""
        super().on_train_epoch_end()
        self.set_q(self.q.detach() if self.current_epoch >= self.stage1_epochs else torch.tensor(Q_ACCURATE))
        self.log("q", self.q.detach(), rank_zero_only=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns SGD; the weights' learning rate falls tenfold after half and after three quarters of stage 1."""
        weights: dict[str, object] = {"params": list(self.net.parameters())}
        q: dict[str, object] = {"params": [self.q], "lr": self.q_lr, "momentum": self.q_momentum, "weight_decay": 0.0}
        optimizer = torch.optim.SGD([weights, q], self.lr, self.momentum, weight_decay=self.weight_decay)
        drops = (self.stage1_epochs / 2, self.stage1_epochs * 3 / 4)
        schedule = [lambda epoch: 0.1 ** sum(epoch >= drop for drop in drops), lambda epoch: 1.0]
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)]
