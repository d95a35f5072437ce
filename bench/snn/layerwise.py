"""Calibration layer by layer, on the spikes that each layer receives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.snn.activations import Activation
from bench.snn.calibration import Batch, Granularity, observe, units, watching
from bench.snn.graph.trace import ImageShape, called, segment, trace
from bench.snn.neurons import Clock, SpikingNeuron
from bench.snn.simulate import SpikingNetwork

# Images times steps that run through one layer at once.
_IMAGE_STEPS = 256
# Values of a layer that are processed at once: a part that fits in the cache.
_IN_CACHE = 2**15


def execution_order(net: nn.Module, image: ImageShape = None) -> list[str]:
    """Returns the names of activations and neurons in the order of a forward pass."""
    nodes = trace(net, image).nodes
    return [str(node.target) for node in nodes if isinstance(called(net, node), (Activation, SpikingNeuron))]


class SpikeTrains:
    """Calibration images on their way through a network, layer by layer.

    A layer runs on the spikes of the layers before it. These are kept, one bit each, while a later layer needs them.

    Args:
        net: the network; an activation must be a neuron when its layer's turn comes.
        batches: calibration images.
        T: steps.

    Attributes:
        segments: by layer, what computes its input, with the network's own parameters, and the layers it takes it from.
    """

    def __init__(self, net: nn.Module, batches: Sequence[Batch], T: int) -> None:
        self.net, self.T, self.clock = net, T, Clock()
        self.images = torch.cat([images for images, _ in batches])
        self.clock.T = T
        image = self.images.shape[1:]
        self.segments = {name: segment(net, name, image) for name in execution_order(net, image)}
        self.bits: dict[str, npt.NDArray[np.uint8]] = {}

    @torch.no_grad()
    def run(self, name: str) -> Iterator[Tensor]:
        """Runs the images through one layer.

        Args:
            name: a neuron; the spikes of all neurons before it must have been kept (:meth:`keep`).

        Yields:
            Its output ``[T, b, ...]``, for a few images at a time, in order.
        """
        part, sources = self.segments[name]
        neuron = self.net.get_submodule(name)
        assert isinstance(neuron, SpikingNeuron) and neuron.alphabet == "binary", name
        neuron.clock = self.clock
        for rows in self._parts():
            self.clock.batch = len(self.images[rows])
            images = self.images[rows]
            if "" in sources and len(sources) > 1:  # beside spikes, the image is shown at every step
                images = images.repeat(self.T, *[1] * (images.ndim - 1))
            inputs = [self._train(source, rows).flatten(0, 1) if source else images for source in sources]
            neuron.reset()
            yield self.clock.unfold(neuron(part(*inputs)))
        neuron.reset()

    def rates(self, name: str) -> Tensor:
        """Returns the mean output of a neuron over the steps, ``[N, ...]``, or the images for ``""``."""
        if not name:
            return self.images
        if name in self.bits:
            return torch.cat([self._train(name, rows).mean(0) for rows in self._parts()])
        return torch.cat([out_TBX.mean(0) for out_TBX in self.run(name)])

    @torch.no_grad()
    def currents(self, name: str) -> Iterator[Tensor]:
        """Computes the input of one layer at each step.

        Steps run one by one, so that the result of a step does not depend on how many follow.

        Args:
            name: an activation or neuron; the spikes of all neurons before it must have been kept (:meth:`keep`).

        Yields:
            ``[N, ...]``, T times.
        """
        part, sources = self.segments[name]
        trains = [self._train(source, slice(None)).to(self.images) if source else None for source in sources]
        for step in range(self.T):
            yield part(*(self.images if train_TNX is None else train_TNX[step] for train_TNX in trains))

    def keep(self, name: str, outputs: Iterable[Tensor] | None = None) -> None:
        """Keeps the spikes of a neuron for the layers behind it.

        Args:
            name: the neuron.
            outputs: its output, ``[T, b, ...]`` for a few images at a time, in order; by default from :meth:`run`.
        """
        sent = self.run(name) if outputs is None else outputs
        parts = [np.packbits((out_TBX != 0).cpu().numpy(), axis=0) for out_TBX in sent]
        self.bits[name] = np.concatenate(parts, 1)
        names = list(self.segments)
        wanted = {source for later in names[names.index(name) + 1 :] for source in self.segments[later][1]}
        self.bits = {kept: bits for kept, bits in self.bits.items() if kept in wanted}

    def _parts(self) -> Iterator[slice]:
        """Splits the images into parts of a few."""
        at_once = max(1, _IMAGE_STEPS // self.T)
        return (slice(start, start + at_once) for start in range(0, len(self.images), at_once))

    def _train(self, name: str, rows: slice) -> Tensor:
        neuron = self.net.get_submodule(name)
        assert isinstance(neuron, SpikingNeuron)
        spikes = torch.from_numpy(np.unpackbits(self.bits[name][:, rows], axis=0, count=self.T))
        return spikes.to(neuron.threshold) * neuron.threshold


def mean_activations(net: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Returns the mean over images of every neuron's activation in the ANN, by layer name."""
    sums: dict[str, Tensor] = {}

    def add(name: str, _: Tensor, output: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros(())) + output.double().sum(0)

    images = observe(net, batches, add)
    return {name: (total / images).float() for name, total in sums.items()}


@torch.no_grad()
def layer_gaps(net: nn.Module, snn: SpikingNetwork, images: Tensor, T: int) -> dict[str, Tensor]:
    """Computes how far each layer of the SNN is from its ANN, both run end to end.

    Args:
        net: the ANN.
        snn: its conversion, whose layers have the same names.
        images: ``[B, C, H, W]``.
        T: steps.

    Returns:
        By layer name, ``a - mean over T of the neuron's output``, in the shape of the activation.
    """
    gaps: dict[str, Tensor] = {}
    with watching(net, lambda name, _, output: gaps.update({name: output})):
        net(images)

    def subtract(name: str, _: Tensor, output: Tensor) -> None:
        gaps[name] = gaps[name] - snn.clock.unfold(output).mean(0)

    snn.reset()
    with watching(snn.net, subtract, SpikingNeuron):
        snn(images, T)
    snn.reset()
    return gaps


def per_channel(mean_CX: Tensor) -> Tensor:
    """Averages over all but the channels: ``[C, 1, 1]``; ``[F]`` stays as it is."""
    return mean_CX.flatten(1).mean(1).view(-1, *[1] * (mean_CX.ndim - 1)) if mean_CX.ndim > 1 else mean_CX


@torch.no_grad()
def mse_thresholds(
    net: nn.Module,
    batches: Sequence[Batch],
    T: int,
    granularity: Granularity = "layer",
    candidates: int = 95,
    momentum: float = 0.9,
) -> dict[str, Tensor]:
    """Finds the thresholds that quantise activations with the least mean square error.

    For each batch it takes the best of ``max (1 - 0.01 i)``, ``i = 0 .. candidates - 1``, by the error of
    ``theta / T clip(floor(a T / theta), 0, T)`` against ``a``. The result is a running average over the batches.

    Args:
        net: the ANN.
        batches: calibration images.
        T: steps, the number of levels.
        granularity: ``layer`` or ``channel``.
        candidates: size of the grid.
        momentum: of the running average.

    Returns:
        Thresholds by layer name, scalars or ``[C, 1, 1]``.
    """
    found: dict[str, Tensor] = {}

    def search(name: str, _: Tensor, output: Tensor) -> None:
        a, shape = units(output, granularity)
        largest = a.amax(1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
        thetas = [largest * (1 - 0.01 * i) for i in range(candidates)]
        errors = torch.zeros(len(a), candidates, dtype=torch.float64, device=a.device)
        # In parts that stay in the cache for all candidates; otherwise each candidate would read the whole layer.
        for part in torch.split(a, max(1, _IN_CACHE // len(a)), 1):
            scratch = torch.empty_like(part)
            for i, theta in enumerate(thetas):
                torch.mul(part, T / theta, out=scratch)
                error = scratch.floor_().clamp_(0, T).mul_(theta / T).sub_(part).square_().sum(1)
                errors[:, i] += error
        best = torch.cat(thetas, 1).gather(1, errors.argmin(1, keepdim=True)).reshape(shape)
        found[name] = momentum * found[name] + (1 - momentum) * best if name in found else best

    observe(net, batches, search)
    return found
