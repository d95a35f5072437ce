"""Running a converted network for T steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.graph import mixes_constant_input
from bench.snn.neurons import Clock, LateralInhibitionPool, SpikingNeuron, Timed
from bench.snn.surgery import replace

# Image-steps in one pass: enough to keep the convolutions busy, few enough to stay in a CPU's cache and far below
# the memory of an ordinary evaluation batch.
IMAGE_STEPS = {"cpu": 128, "cuda": 8192}


class SpikingNetwork(nn.Module):
    """A converted network: layers that know nothing of time, and neurons that share one clock.

    Args:
        net: a network whose activations are :class:`SpikingNeuron`.
        warmup: steps that come on top of T, as the record and the latency count them.
        uncounted: steps whose logits are left out of the read-out; ``None`` for ``warmup``.
        least: steps that a run must have, however small T is.
        only_T: the one number of steps that the network was converted for; ``None`` where it may be read at any.

    Raises:
        UserError: ``net`` has no neuron.
    """

    def __init__(
        self,
        net: nn.Module,
        warmup: int = 0,
        uncounted: int | None = None,
        least: int = 1,
        only_T: int | None = None,
    ) -> None:
        super().__init__()
        self.net, self.warmup, self.least, self.only_T = net.eval(), warmup, least, only_T
        self.uncounted = warmup if uncounted is None else uncounted
        self.clock = Clock()
        self.neurons = {name: m for name, m in net.named_modules() if isinstance(m, SpikingNeuron)}
        if not self.neurons:
            raise UserError("the network has no spiking neuron: convert it first")
        self.timed = [module for module in net.modules() if isinstance(module, Timed)]
        for module in self.timed:
            module.clock = self.clock
        self.repeat_input = mixes_constant_input(net)

    def reset(self) -> None:
        """Forgets all membrane potentials."""
        for module in self.timed:
            module.reset()

    def forward(self, x: Tensor, T: int) -> Tensor:
        """Continues for ``T`` steps from the present state.

        Args:
            x: images ``[B, C, H, W]``, presented unchanged at every step (direct coding).
            T: steps.

        Returns:
            Logits of each step, ``[T, B, classes]``.
        """
        self.clock.T, self.clock.batch = T, len(x)
        if self.repeat_input:
            x = x.expand(T, *x.shape).flatten(0, 1)
        logits: Tensor = self.net(x)
        return logits.view(T, self.clock.batch, *logits.shape[1:])

    def twin(self, T: int) -> nn.Module:
        """The quantised network this one would equal after ``T`` steps if all spikes came evenly."""
        net = copy.deepcopy(self.net)
        replace(net, SpikingNeuron, lambda _, neuron: neuron.twin(T))  # type: ignore[operator]
        replace(net, LateralInhibitionPool, lambda _, pool: pool.pool)  # type: ignore[arg-type, return-value]
        return net.eval()

    @property
    def num_neurons(self) -> int:
        """Neurons of all layers, known after the first pass."""
        return sum(neuron.size for neuron in self.neurons.values())

    @property
    def causal(self) -> bool:
        """Whether a long run may be cut in time."""
        return all(module.causal for module in self.timed)


@torch.no_grad()
def simulate(snn: SpikingNetwork, x: Tensor, T: int, image_steps: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Runs images through a converted net, a few at a time.

    Args:
        snn: from :meth:`methods.base.ConversionModule.convert`.
        x: images ``[B, C, H, W]``.
        T: counted steps; the warm-up comes on top.
        image_steps: images times steps in one pass; the default suits the device.

    Yields:
        For each part of the batch, in order: the logits of every counted step ``[T, b, classes]``, and the number of
        spikes of all neurons and images in each ``[T]``, as integers.
    """
    if T < 1:
        raise UserError(f"T = {T}: must be at least 1")
    if snn.only_T not in (None, T):
        raise UserError(f"T = {T}: this network was converted for T = {snn.only_T}; convert once for each T")
    limit = image_steps or IMAGE_STEPS.get(x.device.type, IMAGE_STEPS["cuda"])
    steps = max(snn.uncounted + T, snn.least)
    part = max(1, limit // steps)
    per_pass = max(1, min(steps, limit // part)) if snn.causal else steps
    for images in torch.split(x, part):
        snn.reset()
        logits, spikes = [], []
        for start in range(0, steps, per_pass):
            logits.append(snn(images, min(per_pass, steps - start)))
            spikes.append(torch.stack([neuron.spike_counts for neuron in snn.neurons.values()]).sum(0))
        counted = slice(snn.uncounted, snn.uncounted + T)
        yield torch.cat(logits)[counted], torch.cat(spikes)[counted]
    snn.reset()
