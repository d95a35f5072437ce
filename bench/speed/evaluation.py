"""Simulation against the ANN's own forward pass, the papers' loop over steps, and SpikingJelly."""

from __future__ import annotations

import copy
import importlib.util
import statistics
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bench.run.callbacks import ConversionCallback
from bench.snn.activations import Activation
from bench.snn.graph.surgery import fold_batch_norm, replace
from bench.snn.neurons import SpikingNeuron
from bench.snn.reduced import changed_spikes, reduced
from bench.snn.simulate import SpikingNetwork, simulate
from bench.speed.figures import Figure, lively_qcfs, named, noise, rate

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

    def reset(self) -> None:
        """Before the next images."""
        self.v = None


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
            self.reduced = reduced(self.plain, x.clone())
            self.reduced.compiled = True
            self.ann = copy.deepcopy(self.model.net)
            fold_batch_norm(self.ann)
            replace(self.ann, Activation, lambda _, __: nn.ReLU(inplace=True))
            self.layers = copy.deepcopy(self.ann)
            replace(self.layers, nn.ReLU, lambda _, __: nn.Identity())
            self.steps = copy.deepcopy(self.plain.net)
            replace(self.steps, SpikingNeuron, lambda _, neuron: StepNeuron(neuron.threshold))  # type: ignore[arg-type]

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
        found = {batch: [rate(self.passing(self.ann, batch), 1) for _ in range(TRIALS)] for batch in sizes}
        return max(sizes, key=lambda batch: statistics.median(found[batch][1:]))

    def ann_rate(self) -> float:
        """Images a second, at the best batch size; of as many as the simulation has image-steps."""
        return self._rate(self.ann)

    def layers_rate(self) -> float:
        """The same without activations."""
        return self._rate(self.layers)

    def _rate(self, net: nn.Module) -> float:
        work = self.passing(net, self.batch)
        return rate(lambda: [work() for _ in range(self.T)], len(self.x) * self.T)

    def passing(self, net: nn.Module, batch: int) -> Callable[[], object]:
        """A pass of all images through an ANN."""
        return lambda: [net(part) for part in torch.split(self.x, batch)]

    def simulating(self, snn: SpikingNetwork) -> Callable[[], object]:
        """The suite's simulation of all images."""

        def work() -> None:
            for part in torch.split(self.x, BATCH):
                for _ in simulate(snn, part, self.T):
                    pass

        return work

    def simulated(self, snn: SpikingNetwork) -> Callable[[], float]:
        """Image-steps a second of the suite."""
        return lambda: rate(self.simulating(snn), len(self.x) * self.T)

    def step_loop(self) -> float:
        """Image-steps a second of the papers' loop."""

        def work() -> None:
            for part in torch.split(self.x, BATCH):
                for neuron in self.steps.modules():
                    if isinstance(neuron, StepNeuron):
                        neuron.reset()
                total: Tensor | float = 0.0
                for _ in range(self.T):
                    total = total + self.steps(part)

        return rate(work, len(self.x) * self.T)

    def spikingjelly(self) -> Callable[[], float] | None:
        """Image-steps a second of SpikingJelly's multi-step neurons between layers that see the steps as a batch.

        ``None`` where it is not installed (extra ``peers``).
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
            replace(net, SpikingNeuron, lambda _, old: MultiStep(old.threshold))  # type: ignore[arg-type]

        def work() -> None:
            for part in torch.split(self.x, BATCH // 4):
                functional.reset_net(net)
                torch.cumsum(net(part.repeat(T, 1, 1, 1)).view(T, len(part), -1), 0)

        return lambda: rate(work, len(self.x) * T)


@torch.inference_mode()
def evaluation(arch: str, T: int, images: int, pairs: int, device: str) -> list[Figure]:
    """All T = 1..T of an SNN from one pass, in image-steps a second, against the ANN's images a second."""
    nets = Nets(arch, noise(images, device), T)
    limit = f"eager ANN, batch of {nets.batch}"
    ours = f"SNN, T = 1..{T}"
    peer = nets.spikingjelly()
    pairings: list[tuple[str, Callable[[], float], str, Callable[[], float]]] = [
        ("layers alone, no activations", nets.layers_rate, limit, nets.ann_rate),
        (f"{ours}, step loop", nets.step_loop, limit, nets.ann_rate),
        (f"{ours}, uncompiled", nets.simulated(nets.plain), limit, nets.ann_rate),
        (ours, nets.simulated(nets.compiled), limit, nets.ann_rate),
        (ours, nets.simulated(nets.compiled), "step loop", nets.step_loop),
    ]
    if peer is not None:
        pairings.append((ours, nets.simulated(nets.compiled), "SpikingJelly, multi-step", peer))
    change = changed_spikes(nets.plain, nets.reduced, nets.x[:16], T)
    fast = f"{ours}, bf16 ({change.spikes:.2%} of spikes changed)"
    pairings.append((fast, nets.simulated(nets.reduced), limit, nets.ann_rate))
    return [
        Figure(name, against, UNIT).measure(measured, limit_rate, pairs)
        for name, measured, against, limit_rate in pairings
    ]


@torch.inference_mode()
def callback(arch: str, T: int, images: int, pairs: int, device: str) -> list[Figure]:
    """What the evaluation costs besides the simulation: metrics and costs at each T, then the twins as well."""
    nets = Nets(arch, noise(images, device), T)
    labels = torch.randint(0, 10, (images,), device=device)
    readings = [t for t in (1, 2, 4, 8, 16, 32, 64, 128) if t <= T]

    class Data:
        """What the callback asks of a data module."""

        num_classes, eval_split = 10, "test"

        def split(self, _: str) -> list[None]:
            return [None] * 10**6

        def calibration_dataloader(self, _: int) -> list[Any]:
            return []

    class Trainer:
        """What the callback asks of a Trainer."""

        received_sigterm, datamodule = False, Data()

        class strategy:  # noqa: N801
            root_device = torch.device(device)

    def evaluated(twins: bool) -> Callable[[], float]:
        measured = ConversionCallback(readings)
        measured.on_test_start(Trainer, nets.model)  # type: ignore[arg-type]
        measured.networks = {readings[-1]: nets.compiled}
        if not twins:
            measured.twins = {}

        def work() -> None:
            for part, answer in zip(torch.split(nets.x, BATCH), torch.split(labels, BATCH), strict=True):
                outputs = torch.zeros(len(part), 10, device=device)
                measured.on_test_batch_end(Trainer, nets.model, outputs, (part, answer), 0)  # type: ignore[arg-type]

        return lambda: rate(work, images * readings[-1])

    bare = nets.simulated(nets.compiled)
    counting = Figure("simulation, costs counted", "not counted", UNIT)
    return [
        counting.measure(bare, nets.simulated(nets.uncounted()), pairs),
        *(
            Figure(name, "bare simulation", UNIT).measure(evaluated(twins), bare, pairs)
            for name, twins in (("evaluation, metrics and costs", False), ("evaluation, twins as well", True))
        ),
    ]
