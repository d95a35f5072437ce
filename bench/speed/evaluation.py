"""Simulation against the ANN's own forward pass, the papers' loop over steps, and SpikingJelly."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import math
import statistics
from collections.abc import Callable
from functools import cached_property
from types import SimpleNamespace
from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench.run.callbacks import ConversionCallback
from bench.snn.activations import Activation
from bench.snn.neurons import SpikingNeuron
from bench.snn.replace import replace
from bench.snn.simulate import SpikingNetwork, simulate
from bench.speed.figures import Figure, Rate, lively_qcfs, named, noise, rate

BATCHES = (16, 32, 64, 128)
BATCH = 100
# Passes with each batch size, the first one not counted.
TRIALS = 6
UNIT = "image-steps/s"


class StepNeuron(nn.Module):
    """The neuron of the papers' code, called once for each step of the whole network.

    Args:
        threshold: theta.
    """

    def __init__(self, threshold: Tensor) -> None:
        super().__init__()
        self.threshold = threshold.detach().clone()
        self.v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """One step."""
        v = x + (0.5 * self.threshold if self.v is None else self.v)
        spike = (v >= self.threshold) * self.threshold
        self.v = v - spike
        return spike


class Nets:
    """One set of weights in every form that is measured.

    Args:
        arch: CIFAR net.
        x: images ``[B, 3, 32, 32]``.
        T: steps.
    """

    def __init__(self, arch: str, x: Tensor, T: int) -> None:
        self.x, self.T = x, T
        with torch.inference_mode(False):
            self.model = lively_qcfs(named(arch), x.clone())
            self.plain, self.compiled = self.model.convert(T, []), self.model.convert(T, [])
            self.compiled.compiled = True
            self.ann, self.layers = self.model.folded(), self.model.folded()
            replace(self.ann, Activation, lambda _, __: nn.ReLU(inplace=True))
            replace(self.layers, Activation, lambda _, __: nn.Identity())
            self.steps = copy.deepcopy(self.plain.net)
            replace(self.steps, SpikingNeuron, lambda _, neuron: StepNeuron(neuron.threshold))

    def uncounted(self) -> SpikingNetwork:
        """The compiled network without the counting of spikes and operations."""
        with torch.inference_mode(False):
            snn = SpikingNetwork(copy.deepcopy(self.plain.net))
            snn.wire(self.x)
        for neuron in snn.neurons.values():
            neuron.counting = False
        snn.analogue.clear()
        snn.compiled = True
        return snn

    @cached_property
    def batch(self) -> int:
        """The ANN's best batch size, from a few passes with each."""
        sizes = [batch for batch in BATCHES if batch <= len(self.x)] or [len(self.x)]
        found = {batch: [self.passes(self.ann, batch, 1)() for _ in range(TRIALS)] for batch in sizes}
        return max(sizes, key=lambda batch: statistics.median(found[batch][1:]))

    def passes(self, net: nn.Module, batch: int, times: int) -> Rate:
        """Images a second of an ANN that sees all of them so many times."""
        parts = torch.split(self.x, batch)
        return lambda: rate(lambda: [net(part) for _ in range(times) for part in parts], len(self.x) * times)

    def simulated(self, snn: SpikingNetwork) -> Rate:
        """Image-steps a second of the suite."""
        parts = torch.split(self.x, BATCH)
        return lambda: rate(lambda: [list(simulate(snn, part, self.T)) for part in parts], len(self.x) * self.T)

    def step_loop(self) -> float:
        """Image-steps a second of the papers' loop."""

        def work() -> None:
            for part in torch.split(self.x, BATCH):
                for neuron in self.steps.modules():
                    if isinstance(neuron, StepNeuron):
                        neuron.v = None
                total: Tensor | float = 0.0
                for _ in range(self.T):
                    total = total + self.steps(part)

        return rate(work, len(self.x) * self.T)

    def spikingjelly(self) -> Rate | None:
        """Image-steps a second of SpikingJelly's multi-step neurons between layers that see the steps as a batch.

        ``None`` if it is not installed (extra ``peers``).
        """
        if importlib.util.find_spec("spikingjelly") is None:
            return None
        from spikingjelly.activation_based import functional, neuron

        T = self.T

        class MultiStep(nn.Module):
            """``[T*B, ...]`` in and out."""

            def __init__(self, threshold: Tensor) -> None:
                super().__init__()
                self.threshold = float(threshold)
                self.node = neuron.IFNode(v_threshold=self.threshold, v_reset=None, step_mode="m")

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.node(x.view(T, -1, *x.shape[1:])).flatten(0, 1) * self.threshold
                return out

        with torch.inference_mode(False):
            net = copy.deepcopy(self.plain.net)
            replace(net, SpikingNeuron, lambda _, old: MultiStep(old.threshold))

        def work() -> None:
            for part in torch.split(self.x, BATCH // 4):
                functional.reset_net(net)
                torch.cumsum(net(part.repeat(T, 1, 1, 1)).view(T, len(part), -1), 0)

        return lambda: rate(work, len(self.x) * T)


@torch.inference_mode()
def evaluation(arch: str, T: int, images: int, pairs: int, device: str) -> list[Figure]:
    """All T = 1..T of an SNN from one pass, in image-steps a second, against the ANN's images a second."""
    nets = Nets(arch, noise(images, device), T)
    limit, ours, peer = f"eager ANN, batch of {nets.batch}", f"SNN, T = 1..{T}", nets.spikingjelly()
    # As many images as the simulation has image-steps.
    ann, layers = (nets.passes(net, nets.batch, T) for net in (nets.ann, nets.layers))
    compiled = nets.simulated(nets.compiled)
    pairings = [
        ("layers alone, no activations", layers, limit, ann),
        (f"{ours}, step loop", nets.step_loop, limit, ann),
        (f"{ours}, uncompiled", nets.simulated(nets.plain), limit, ann),
        (ours, compiled, limit, ann),
        (ours, compiled, "step loop", nets.step_loop),
    ]
    if peer is not None:
        pairings.append((ours, compiled, "SpikingJelly, multi-step", peer))
    return [Figure(name, against, UNIT).measure(mine, theirs, pairs) for name, mine, against, theirs in pairings]


@torch.inference_mode()
def callback(arch: str, T: int, images: int, pairs: int, device: str) -> list[Figure]:
    """What the evaluation costs besides the simulation: metrics and costs at each T, then the twins as well."""
    nets = Nets(arch, noise(images, device), T)
    labels = torch.randint(0, 10, (images,), device=device)
    readings = [t for t in (1, 2, 4, 8, 16, 32, 64, 128) if t <= T]
    # What the callback asks of a data module and of a Trainer.
    data = SimpleNamespace(
        num_classes=10, input_shape=(3, 32, 32), eval_split="test", eval_batch_size=BATCH, split=lambda _: range(images)
    )
    strategy = SimpleNamespace(root_device=torch.device(device))
    batches = [math.ceil(images / BATCH)]
    trainer = cast(
        pl.Trainer,
        SimpleNamespace(received_sigterm=False, datamodule=data, strategy=strategy, num_test_batches=batches),
    )

    def evaluated(twins: bool) -> Rate:
        measured = ConversionCallback(readings)
        measured.on_test_start(trainer, nets.model)
        measured.networks = {readings[-1]: nets.compiled}
        if not twins:
            measured.twins = {}

        def work() -> None:
            for part, answers in zip(torch.split(nets.x, BATCH), torch.split(labels, BATCH), strict=True):
                outputs = torch.zeros(len(part), 10, device=device)
                measured.on_test_batch_end(trainer, nets.model, outputs, (part, answers), 0)

        return lambda: rate(work, images * readings[-1])

    bare, free = nets.simulated(nets.compiled), nets.simulated(nets.uncounted())
    return [
        Figure("simulation, costs counted", "not counted", UNIT).measure(bare, free, pairs),
        Figure("evaluation, metrics and costs", "bare simulation", UNIT).measure(evaluated(False), bare, pairs),
        Figure("evaluation, twins as well", "bare simulation", UNIT).measure(evaluated(True), bare, pairs),
    ]


def peak_bytes(work: Callable[[], object], device: str) -> float:
    """Returns the peak memory that ``work`` allocates, in bytes, not counting memory in use before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return float(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return float(max(itertools.accumulate((change for _, change in changes), initial=0)))


@torch.inference_mode()
def memory(arch: str, T: int, images: int, pairs: int, device: str) -> list[Figure]:
    """Peak memory of simulating a batch of 100, against one forward pass of the ANN with that batch."""
    nets = Nets(arch, noise(BATCH, device), T)

    def simulated(steps: int) -> Rate:
        return lambda: peak_bytes(lambda: [None for _ in simulate(nets.compiled, nets.x, steps)], device)

    return [
        Figure(f"memory, SNN, batch {BATCH}, T = {steps}", f"ANN, batch {BATCH}", "bytes").measure(
            simulated(steps), lambda: peak_bytes(lambda: nets.ann(nets.x), device), pairs
        )
        for steps in sorted({1, T, 4 * T})
    ]
