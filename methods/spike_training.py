"""The base class of methods that train through spikes: every training step unrolls the network over T steps.

Time is folded into the batch as in evaluation (``bench.snn.neurons``). In training an activation runs the neuron of the
conversion, so it sends exactly what the SNN sends; the method provides the gradient. Conversion therefore only has to
fold batch normalisation. In training the statistics of batch normalisation are those of the input currents over images
and steps together.

Outside of an unrolled pass an activation returns the rate that its neuron tends to, ``clip(z, 0, theta)``. This is the
ANN whose accuracy the record has beside the SNN's.

Training may start from a trained net (``--ckpt``) and then tunes its conversion. Weights and statistics are taken from
that net. Each theta is the trained one or, for a ReLU net, a percentile of the layer's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.ranges import require_within
from bench.snn.activations import Activation, clip
from bench.snn.calibration import Batch, activation_percentiles
from bench.snn.graph.check import MAX_POOLS, mixes_constant_input
from bench.snn.neurons import Clock, IFNode, SpikingNeuron, Timed
from datamodules.base import ImageDataModule
from methods.training import TrainingModule

Emit = Callable[[Tensor], Tensor]


class _RateGradient(torch.autograd.Function):
    """Sends spikes in the forward pass and uses the gradient of the rate in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_TBX: Tensor, ceiling: Tensor, emit: Emit) -> Tensor:
        ctx.save_for_backward(x_TBX.mean(0), ceiling)
        return emit(x_TBX)

    @staticmethod
    def backward(ctx: Any, grad_TBX: Tensor) -> tuple[Tensor, Tensor | None, None]:
        mean_BX, ceiling = ctx.saved_tensors
        # The rate is the mean of the output, so its gradient is the sum over the steps.
        grad_BX = grad_TBX.sum(0)
        above = mean_BX > ceiling
        inside = (mean_BX >= 0) & ~above
        grad_x = torch.where(inside, grad_BX / len(grad_TBX), 0.0).expand_as(grad_TBX)
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        return grad_x, torch.where(above, grad_BX, 0.0).sum_to_size(ceiling.shape), None


def rate_gradient(x_TBX: Tensor, ceiling: Tensor, emit: Emit) -> Tensor:
    """Returns a neuron's output with the gradient of its rate, ``r = clip(mean over T of x, 0, ceiling)``.

    The gradient ``d`` for ``r`` is the sum over the steps of the gradient for the output. If the mean is in
    ``[0, ceiling]``, ``dx_t = d / T`` at each step; if it is above, ``dceiling = d``; otherwise both are 0.

    Args:
        x_TBX: input currents ``[T, B, ...]``.
        ceiling: upper limit of the rate, broadcastable to one image's input; infinite for ReLU.
        emit: returns the output of the neuron for input currents.

    Returns:
        The output, ``[T, B, ...]``.
    """
    output: Tensor = _RateGradient.apply(x_TBX, ceiling, emit)
    return output


class SpikingActivation(Activation, Timed):
    """A spiking neuron while its network is unrolled; otherwise the rate that one with soft reset tends to.

    Args:
        threshold: theta, or its initial value.
        v_init: initial membrane potential as a fraction of theta.
        trainable: whether theta is a parameter.

    Attributes:
        clock: clock of the unrolled pass; its ``T`` is 0 outside of one.
    """

    threshold: Tensor

    def __init__(self, threshold: float | Tensor, v_init: float, trainable: bool = False) -> None:
        super().__init__()
        self.v_init, self.clock = v_init, Clock(T=0)
        theta = torch.as_tensor(threshold, dtype=torch.float32).clone()
        if trainable:
            self.threshold = nn.Parameter(theta)
        else:
            self.register_buffer("threshold", theta)

    def neuron(self) -> SpikingNeuron:
        """Returns the neuron of this activation, in training and in the converted SNN."""
        return IFNode(self.threshold, self.v_init)

    def emit(self, x_TBX: Tensor) -> Tensor:
        """Returns the neuron's output ``[T, B, ...]``, without a gradient."""
        with torch.no_grad():
            return self.neuron().run(x_TBX)

    def spikes(self, x_TBX: Tensor) -> Tensor:
        """Returns the output of :meth:`emit` with the method's gradient."""
        raise NotImplementedError

    def rate(self, z: Tensor) -> Tensor:
        """Returns the mean output for a constant current in the limit of large T."""
        return clip(z, self.threshold)

    def forward(self, z: Tensor) -> Tensor:
        """Maps ``[B, ...]`` to rates ``[B, ...]``, or in an unrolled pass to outputs ``[T*B, ...]``.

        In an unrolled pass the input is ``[T*B, ...]``, or ``[B, ...]`` for a constant current.
        """
        if not self.clock.T:
            return self.rate(z)
        x_TBX = self.clock.unfold(z).to(torch.promote_types(z.dtype, self.threshold.dtype))
        return self.spikes(x_TBX).flatten(0, 1)


class SpikeTrainingModule(TrainingModule):
    """Trains an SNN through its spikes.

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        T: steps in training; the SNN may be evaluated at any number of steps.
        v_init: initial membrane potential as a fraction of theta.
        percentile: percentile of the layer's activations at which each theta starts if ``--ckpt`` gives a ReLU net.
        **kwargs: optimiser settings of :class:`methods.training.TrainingModule`.
    """

    # Training runs the neurons used in evaluation; torch.compile would only break the graph at each of them.
    compilable = False

    def __init__(
        self, net: nn.Module, T: int = 4, v_init: float = 0.5, percentile: float = 99.9, **kwargs: Any
    ) -> None:
        require_within("[1, 1024]", T=T)
        require_within("[0, 1)", v_init=v_init)
        require_within("(0, 100]", percentile=percentile)
        super().__init__(net, **kwargs)
        self.T, self.v_init, self.percentile = T, v_init, percentile
        self.clock = Clock(T=0)

    def install(self, activation: Callable[[str], Activation]) -> None:
        """Replaces the network's ReLUs by spiking activations that share one clock."""
        super().install(activation)
        for layer in self.layers.values():
            layer.clock = self.clock
        self.repeat_input = mixes_constant_input(self.net, self.image)

    @property
    def layers(self) -> dict[str, SpikingActivation]:
        """The spiking activations, by name."""
        return {name: module for name, module in self.net.named_modules() if isinstance(module, SpikingActivation)}

    def unrolled(self, images: Tensor) -> Tensor:
        """Runs T steps with the method's gradient.

        Args:
            images: ``[B, C, H, W]``, shown unchanged at every step.

        Returns:
            Logits of each step, ``[T, B, classes]``.
        """
        self.clock.T, self.clock.batch = self.T, len(images)
        try:
            x = images.expand(self.T, *images.shape).flatten(0, 1) if self.repeat_input else images
            logits: Tensor = self.net(x)
        finally:
            self.clock.T = 0
        return logits.view(self.T, len(images), *logits.shape[1:])

    def training_logits(self, images: Tensor) -> Tensor:
        """Returns the SNN's logits, averaged over T."""
        return self.unrolled(images).mean(0)

    def validation_logits(self, images: Tensor) -> Tensor:
        """Returns the SNN's logits at the T of training."""
        return self.unrolled(images).mean(0)

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Returns the neuron that was trained."""
        assert isinstance(activation, SpikingActivation)
        return activation.neuron()

    def start_from(self, source: nn.Module, calibration: Iterable[Batch]) -> None:
        """Starts from a trained net, whose conversion this training tunes.

        Args:
            source: the same network with other activations.
            calibration: training images without augmentation, for the thresholds of a ReLU net.

        Raises:
            UserError: ``source`` is a different network.
        """
        theirs = {name: module for name, module in source.named_modules() if isinstance(module, Activation)}
        pools = [name for name, module in source.named_modules() if isinstance(module, MAX_POOLS)]
        if set(theirs) != set(self.layers) or pools:
            raise UserError("--ckpt: the net has different activations, or max-pooling; train it with average pooling")
        weights = {k: v for k, v in source.state_dict().items() if k.rpartition(".")[0] not in theirs}
        self.net.load_state_dict(weights, strict=False)
        given: dict[str, Tensor | None] = {name: getattr(module, "threshold", None) for name, module in theirs.items()}
        found = {name: theta.detach() for name, theta in given.items() if theta is not None}
        if len(found) < len(theirs):
            found |= activation_percentiles(source, list(calibration), self.percentile)
        self.start_at(found)

    @torch.no_grad()
    def start_at(self, thresholds: dict[str, Tensor]) -> None:
        """Sets the initial threshold of each layer, by layer name.

        Raises:
            UserError: a layer has one for each channel.
        """
        for name, layer in self.layers.items():
            theta = thresholds[name]
            if theta.numel() != 1 and layer.threshold.numel() == 1:
                trained = f"{type(self).__name__} trains one for each layer"
                raise UserError(f"--ckpt: {name} has {theta.numel()} thresholds, but {trained}")
            layer.threshold.copy_(theta)


class FromTrainedNet(SpikeTrainingModule):
    """A training through spikes that needs a trained ReLU net: one that is given, or one from the first epochs.

    Args:
        net: a network with ``nn.ReLU`` modules; changed in place.
        ann_epochs: epochs at the start in which the ReLU net is trained; 0 if ``--ckpt`` gives one.
        **kwargs: options of :class:`SpikeTrainingModule`.

    Attributes:
        needs: what the method does with the net, for messages.
        rest: what the remaining epochs train, for messages.
    """

    needs: ClassVar[str]
    rest: ClassVar[str]

    def __init__(self, net: nn.Module, ann_epochs: int = 0, **kwargs: Any) -> None:
        require_within("[0, inf)", ann_epochs=ann_epochs)
        super().__init__(net, **kwargs)
        self.ann_epochs = ann_epochs

    def check_beginning(self, given: bool) -> None:
        """Refuses random weights without epochs that train a net first, and such epochs if a net is given.

        Args:
            given: a net is given.

        Raises:
            UserError: both or neither are given.
        """
        if given and self.ann_epochs:
            raise UserError(f"--model.ann_epochs {self.ann_epochs}: the net that --ckpt gives is trained; give 0")
        if not given and not self.ann_epochs:
            raise UserError(
                f"{self.needs}: give one with --ckpt, or train it in the first epochs of this run with "
                "--model.ann_epochs N"
            )

    def check_training(self, trainer: pl.Trainer, datamodule: ImageDataModule | None) -> None:
        """Refuses a run whose epochs all train the ReLU net.

        Raises:
            UserError: no epoch is left for the spikes.
        """
        epochs = trainer.max_epochs or 0
        if self.ann_epochs >= epochs:
            raise UserError(f"--model.ann_epochs {self.ann_epochs}: leaves none of {epochs} epochs to {self.rest}")
