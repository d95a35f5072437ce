"""The base class of all methods: holds a network with its activations and converts it to an SNN."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence

import pytorch_lightning as pl
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation, ReLUActivation
from bench.snn.calibration import Batch
from bench.snn.graph.check import MAX_POOLS
from bench.snn.graph.fold import fold_batch_norm
from bench.snn.graph.trace import ImageShape
from bench.snn.layerwise import mean_activations
from bench.snn.neurons import SpikingNeuron
from bench.snn.pooling import LateralInhibitionPool
from bench.snn.readout import DELAY_IMAGES, Readout
from bench.snn.replace import replace
from bench.snn.simulate import SpikingNetwork


def refuse_without_effect(method: type, because: str, **options: object) -> None:
    """Refuses options that would change nothing, so that no record names them.

    Args:
        method: the class whose ``__init__`` has these options.
        because: what makes them useless, such as ``--model.neuron if``.
        **options: their values.

    Raises:
        UserError: names the first option that is not at its default.
    """
    defaults = inspect.signature(method).parameters
    for name, value in options.items():
        if value != defaults[name].default:
            raise UserError(f"--model.{name} {value}: has no effect with {because}; leave it out")


class ConversionModule(pl.LightningModule):
    """A trained network and its conversion.

    A method implements :meth:`neuron`, which returns the spiking neuron for an activation. If its thresholds or weights
    depend on data or on T, it also overrides :meth:`calibrate`. Methods that train derive from
    :class:`methods.training.TrainingModule`.

    Args:
        net: a network whose nonlinearities are :class:`bench.snn.activations.Activation`.

    Attributes:
        calibration_images: number of training images, without augmentation, that the conversion uses; 0 for none.
        image: shape of one image, if known.
        warmup: steps of the first phase of a two-phase method, in addition to T.
        uncounted: how many of the warm-up steps are run before the others and left out of the read-out: all
            (``None``), or 0 if they are steps that the first layer looks ahead (COS).
        counts_first: each layer waits for its whole input (:class:`methods.counting.CountFirst`).
        differential: spikes stand for changes of a mean.
        extras: names of further classifiers whose accuracy is recorded beside the ANN's.
        pools_by_inhibition: the neurons never send negative spikes, so max-pooling becomes
            :class:`bench.snn.pooling.LateralInhibitionPool`. Otherwise max-pooling is refused.
        saturates: no neuron sends more than its threshold in one step. A neuron that replaces ReLU6 needs this.
        pools_currents: max-pooling is moved before the neurons (:func:`bench.snn.graph.pool_first.pool_first`) and
            kept.
        per_T: the conversion holds for one T only; with some read-out options that of any method does.
        random: the network draws random numbers, so its accuracy is a mean over several runs.
        of_trained: for a method that trains, the class that converts a net trained elsewhere; ``None`` if there is no
            such class.
        readout: how the logits are read out, and in which order spikes are sent.
    """

    calibration_images = 0
    image: ImageShape = None
    warmup = 0
    uncounted: int | None = None
    counts_first = False
    differential = False
    pools_by_inhibition = False
    saturates = True
    pools_currents = False
    per_T = False
    random = False
    of_trained: type[ConversionModule] | None = None
    readout = Readout()
    extras: tuple[str, ...] = ()

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def neuron(self, name: str, activation: Activation, T: int) -> SpikingNeuron:
        """Returns the neuron that replaces an activation in a conversion for ``T`` steps."""
        raise NotImplementedError

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Changes a copy of the network (BN folded) in place, before its activations are replaced.

        A method may also insert neurons itself here.
        """

    def check_steps(self, T: int) -> None:
        """Refuses a number of steps that it cannot be converted for.

        Raises:
            UserError: gives numbers that are possible.
        """

    def check_pooling(self, net: nn.Module) -> None:
        """Refuses max-pooling if the method cannot convert it: a maximum over spikes does not have the maximal rate.

        Raises:
            UserError: names the module.
        """
        for name, module in net.named_modules():
            if isinstance(module, MAX_POOLS) and not (self.pools_by_inhibition or self.pools_currents):
                raise UserError(
                    f"{name} is max-pooling, which {type(self).__name__} cannot convert; convert a ReLU net with "
                    "burst, dcgs, hmt or ltb, or train with average pooling (--model.max_pool average)"
                )

    def check_ceilings(self, net: nn.Module) -> None:
        """Refuses a clipped ReLU if the neurons can send more than their threshold.

        Raises:
            UserError: names the module.
        """
        for name, module in net.named_modules():
            if isinstance(module, ReLUActivation) and module.ceiling < math.inf and not self.saturates:
                raise UserError(
                    f"{name} clips at {module.ceiling:g}, and a neuron of {type(self).__name__} may send more than its "
                    "threshold in one step; use a method that sends one spike a step, such as opi"
                )

    def use(self, readout: Readout) -> None:
        """Sets the read-out options of the converted network.

        Some of them need calibration images, or one conversion for each T.

        Raises:
            UserError: the method's spikes cannot be permuted, its read-out cannot be delayed, or it draws nothing.
        """
        if readout.delay and (readout.permute or self.counts_first):
            raise UserError(
                f"--snn.delay {readout.delay}: each layer waits for its whole input, so no early steps can be left out"
            )
        if readout.permute and (self.counts_first or self.warmup):
            raise UserError("--snn.permute true: not possible if layers look ahead or the first steps do not count")
        if readout.permute and self.differential:
            raise UserError("--snn.permute true: a spike of this method stands for a change, so the order matters")
        if readout.draws != Readout.draws and not (readout.permute or self.random):
            raise UserError(f"--snn.draws {readout.draws}: this network draws no random numbers")
        self.readout = readout
        self.per_T, self.random = self.per_T or readout.permute, self.random or readout.permute
        if readout.delay == "auto" and not self.calibration_images:
            self.calibration_images = DELAY_IMAGES

    def folded(self, image: ImageShape = None) -> nn.Module:
        """Returns a copy of the network in evaluation mode, with BN folded."""
        net = copy.deepcopy(self.net).eval()
        fold_batch_norm(net, image)
        return net

    def spiking(self, net: nn.Module, T: int, image: ImageShape = None) -> SpikingNetwork:
        """Wraps a network of neurons."""
        return SpikingNetwork(net, self.warmup, self.uncounted, T if self.per_T else None, image=image)

    def extra_logits(self, name: str, images: Tensor, batch_idx: int) -> Tensor:
        """Returns the test logits of one of :attr:`extras`, ``[B, classes]``."""
        raise NotImplementedError

    def convert(self, T: int, calibration: Sequence[Batch], image: ImageShape = None) -> SpikingNetwork:
        """Builds the SNN. The trained network is not changed.

        Args:
            T: steps at which the SNN will be read; most methods ignore it.
            calibration: batches of training images without augmentation.
            image: shape of one image; needed only if there are no calibration images and the network depends on it.

        Raises:
            UserError: a threshold is not positive, or a layer cannot be converted; the message names the layer.
        """
        self.check_steps(T)
        self.check_pooling(self.net)
        self.check_ceilings(self.net)
        image = calibration[0][0].shape[1:] if calibration else image or self.image
        net = self.folded(image)
        means = mean_activations(net, calibration) if self.readout.delay == "auto" else {}
        self.calibrate(net, calibration, T, image)
        replace(net, Activation, lambda name, activation: self.neuron(name, activation, T))
        # After calibration, which must see the net with its max-pooling.
        if not self.pools_currents:
            for kind in MAX_POOLS:
                replace(net, kind, lambda _, pool: LateralInhibitionPool(pool))
        snn = self.spiking(net, T, image)
        self.readout.apply(snn, T, means)
        return snn

    def forward(self, x: Tensor) -> Tensor:
        """Returns the ANN's logits, ``[B, classes]``."""
        logits: Tensor = self.net(x)
        return logits

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the ANN's logits. The conversion callback measures ANN and SNN."""
        return self.forward(batch[0])
