"""NQ: training with the residual error of conversion as noise.

Huang, Ding, Pan, Li, Fang, Yu, Liu: Converting High-Performance and Low-Latency SNNs through Explicit Modelling of
Residual Error in ANNs, 2024, https://arxiv.org/abs/2404.17456

A converted QCFS net differs from its ANN because spikes arrive unevenly. This error grows from layer to layer. The ANN
can learn to tolerate it: each quantised activation is trained with noise of the size of that error,

    x = clip(z / lambda, 0, 1),   q = lambda floor(x L + 1/2) / L,   a = q - sigma_l eps,   eps ~ N(0, 1),

with one sigma for each layer. The noise is drawn for each element and training step and added after quantisation. It is
not clipped afterwards, and it is a constant to the gradient. sigma is measured, not chosen. It starts at 0. After each
epoch the SNN of T_val steps and the noise-free ANN run end to end on a held-out tenth of the training images, with the
training augmentation, and

    gap_l = q_l - theta_l count_l / T_val,     sigma_l = sqrt( mean over batches of Var(gap_l) )

is used in the next epoch. Conversion and inference are those of QCFS, without noise.

From the paper or its authors' code: the above; T_val = 4, L = 4, learning rate 0.05, weight decay 5e-4, 400 epochs,
batch 256 (CIFAR-10), lambda = 8 at the start, 45,000 / 5,000 images.
The paper's "ANN" column was evaluated with the noise on. In a record, ``ann`` is without noise and ``ann_noisy`` with
it.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.ranges import require_within
from bench.snn.activations import QCFSActivation, Region, clip_floor_shift
from bench.snn.calibration import Batch
from bench.snn.layerwise import layer_gaps
from bench.snn.precision import full_precision
from bench.snn.processes import share
from datamodules.base import ImageDataModule
from methods.qcfs import QCFS


def standard_normal(like: Tensor) -> Tensor:
    """Draws noise with the shape and memory layout of a tensor ``[B, ...]``.

    On a CPU torch draws normal numbers ten times as fast into contiguous memory as into channels-last memory.
    """
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        return torch.randn_like(like.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return torch.randn_like(like)


class NoisyQCFSActivation(QCFSActivation):
    """QCFS activation. In training it adds Gaussian noise with the layer's measured standard deviation.

    Attributes:
        sigma: standard deviation in units of the activation; 0 until it is measured.
    """

    sigma: Tensor

    def __init__(self, L: int, threshold: float, region: Region) -> None:
        super().__init__(L, threshold, region)
        self.register_buffer("sigma", torch.zeros(()))
        self.noisy_in_evaluation = False

    def forward(self, z: Tensor) -> Tensor:
        """Quantises and, in training or on request, adds noise, which is a constant to the gradient."""
        q = clip_floor_shift(z, self.threshold, self.L, self.region)
        noisy = self.training or self.noisy_in_evaluation
        return q - self.sigma.to(q.dtype) * standard_normal(q) if noisy else q


class NQ(QCFS):
    """QCFS trained with its own conversion error as noise (https://arxiv.org/abs/2404.17456).

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        T_val: steps of the SNN with which sigma is measured.
        lr: learning rate of SGD, decayed to 0 by a cosine over all epochs, stepped per epoch.
        **kwargs: options of :class:`methods.qcfs.QCFS`.
    """

    extras = ("ann_noisy",)

    def __init__(self, net: nn.Module, T_val: int = 4, lr: float = 0.05, **kwargs: Any) -> None:
        require_within("[1, inf)", T_val=T_val)
        super().__init__(net, lr=lr, **kwargs)
        self.T_val = T_val
        self._variances: dict[str, list[Tensor]] = {}

    def activation(self, name: str) -> NoisyQCFSActivation:
        """Returns a QCFS activation with noise."""
        return NoisyQCFSActivation(self.L, self.lambda_init, self.region)

    def extra_logits(self, name: str, images: Tensor, batch_idx: int) -> Tensor:
        """Returns the ANN's logits with the noise on, as in the paper's ANN column."""
        layers = [module for module in self.net.modules() if isinstance(module, NoisyQCFSActivation)]
        for layer in layers:
            layer.noisy_in_evaluation = True
        # The draw depends only on the batch's number, so that an evaluation can be repeated.
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            torch.manual_seed(batch_idx)
            logits = self.forward(images)
        for layer in layers:
            layer.noisy_in_evaluation = False
        return logits

    def check_training(self, trainer: pl.Trainer, datamodule: ImageDataModule | None) -> None:
        """Refuses a run without held-out images.

        Raises:
            UserError: no images are held out, or the trainer has no data module.
        """
        if datamodule is None:
            raise UserError("nq measures its noise on held-out training images; give Trainer.fit a data module of this "
                            "suite, with val_split=N")  # fmt: skip
        if not len(datamodule.split("val")):
            raise UserError("nq measures its noise on held-out training images; give --data.val_split N (a tenth)")

    def on_fit_start(self) -> None:
        """Prints a note if held-out images are not augmented as in the paper."""
        super().on_fit_start()
        datamodule: ImageDataModule = getattr(self.trainer, "datamodule")  # noqa: B009
        if not datamodule.val_augment and self.trainer.is_global_zero:
            print(
                "note: nq measures its noise on plain held-out images here; the paper uses augmented ones: "
                "--data.val_augment true"
            )

    def on_validation_epoch_start(self) -> None:
        """Converts the current net."""
        self.require_positive_thresholds()
        self._variances = {}
        with torch.inference_mode(False), torch.no_grad():
            # Each process has seen different batches, but all must measure the error of the same net.
            share(self.net.buffers())
            # In a list, or Lightning would register it as part of the model.
            self._snn = [self.convert(self.T_val, [])]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the variance of each layer's gap on one batch."""
        super().validation_step(batch, batch_idx)
        # Half precision and TF32 would change spikes, and sigma must be the error of the SNN that is evaluated.
        with full_precision():
            images = batch[0].to(next(self.net.parameters()).dtype)
            gaps = layer_gaps(self.net, self._snn[0], images, self.T_val)
        for name, gap in gaps.items():
            self._variances.setdefault(name, []).append(gap.var())

    def on_validation_epoch_end(self) -> None:
        """Sets each sigma for the next epoch and logs their mean."""
        sigmas = []
        for name, variances in self._variances.items():
            mean = torch.stack(variances).mean()
            if self.trainer.world_size > 1:
                gathered = self.all_gather(mean)
                assert isinstance(gathered, Tensor)
                mean = gathered.mean()
            layer = self.net.get_submodule(name)
            assert isinstance(layer, NoisyQCFSActivation)
            layer.sigma.copy_(mean.sqrt())
            sigmas.append(mean.sqrt())
        self.log("val/sigma", torch.stack(sigmas).mean(), rank_zero_only=True)
