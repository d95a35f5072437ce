"""Runs a converted network for T steps."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.errors import UserError, first_line
from bench.snn.activations import Activation
from bench.snn.compilation import compiled_for_shapes
from bench.snn.cost import AnalogueCounter, Counts
from bench.snn.graph.check import mixes_constant_input
from bench.snn.graph.trace import ImageShape
from bench.snn.graph.wait import longest_wait
from bench.snn.graph.wiring import wiring
from bench.snn.neurons import Clock, SpikingNeuron, Timed
from bench.snn.pooling import LateralInhibitionPool
from bench.snn.replace import replace

# Bytes of the largest layer's output in one pass: enough to keep the convolutions busy, few enough for a CPU's cache,
# and far below the memory of an ordinary evaluation batch.
WORKING_SET = {"cpu": 4 << 20, "cuda": 512 << 20}
# About the number of steps in one pass: a compiled network runs a neuron's loop over them as one kernel, and more steps
# gain little.
STEPS = 8
# The fewest steps that a delayed read-out reads (Bu et al., CVPR 2025).
FEWEST_READ = 4


class Part(NamedTuple):
    """What :func:`simulate` returns for some of the images.

    Attributes:
        logits: of every counted step, ``[T, b, classes]``.
        counts: cost of all steps, including those before the first counted one.
    """

    logits: Tensor
    counts: Counts


class SpikingNetwork(nn.Module):
    """A converted network: layers that know nothing of time, and neurons that share one clock.

    Args:
        net: a network whose activations are :class:`SpikingNeuron`.
        warmup: steps in addition to T, counted by the record and the latency.
        uncounted: steps whose logits are left out of the read-out; ``None`` for ``warmup``.
        only_T: the one number of steps that the network was converted for; ``None`` if it may be read at any.
        quantised: what :meth:`twin` returns if the weights were fitted to spikes and are no longer the ANN's.
        image: shape of one, if known; a ``forward`` may ask for it.

    Attributes:
        only_image: the only image shape that it accepts, because a ``forward`` asked for the shape; ``None`` for any.
        compiled: :func:`simulate` runs passes as compiled code.
        delay: number of first counted steps that the read-out leaves out (:meth:`window`).
        wait: steps before the first step of the answer, apart from the warm-up, because layers must see several steps
            of their input before they send; known once wired.

    Raises:
        UserError: ``net`` has no neuron.
        ValueError: ``uncounted`` is neither 0 nor ``warmup``.
    """

    def __init__(
        self,
        net: nn.Module,
        warmup: int = 0,
        uncounted: int | None = None,
        only_T: int | None = None,
        quantised: nn.Module | None = None,
        image: ImageShape = None,
    ) -> None:
        super().__init__()
        self._quantised = (quantised,)  # a tuple keeps it out of this network and its state
        self.net, self.warmup, self.only_T = net.eval(), warmup, only_T
        self.uncounted = warmup if uncounted is None else uncounted
        if self.uncounted not in (0, warmup):
            raise ValueError(f"uncounted = {uncounted}: must be 0 or all {warmup} warm-up steps")
        self.clock = Clock()
        self.clock.coding = next((m.coding for m in net.modules() if isinstance(m, SpikingNeuron)), "rate")
        self.compiled = False
        self.image = None if image is None else torch.Size(image)
        self.only_image: torch.Size | None = None
        self.delay = self.wait = 0
        self.wired: tuple[torch.Size, torch.device] | None = None
        self.heard: set[str] = set()
        self.analogue: dict[str, AnalogueCounter] = {}
        self.neurons = {name: m for name, m in net.named_modules() if isinstance(m, SpikingNeuron)}
        if not self.neurons:
            raise UserError("the network has no spiking neuron: convert it first")
        self.timed = [module for module in net.modules() if isinstance(module, Timed)]
        for module in self.timed:
            module.clock = self.clock
        self.repeat_input = mixes_constant_input(net, image)

    def train(self, mode: bool = True) -> SpikingNetwork:
        """Stays in evaluation mode: batch normalisation that is left in the network must not change."""
        return super().train(False)

    def reset(self) -> None:
        """Clears all membrane potentials."""
        for module in self.timed:
            module.reset()
        for counter in self.analogue.values():
            counter.reset()

    @torch.no_grad()
    def forward(self, x: Tensor, T: int) -> Tensor:
        """Runs ``T`` more steps from the current state.

        Args:
            x: images ``[B, C, H, W]``, presented unchanged at every step (direct coding).
            T: steps.

        Returns:
            Logits of each step, ``[T, B, classes]``.
        """
        logits: Tensor = self.net(self.present(x, T))
        return logits.view(T, self.clock.batch, *logits.shape[1:])

    def present(self, x: Tensor, T: int) -> Tensor:
        """Sets the clock to ``T`` steps of images ``[B, C, H, W]``; returns the input that :attr:`net` needs."""
        # Not len(x), which would fix the number of images in an exported network.
        self.clock.T, self.clock.batch = T, x.shape[0]
        return x.expand(T, *x.shape).flatten(0, 1) if self.repeat_input else x

    @functools.cached_property
    def fast(self) -> Callable[[Tensor, int], Tensor]:
        """:meth:`forward`, compiled for each shape of a pass."""
        return compiled_for_shapes(self.forward)

    def wire(self, x: Tensor) -> None:
        """Finds out from one image how large the layers are and what their spikes cost; once for each size and device.

        Args:
            x: images ``[B, C, H, W]``.

        Raises:
            UserError: the network does not take such images.
        """
        if self.wired == (x.shape[1:], x.device):
            return
        if self.only_image not in (None, x.shape[1:]):
            raise UserError(
                f"x: images are {list(x.shape[1:])}, but this network's forward asked for their shape when it was "
                f"converted with {list(self.only_image or ())}; convert it with images of this shape"
            )
        try:
            found = wiring(self.net, x[:1])
        except (RuntimeError, ValueError, IndexError) as error:
            known = f", which was converted with {list(self.image)}" if self.image is not None else ""
            if self.image is not None and x.shape == self.image:
                known += "; the first dimension is the images, so give one as x[None]"
            raise UserError(
                f"x: images of shape {list(x.shape[1:])} do not fit this network{known} ({first_line(error)})"
            ) from error
        self.heard = found.heard
        self.analogue.clear()
        for name, fan_out in found.spiking.items():
            self.neurons[name].fan_out = fan_out.to(x.device)
            self.neurons[name].size = found.sizes[name]
        for name, calls in found.analogue.items():
            on_device = [call and call._replace(fan_out=call.fan_out.to(x.device)) for call in calls]
            self.analogue[name] = AnalogueCounter(self.clock, on_device)
        # Warm-up steps that are not run before the others are those that the first layer looks ahead (COS).
        self.wait = longest_wait(self.net, x.shape[1:]) - (self.warmup - self.uncounted)
        self.wired = (x.shape[1:], x.device)

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts multiply-accumulates while active; afterwards the layers have their own hooks only."""
        with contextlib.ExitStack() as hooks:
            for name, counter in self.analogue.items():
                hooks.enter_context(self.net.get_submodule(name).register_forward_pre_hook(counter, with_kwargs=True))
            yield

    def image_steps(self, x: Tensor) -> int:
        """Returns the images times steps of a pass that suits the device, for such images."""
        self.wire(x)
        largest = max(neuron.size for neuron in self.neurons.values()) * x.element_size()
        return max(1, WORKING_SET.get(x.device.type, WORKING_SET["cuda"]) // largest)

    def pass_counts(self) -> Counts:
        """Returns the cost of the last pass."""
        spikes = torch.stack([neuron.spike_counts for neuron in self.neurons.values()])
        synops = torch.stack([neuron.synop_counts for neuron in self.neurons.values()])
        macs = [counter.counts for counter in self.analogue.values()]
        return Counts(spikes, synops, torch.stack(macs) if macs else spikes[:0])

    def twin(self, T: int) -> nn.Module:
        """Returns the quantised network that this one would equal after ``T`` steps if all spikes came evenly."""
        [quantised] = self._quantised
        if quantised is not None:
            return copy.deepcopy(quantised).eval().to(next(self.parameters()).device)
        net = copy.deepcopy(self.net)
        replace(net, SpikingNeuron, lambda _, neuron: neuron.twin(T))
        replace(net, LateralInhibitionPool, lambda _, pool: pool.pool)
        if self.compiled:
            for module in net.modules():
                if isinstance(module, Activation):
                    module.compile_steps()
        return net.eval()

    @property
    def num_neurons(self) -> int:
        """Number of neurons in all layers, known after the first pass."""
        return sum(neuron.size for neuron in self.neurons.values())

    @property
    def lookahead(self) -> int:
        """Steps that the first pass of a run must have."""
        return max(module.lookahead for module in self.timed)

    def counted(self, T: int) -> slice:
        """Which of the steps that were run are the ``T`` counted ones."""
        return slice(self.uncounted, self.uncounted + T)

    def window(self, T: int) -> slice:
        """Which of ``T`` counted steps are read: those after the delay, but at least the last four."""
        return slice(min(self.delay, max(0, T - FEWEST_READ)), T)

    def score(self, logits_TBK: Tensor, T: int) -> Tensor:
        """Returns the answer after ``T`` counted steps, ``[B, classes]``, from the logits of these or more steps."""
        scores_BK = torch.zeros_like(logits_TBK[0])
        # One by one, so that the first steps of a long run have the same sum as those of a short run.
        for logits_BK in logits_TBK[self.window(T)]:
            scores_BK += logits_BK
        return scores_BK

    def steps_for(self, T: int) -> int:
        """Number of steps that must be run for ``T`` counted ones."""
        return max(self.uncounted + T, self.lookahead)

    def paid(self, counts: Counts, T: int) -> Tensor:
        """Sums synaptic operations and multiply-accumulates for ``T`` counted steps, from a run of at least as many.

        The steps before them are included. Steps that a neuron looks ahead to count twice for the
        layers whose output reaches it.
        """
        totals = []
        for names, kind in ((self.neurons, counts.synops), (self.analogue, counts.macs)):
            twice = [name in self.heard for name in names]
            totals.append(kind[:, : self.uncounted + T].sum() + kind[twice, : self.lookahead].sum())
        return torch.stack(totals)

    def membrane_updates(self, T: int) -> int:
        """Number for one image in ``T`` counted steps, including the steps before them and those of looking ahead."""
        return sum(
            neuron.size * (self.uncounted + T + neuron.probing + (self.lookahead if name in self.heard else 0))
            for name, neuron in self.neurons.items()
        )

    def shifts(self, T: int) -> int:
        """Number of one-bit shifts of membranes for one image in ``T`` counted steps, if spikes are bits."""
        return sum(neuron.size * (T - 1) for neuron in self.neurons.values() if neuron.weighs_bits)


@torch.no_grad()
def simulate(snn: SpikingNetwork, x: Tensor, T: int, image_steps: int | None = None) -> Iterator[Part]:
    """Runs images through a converted net, a few images and a few steps at a time.

    Args:
        snn: from :meth:`methods.base.ConversionModule.convert`.
        x: images ``[B, C, H, W]``.
        T: counted steps; warm-up steps are added.
        image_steps: approximate images times steps in one pass; the default suits the network and the device.

    Yields:
        The logits and the cost of each part of the batch, in order.

    Raises:
        UserError: ``T`` is below 1, not that of the conversion or above it, a pixel is not finite, or the network
            takes only images of another shape.
    """
    if T < 1:
        raise UserError(f"T = {T}: must be at least 1")
    if snn.only_T not in (None, T):
        raise UserError(f"T = {T}: this network was converted for T = {snn.only_T}; convert once for each T")
    most = min((neuron.most_T for neuron in snn.neurons.values() if neuron.most_T is not None), default=T)
    if most < T:
        raise UserError(f"T = {T}: this network was converted for at most {most} steps; convert it for more")
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x.flatten(1))).any(1).nonzero()[0])
        raise UserError(f"x: image {bad} has a pixel that is NaN or infinite; a spiking neuron would hide it")
    snn.wire(x)
    limit = image_steps or snn.image_steps(x)
    steps = snn.steps_for(T)
    per_pass = max(min(steps_of_a_pass(steps), limit), snn.lookahead)
    part = images_of_a_pass(len(x), max(1, limit // per_pass))
    with snn.counting():
        for images in torch.split(x, part):
            # Another number of images would need a new compilation, for a single pass.
            run = snn.fast if snn.compiled and len(images) == part else snn
            snn.reset()
            logits, counts = [], []
            # The last pass may overshoot, which does not change the steps before.
            for _ in range(0, steps, per_pass):
                for counter in snn.analogue.values():
                    counter.begin()
                logits.append(run(images, per_pass))
                counts.append(snn.pass_counts())
            paid = Counts(*(torch.cat(kind, 1)[:, :steps] for kind in zip(*counts, strict=True)))
            yield Part(torch.cat(logits)[snn.counted(T)], paid)
    snn.reset()


def steps_of_a_pass(steps: int) -> int:
    """Returns the steps of one pass, so that equal passes overshoot ``steps`` as little as possible."""
    if steps <= STEPS:
        return steps
    return min(range(STEPS - 3, STEPS + 3), key=lambda n: (-steps % n, abs(n - STEPS)))


def images_of_a_pass(batch: int, most: int) -> int:
    """Returns the images of one pass: if possible a divisor of the batch near ``most``, for equal passes."""
    near = [n for n in range((2 * most + 2) // 3, 3 * most // 2 + 1) if batch % n == 0]
    return min(near, key=lambda n: abs(n - most)) if near else min(most, batch)
