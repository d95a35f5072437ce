"""The base of methods that train: the papers' optimiser, and their own activation in ReLU's place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.compilation import compiled_for_training
from bench.snn.graph.canonical import drop_uncalled
from bench.snn.graph.check import check_convertible
from bench.snn.graph.trace import ImageShape
from bench.snn.replace import replace, replace_max_pool, split_norm_act
from methods.base import Batch, ConversionModule


class TrainingModule(ConversionModule):
    """Trains an ANN that is made to be converted.

    Beside the base's ``neuron``, a method calls :meth:`install` at the end of its ``__init__`` with what stands for
    ReLU in training.

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        lr: learning rate of SGD, decayed to 0 by a cosine over all epochs, stepped per epoch.
        momentum: of SGD.
        weight_decay: on all parameters, thresholds and BN included.
        label_smoothing: of the cross-entropy.
        init: start of the weights. ``default`` is the net's own (the papers' CIFAR nets start as the QCFS authors'
            code does); ``kaiming_normal`` draws every convolution from Kaiming's normal distribution by fan-out and
            sets all biases to 0, as this suite once did in all of its own nets.
        max_pool: ``average`` puts average pooling in the place of max-pooling, as all methods but ``relu`` need;
            ``keep`` leaves it.
        image: shape of one image, where known; a ``forward`` may ask for it.

    Attributes:
        start_images: plain training images that :meth:`prepare` sees; a fixed number, so that no batch size decides.
        compilable: whether training steps may be compiled.

    Raises:
        UserError: the network has something that cannot be converted, which the message names, or an option is out of
            its range.
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
        for name, value, low, high in (
            ("lr", lr, 0.0, math.inf),
            ("momentum", momentum, 0.0, 1.0),
            ("weight_decay", weight_decay, 0.0, math.inf),
            ("label_smoothing", label_smoothing, 0.0, 1.0),
        ):
            if not low <= value <= high or not math.isfinite(value):
                raise UserError(f"--model.{name} {value}: must be a finite number from {low:g} to {high:g}")
        super().__init__(net)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.label_smoothing, self.image = label_smoothing, image
        self._threshold_options: dict[str, float] = {}
        self._step_net: list[Callable[[Tensor], Tensor]] = [net]
        if init == "kaiming_normal":
            start_from_kaiming_normal(net)
        split_norm_act(net)
        check_convertible(net, image)
        drop_uncalled(net, image)
        if max_pool == "average":
            replace_max_pool(net)
        self.check_pooling(net)

    def install(self, activation: Callable[[str], Activation]) -> None:
        """Puts activations in the place of the network's ReLUs.

        Args:
            activation: makes that of the layer whose name it is given.
        """
        replace(self.net, nn.ReLU, lambda name, _: activation(name))

    def prepare(self, calibration: Iterable[Batch]) -> None:
        """Called once before training from scratch, for starts that depend on data."""

    def start_from(self, source: nn.Module, calibration: Iterable[Batch]) -> None:
        """Called once in the place of :meth:`prepare` where a training begins from a trained net."""
        raise NotImplementedError

    def compile_step(self) -> None:
        """Compiles the network for training steps; evaluation stays eager and exact."""
        # In a list, or Lightning would register the compiled twin and save every weight twice.
        self._step_net = [compiled_for_training(self.net)]

    def training_logits(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` that are trained."""
        return self._step_net[0](images)

    def validation_logits(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]`` whose accuracy on held-out images is logged."""
        return self.forward(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy on one batch."""
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
        """Stops where a trained threshold has left the positive numbers: such a net cannot be converted.

        Raises:
            UserError: names the layer.
        """
        for name, module in self.net.named_modules():
            threshold = getattr(module, "threshold", None) if isinstance(module, Activation) else None
            if threshold is not None and not bool((threshold > 0).all()):
                higher = " or a higher --model.lambda_init" if hasattr(self, "lambda_init") else ""
                raise UserError(
                    f"lambda of {name} is {threshold.min().item():.4g} after epoch {self.current_epoch}, and a "
                    f"threshold must be positive; begin anew with a lower --model.lr{higher}, and --overwrite"
                )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy on the held-out training images."""
        images, labels = batch
        accuracy = (self.validation_logits(images).argmax(1) == labels).float().mean()
        self.log("val/acc", accuracy, prog_bar=True, sync_dist=True, batch_size=len(labels))

    def threshold_options(self, **options: float | None) -> None:
        """Gives the activations' parameters SGD settings of their own.

        Args:
            **options: ``lr`` or ``weight_decay``; ``None`` for that of everything else.

        Raises:
            UserError: one is negative or not finite.
        """
        for name, value in options.items():
            if value is None:
                continue
            if not 0 <= value < math.inf:
                raise UserError(f"--model: {name} {value} of thresholds must be a finite number of at least 0")
            self._threshold_options[name] = value

    def parameter_groups(self) -> list[dict[str, object]]:
        """What SGD trains: one group, or two where thresholds have settings of their own."""
        if not self._threshold_options:
            return [{"params": list(self.parameters())}]
        activations = [module for module in self.net.modules() if isinstance(module, Activation)]
        thresholds = {id(p): p for module in activations for p in module.parameters()}
        others = [p for p in self.parameters() if id(p) not in thresholds]
        return [{"params": others}, {"params": list(thresholds.values()), **self._threshold_options}]

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(
            self.parameter_groups(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """:meth:`optimizer` with a cosine to 0 over all epochs."""
        optimizer = self.optimizer()
        epochs = self.trainer.max_epochs
        if not epochs or epochs < 1:
            raise UserError("--trainer.max_epochs: must be at least 1, the cosine schedule ends there")
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)]


def start_from_kaiming_normal(net: nn.Module) -> None:
    """Draws convolutions from Kaiming's normal distribution by fan-out; sets biases, linear layers' too, to 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
