"""Runs a user's network once per time step, as the papers describe a spiking network.

The network is not changed: nothing is traced, folded or rebuilt. Calls of ReLU, of its clipped forms and of max-pooling
are intercepted in PyTorch's function dispatch and answered by neurons. Nothing here uses bench.snn.neurons,
bench.snn.simulate or bench.snn.graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_RELU = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6}
_CLIPS = {F.hardtanh, torch.clamp, Tensor.clamp, Tensor.clamp_}
_POOLS = {F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool2d}


class Neuron:
    """IF neurons with soft reset and up to ``levels`` spikes in a step; adds up the mean spikes and the calls."""

    def __init__(self, theta: Tensor, v_init: float, levels: int) -> None:
        self.theta, self.v, self.levels = theta.detach().clone(), v_init * theta.detach().clone(), levels
        self.spikes = self.calls = 0.0

    def __call__(self, current: Tensor) -> Tensor:
        charged = self.v + current
        number = torch.floor(charged / self.theta).clamp(0, self.levels)
        if self.levels == 1:
            number = (charged >= self.theta).to(charged)
        self.v = charged - number * self.theta
        self.spikes += float(number.mean())
        self.calls += 1
        return number * self.theta


class Pool:
    """Max-pooling of spikes: the sum of the outputs is the maximum over the sums of the inputs."""

    def __init__(self) -> None:
        self.sums: Tensor | float = 0.0
        self.sent: Tensor | float = 0.0

    def __call__(self, x: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
        self.sums = self.sums + x
        gain = pool(self.sums) - self.sent
        self.sent = self.sent + gain
        return gain


class Spiking(TorchFunctionMode):
    """A context in which the n-th neuron answers the n-th call of a rectifier in each pass."""

    def __init__(self, neurons: Sequence[Neuron]) -> None:
        super().__init__()
        self.neurons, self.pools = list(neurons), [Pool() for _ in range(64)]
        self.begin()

    def begin(self) -> None:
        """Begins a new time step."""
        self.rectified = self.pooled = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _POOLS:
            pool = self.pools[self.pooled]
            self.pooled += 1
            return pool(args[0], lambda x: func(x, *args[1:], **kwargs))
        if func not in _RELU | _CLIPS:
            return func(*args, **kwargs)
        answer = self.neurons[self.rectified](args[0])
        self.rectified += 1
        in_place = kwargs.get("inplace") or getattr(func, "__name__", "").endswith("_")
        return args[0].copy_(answer) if in_place else answer


def steps_of(
    net: nn.Module, images: Tensor, T: int, thresholds: Sequence[Tensor], v_init: float = 0.5, levels: int = 1
) -> tuple[Tensor, list[float]]:
    """Returns the outputs of each step ``[T, B, ...]`` and each layer's spikes per neuron and step."""
    own, neurons = copy.deepcopy(net).eval(), [Neuron(theta, v_init, levels) for theta in thresholds]
    outputs = []
    with torch.no_grad(), Spiking(neurons) as mode:
        for _ in range(T):
            mode.begin()
            outputs.append(own(images.clone()).clone())
            assert mode.rectified == len(neurons)
    return torch.stack(outputs), [neuron.spikes / neuron.calls for neuron in neurons]
