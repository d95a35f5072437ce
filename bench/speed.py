"""How fast the suite is, as ratios within one run: ``python -m bench speed``.

Every figure is a ratio of two rates measured in turn, pair by pair, so that a machine that is slow for a minute slows
both. Nets have random weights, thresholds at the 90th percentile of their inputs, and images of normal noise: speed
depends on shapes and on how many neurons fire, not on accuracy.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench import architectures
from bench.errors import UserError
from bench.provenance import environment
from bench.snn.activations import Activation
from bench.snn.neurons import SpikingNeuron
from bench.snn.simulate import SpikingNetwork, simulate
from bench.snn.surgery import fold_batch_norm, replace
from methods.qcfs import QCFS
from methods.relu import ReLU

BATCHES = (16, 32, 64, 128)
Rate = Callable[[], float]


@dataclass
class Figure:
    """A rate against the limit it is compared with.

    Attributes:
        name: what was measured.
        limit: what it is compared with.
        unit: of both rates.
        ours: rates.
        theirs: rates of the limit, measured before each of ours.
    """

    name: str
    limit: str
    unit: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Of each pair."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def measure(self, rate: Rate, limit: Rate, pairs: int) -> Figure:
        """Measures both in turn, after a first run of each that is not counted."""
        limit(), rate()
        for _ in range(pairs):
            self.theirs.append(limit())
            self.ours.append(rate())
        return self


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


def _rate(work: Callable[[], object], amount: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return amount / (time.perf_counter() - started)


@torch.no_grad()
def _lively_qcfs(arch: str, images: Tensor) -> QCFS:
    torch.manual_seed(0)
    model = QCFS(architectures.create(arch, 10).to(memory_format=torch.channels_last))
    model.to(images.device)

    def at_percentile(activation: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sample = inputs[0].flatten()[:100_000]
        activation.threshold.copy_(sample[sample > 0].quantile(0.9))  # type: ignore[operator]

    hooks = [m.register_forward_pre_hook(at_percentile) for m in model.net.modules() if isinstance(m, Activation)]
    # Statistics of BN first, in training mode, then thresholds.
    model.net.train()(images)
    model.net.eval()(images)
    for hook in hooks:
        hook.remove()
    model.eval()
    return model


@torch.inference_mode()
def evaluation(arch: str, T: int, images: int, pairs: int, device: str) -> list[Figure]:
    """All T = 1..T of an SNN from one pass, in image-steps a second, against the ANN's images a second."""
    x = torch.randn(images, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    with torch.inference_mode(False):
        model = _lively_qcfs(arch, x.clone())
        snn = model.convert(T, [])
        ann = copy.deepcopy(model.net)
        fold_batch_norm(ann)
        steps = copy.deepcopy(snn.net)
        replace(ann, Activation, lambda _, __: nn.ReLU(inplace=True))
        replace(steps, SpikingNeuron, lambda _, neuron: StepNeuron(neuron.threshold))  # type: ignore[arg-type]

    def ann_rate() -> float:
        def at(batch: int) -> float:
            return _rate(lambda: [ann(part) for part in torch.split(x, batch)], len(x))

        return max(at(batch) for batch in BATCHES)

    def simulated(network: SpikingNetwork) -> float:
        return _rate(lambda: [None for part in torch.split(x, 100) for _ in simulate(network, part, T)], len(x) * T)

    def step_loop() -> float:
        def work() -> None:
            for part in torch.split(x, 100):
                for neuron in steps.modules():
                    if isinstance(neuron, StepNeuron):
                        neuron.v = None
                total = torch.zeros(())
                for _ in range(T):
                    total = total + steps(part)

        return _rate(work, len(x) * T)

    limit = f"eager ANN, best batch of {', '.join(map(str, BATCHES))}"
    figures = [
        Figure(f"SNN, T = 1..{T}, step loop", limit, "image-steps/s").measure(step_loop, ann_rate, pairs),
        Figure(f"SNN, T = 1..{T}, uncompiled", limit, "image-steps/s").measure(lambda: simulated(snn), ann_rate, pairs),
    ]
    snn.compiled = True
    name = f"SNN, T = 1..{T}"
    figures.append(Figure(name, limit, "image-steps/s").measure(lambda: simulated(snn), ann_rate, pairs))
    figures.append(Figure(name, "step loop", "image-steps/s").measure(lambda: simulated(snn), step_loop, pairs))
    return figures


def training(arch: str, batches: int, pairs: int, device: str) -> list[Figure]:
    """Training steps of QCFS against those of the same net with ReLU: bf16 autocast, channels last, batch 128."""
    x = torch.randn(128, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (128,), device=device)

    def stepper(method: type[Any], compiled: bool) -> Rate:
        torch.manual_seed(0)
        model = method(architectures.create(arch, 10)).to(device, memory_format=torch.channels_last)
        net = torch.compile(model.net) if compiled else model.net
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

        def work() -> None:
            for _ in range(batches):
                optimizer.zero_grad()
                with torch.autocast(x.device.type, torch.bfloat16):
                    logits = net(x)
                loss = F.cross_entropy(logits.float(), y)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        return lambda: _rate(work, batches * len(x))

    relu, relu_compiled = stepper(ReLU, False), stepper(ReLU, True)
    qcfs, qcfs_compiled = stepper(QCFS, False), stepper(QCFS, True)
    pairings = [
        ("QCFS, eager", qcfs, "ReLU, eager", relu),
        ("QCFS, compiled", qcfs_compiled, "ReLU, compiled", relu_compiled),
        ("QCFS, compiled", qcfs_compiled, "ReLU, eager", relu),
    ]
    return [
        Figure(f"training, {name}", limit, "images/s").measure(rate, limit_rate, pairs)
        for name, rate, limit, limit_rate in pairings
    ]


def run(arch: str, what: Sequence[str], T: int, images: int, pairs: int, device: str, as_json: bool) -> int:
    """Measures and prints.

    Args:
        arch: CIFAR net.
        what: ``evaluation``, ``training`` or both.
        T: steps.
        images: in one measurement of an evaluation.
        pairs: measurements of each ratio.
        device: ``cpu`` or ``cuda``.
        as_json: print JSON instead of a table.

    Returns:
        0.

    Raises:
        UserError: a number below 1, or no such device.
    """
    for name, number in (("T", T), ("images", images), ("pairs", pairs)):
        if number < 1:
            raise UserError(f"--{name} {number}: must be at least 1")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is none here; use --device cpu")
    figures: list[Figure] = []
    if "evaluation" in what:
        figures += evaluation(arch, T, images, pairs, device)
    if "training" in what:
        figures += training(arch, max(1, images // 20), pairs, device)
    machine = environment(torch.device(device), 1, 0)
    if as_json:
        rows = [{**asdict(figure), "ratio": statistics.median(figure.ratios)} for figure in figures]
        print(json.dumps({"arch": arch, "environment": machine.model_dump(), "figures": rows}, indent=2))
        return 0
    table = Table(title=f"{arch}, {machine.device}, {machine.threads} threads, torch {machine.torch}")
    for heading in ("what", "against", "rate", "limit", "ratio", "range"):
        table.add_column(heading, justify="left" if heading in ("what", "against") else "right")
    for figure in figures:
        ratios = figure.ratios
        rates = [f"{statistics.median(values):,.0f}" for values in (figure.ours, figure.theirs)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        table.add_row(figure.name, figure.limit, *rates, f"{statistics.median(ratios):.2f}", spread)
    Console(width=130).print(table)
    print(f"medians of {pairs} pairs; images or image-steps a second")
    return 0
