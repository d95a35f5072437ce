"""The base of all methods: a network with its activations, and how it becomes an SNN."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytorch_lightning as pl
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation, ReLUActivation
from bench.snn.graph.check import MAX_POOLS
from bench.snn.graph.fold import fold_batch_norm
from bench.snn.graph.trace import ImageShape
from bench.snn.layerwise import mean_activations
from bench.snn.neurons import SpikingNeuron
from bench.snn.pooling import LateralInhibitionPool
from bench.snn.readout import DELAY_IMAGES, Readout
from bench.snn.replace import replace
from bench.snn.simulate import SpikingNetwork

Batch = tuple[Tensor, Tensor]


class ConversionModule(pl.LightningModule):
    """A trained network and its conversion.

    A method gives :meth:`neuron` (what stands for each activation in the SNN); where thresholds or weights depend on
    data or on T, it overrides :meth:`calibrate`. Methods that train derive from
    :class:`methods.training.TrainingModule`.

    Args:
        net: a network whose nonlinearities are :class:`bench.snn.activations.Activation`.

    Attributes:
        calibration_images: training images, without augmentation, that conversion looks at; 0 for none.
        image: shape of one image, where known.
        warmup: steps that come first in a two-phase method, on top of T.
        uncounted: those of them whose logits are left out of the read-out; ``None`` for all.
        extras: names of further classifiers whose accuracy the record holds beside the ANN's.
        pools_by_inhibition: the neurons' spikes never take back, and max-pooling becomes
            :class:`bench.snn.pooling.LateralInhibitionPool`; else it is refused.
        saturates: no neuron can send more than its threshold at each step, as one must that stands for ReLU6.
        pools_currents: max-pooling comes before the neurons (:func:`bench.snn.graph.pool_first.pool_first`) and stays.
        per_T: under these options the conversion is for one T, also if the registry does not say so of the method.
        random: the network draws numbers, so that its accuracy is a mean over several runs.
        of_trained: the conversion of a net that was trained elsewhere, for a method that trains; ``None`` if there is
            none.
        readout: how the converted network is read out and sent on.
    """

    calibration_images = 0
    image: ImageShape = None
    warmup = 0
    uncounted: int | None = None
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
        """The neuron that replaces an activation in a conversion for ``T`` steps."""
        raise NotImplementedError

    def calibrate(self, net: nn.Module, calibration: Sequence[Batch], T: int, image: ImageShape = None) -> None:
        """Changes, in place, a copy of the network (BN folded) before its activations are replaced.

        It may put neurons there itself.
        """

    def check_pooling(self, net: nn.Module) -> None:
        """Refuses max-pooling where nothing stands for it: the maximum of spike trains is not the train of the maximum.

        Raises:
            UserError: names the module.
        """
        for name, module in net.named_modules():
            if isinstance(module, MAX_POOLS) and not (self.pools_by_inhibition or self.pools_currents):
                raise UserError(
                    f"{name} is max-pooling, which {type(self).__name__} cannot convert; train with "
                    "--model.max_pool average, or convert a relu net by burst, ltb or dcgs"
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
                    "threshold in one step; take a method of one spike a step, such as opi"
                )

    def use(self, readout: Readout) -> None:
        """Takes options of the converted network; some ask for images, or for one conversion for each T."""
        self.readout = readout
        self.per_T, self.random = self.per_T or readout.permute, self.random or readout.permute
        if readout.delay == "auto" and not self.calibration_images:
            self.calibration_images = DELAY_IMAGES

    def folded(self, image: ImageShape = None) -> nn.Module:
        """A copy of the network for evaluation, BN folded."""
        net = copy.deepcopy(self.net).eval()
        fold_batch_norm(net, image)
        return net

    def spiking(self, net: nn.Module, T: int, image: ImageShape = None) -> SpikingNetwork:
        """Wraps a network of neurons; a conversion that is good for one T says so here."""
        return SpikingNetwork(net, self.warmup, self.uncounted, image=image)

    def extra_logits(self, name: str, images: Tensor, batch_idx: int) -> Tensor:
        """Logits of one of :attr:`extras` in the test, ``[B, classes]``."""
        raise NotImplementedError

    def convert(self, T: int, calibration: Sequence[Batch], image: ImageShape = None) -> SpikingNetwork:
        """Builds the SNN; the trained network stays as it is.

        Args:
            T: steps it will be read at; most methods do not need to know.
            calibration: batches of plain training images.
            image: shape of one image, where there are none to tell it and the network has to know.

        Raises:
            UserError: a threshold is not positive, or a layer cannot be converted; the message names the layer.
        """
        self.check_pooling(self.net)
        self.check_ceilings(self.net)
        image = calibration[0][0].shape[1:] if calibration else image or self.image
        net = self.folded(image)
        means = mean_activations(net, calibration) if self.readout.delay == "auto" else {}
        self.calibrate(net, calibration, T, image)
        replace(net, Activation, lambda name, activation: self.neuron(name, activation, T))
        # Not before the calibration has seen the net with them.
        if not self.pools_currents:
            for kind in MAX_POOLS:
                replace(net, kind, lambda _, pool: LateralInhibitionPool(pool))
        snn = self.spiking(net, T, image)
        self.readout.apply(snn, T, means)
        return snn

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of the ANN."""
        logits: Tensor = self.net(x)
        return logits

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits of the ANN; the conversion callback measures it and the SNN."""
        return self.forward(batch[0])
