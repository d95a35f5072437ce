"""Paired measurements, and the nets that are measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.nets import architectures
from bench.snn.activations import QCFSActivation
from methods.qcfs import QCFS

Rate = Callable[[], float]


@dataclass
class Figure:
    """A rate against the limit it is compared with.

    Attributes:
        name: what was measured.
        limit: what it is compared with.
        unit: of both.
        ours: rates, or bytes.
        theirs: of the limit, measured before each of ours.
    """

    name: str
    limit: str
    unit: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Ratios of the single pairs."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)

    def measure(self, rate: Rate, limit: Rate, pairs: int) -> Figure:
        """Measures both in turn, after a first run of each that is not counted."""
        limit(), rate()
        for _ in range(pairs):
            self.theirs.append(limit())
            self.ours.append(rate())
        return self


def rate(work: Callable[[], object], amount: float) -> float:
    """``amount`` by the seconds that ``work`` takes."""

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    started = now()
    work()
    return amount / (now() - started)


def noise(images: int, device: str) -> Tensor:
    """Images ``[B, 3, 32, 32]`` of normal noise, channels last."""
    return torch.randn(images, 3, 32, 32, device=device).to(memory_format=torch.channels_last)


def named(arch: str) -> nn.Module:
    """A registered net with the weights of seed 0."""
    torch.manual_seed(0)
    return architectures.create(arch, 10)


@torch.no_grad()
def lively_qcfs(net: nn.Module, images: Tensor) -> QCFS:
    """A QCFS net in which a plausible part of the neurons fires."""
    model = QCFS(net.to(memory_format=torch.channels_last)).to(images.device)

    def at_percentile(activation: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(activation, QCFSActivation)
        sample = inputs[0].flatten()[:100_000]
        activation.threshold.copy_(sample[sample > 0].quantile(0.9))

    hooks = [m.register_forward_pre_hook(at_percentile) for m in model.net.modules() if isinstance(m, QCFSActivation)]
    # Statistics of BN first, in training mode, then thresholds.
    model.net.train()(images)
    model.net.eval()(images)
    for hook in hooks:
        hook.remove()
    return model.eval()
