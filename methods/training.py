"""The base class of methods that train: provides the papers' optimiser and replaces ReLU by the method's activation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from bench.errors import UserError
from bench.ranges import require_within
from bench.snn.activations import Activation
from bench.snn.calibration import Batch, evaluating
from bench.snn.compilation import compiled_for_training
from bench.snn.graph.canonical import drop_uncalled
from bench.snn.graph.check import check_convertible
from bench.snn.graph.trace import ImageShape
from bench.snn.replace import replace, replace_max_pool, split_norm_act
from datamodules.base import ImageDataModule
from methods.base import ConversionModule


class TrainingModule(ConversionModule):
    """Trains an ANN for conversion.

    A method implements ``neuron`` and calls :meth:`install` at the end of its ``__init__`` with the activation that
    replaces ReLU in training.

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        lr: learning rate of SGD, decayed to 0 by a cosine over all epochs, stepped per epoch.
        momentum: momentum of SGD.
        weight_decay: weight decay on all parameters, thresholds and BN included, unless the method says otherwise.
        label_smoothing: label smoothing of the cross-entropy.
        init: initial weights. ``default`` keeps the net's own (the papers' CIFAR nets start as in the QCFS authors'
            code). ``kaiming_normal`` draws every convolution from Kaiming's normal distribution by fan-out and sets all
            biases to 0; earlier versions of this suite did so in all of their own nets.
        max_pool: ``average`` replaces max-pooling by average pooling, as all methods except ``relu`` need; ``keep``
            leaves max-pooling.
        image: shape of one image, if known; the network's ``forward`` may depend on it.

    Attributes:
        start_images: number of training images without augmentation that :meth:`prepare` gets; fixed, so that it does
            not depend on the batch size.
        compilable: whether training steps may be compiled.

    Raises:
        UserError: the network contains a module that cannot be converted (the message names it), or an option is out
            of range.
    """

    start_images = 100
    compilable = True

    def __init__(
        self,
        net: nn.Module,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        label_smoothing: float = 0.0,
        init: Literal["default", "kaiming_normal"] = "default",
        max_pool: Literal["average", "keep"] = "average",
        image: ImageShape = None,
    ) -> None:
        require_within("[0, 1]", momentum=momentum, label_smoothing=label_smoothing)
        require_within("[0, inf)", lr=lr, weight_decay=weight_decay)
        super().__init__(net)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.label_smoothing, self.image = label_smoothing, image
        self._threshold_options: dict[str, float] = {}
        self._step_net: list[Callable[[Tensor], Tensor]] = [net]
        if init == "kaiming_normal":
            start_from_kaiming_normal(net)
        split_norm_act(net)
        with evaluating(net):  # a dropout that F.dropout(..., training=self.training) switches off is allowed
            check_convertible(net, image)
        drop_uncalled(net, image)
        if max_pool == "average":
            replace_max_pool(net)
        self.check_pooling(net)

    def install(self, activation: Callable[[str], Activation]) -> None:
        """Replaces the network's ReLUs by activations.

        Args:
            activation: returns the activation for a layer name.
        """
        replace(self.net, nn.ReLU, lambda name, _: activation(name))

    def check_beginning(self, given: bool) -> None:
        """Refuses options that contradict what the training begins from, before anything is written.

        Args:
            given: from a trained net, not from random weights.

        Raises:
            UserError: names the option to change.
        """

    def prepare(self, calibration: Iterable[Batch]) -> None:
        """Sets initial values that depend on data; called once before training from scratch."""

    def start_from(self, source: nn.Module, calibration: Iterable[Batch]) -> None:
        """Starts from a trained net; called once instead of :meth:`prepare` if one is given."""
        raise NotImplementedError

    def check_training(self, trainer: pl.Trainer, datamodule: ImageDataModule | None) -> None:
        """Refuses a training that the method cannot do, before an earlier run in the same folder is replaced.

        Args:
            trainer: trains it.
            datamodule: ``None`` if the trainer has loaders of its own.

        Raises:
            UserError: names the option to change.
        """

    def on_fit_start(self) -> None:
        """Checks again, for a Trainer of one's own."""
        # Lightning declares the data module nowhere.
        self.check_training(self.trainer, getattr(self.trainer, "datamodule"))  # noqa: B009

    def compile_step(self) -> None:
        """Compiles the network for training steps; evaluation stays eager and exact."""
        # In a list, or Lightning would register the compiled twin and save every weight twice.
        self._step_net = [compiled_for_training(self.net)]

    def training_logits(self, images: Tensor) -> Tensor:
        """Returns the logits that are trained, ``[B, classes]``."""
        return self._step_net[0](images)

    def validation_logits(self, images: Tensor) -> Tensor:
        """Returns the logits whose accuracy on held-out images is logged, ``[B, classes]``."""
        return self.forward(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the cross-entropy on one batch."""
        images, labels = batch
        logits = self.training_logits(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        self.log(
            "train/acc", accuracy, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(labels)
        )
        return loss

    def on_train_epoch_end(self) -> None:
        """Stops training if a trained threshold is no longer positive."""
        self.require_positive_thresholds()

    def require_positive_thresholds(self) -> None:
        """Refuses a net that cannot be converted because a trained threshold is not positive.

        Raises:
            UserError: names the layer.
        """
        for name, module in self.net.named_modules():
            threshold = getattr(module, "threshold", None) if isinstance(module, Activation) else None
            if threshold is not None and not bool((threshold > 0).all()):
                begins = getattr(self, "lambda_init", None) and not getattr(self, "lambda_percentile", None)
                higher = " or a higher --model.lambda_init" if begins else ""
                raise UserError(
                    f"lambda of {name} is {threshold.min().item():.4g} after epoch {self.current_epoch + 1}, and a "
                    f"threshold must be positive; start again with a lower --model.lr{higher}, and --overwrite"
                )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the accuracy on the held-out training images."""
        images, labels = batch
        accuracy = (self.validation_logits(images).argmax(1) == labels).float().mean()
        self.log("val/acc", accuracy, prog_bar=True, sync_dist=True, batch_size=len(labels))

    def threshold_options(self, **options: float | None) -> None:
        """Sets separate SGD settings for the activations' parameters.

        Args:
            **options: ``lr`` or ``weight_decay``; ``None`` keeps the value of all other parameters.
        """
        self._threshold_options |= {name: value for name, value in options.items() if value is not None}

    def parameter_groups(self) -> list[dict[str, object]]:
        """Returns the parameter groups of SGD: one, or two if thresholds have separate settings."""
        if not self._threshold_options:
            return [{"params": list(self.parameters())}]
        activations = [module for module in self.net.modules() if isinstance(module, Activation)]
        thresholds = {id(p): p for module in activations for p in module.parameters()}
        others = [p for p in self.parameters() if id(p) not in thresholds]
        return [{"params": others}, {"params": list(thresholds.values()), **self._threshold_options}]

    def optimizer(self) -> torch.optim.Optimizer:
        """Returns SGD."""
        return torch.optim.SGD(
            self.parameter_groups(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns :meth:`optimizer` with a cosine to 0 over all epochs."""
        optimizer = self.optimizer()
        epochs = self.trainer.max_epochs
        if not epochs or epochs < 1:
            raise UserError("--trainer.max_epochs: must be at least 1")
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)]


def start_from_kaiming_normal(net: nn.Module) -> None:
    """Draws convolutions from Kaiming's normal distribution by fan-out, and sets all biases to 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
