"""Small ReLU nets, and numpy versions of layers and neurons, for the tests of the conversion rules.

Nothing here uses bench.snn.neurons, bench.snn.calibration or bench.snn.simulate.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from bench.snn.activations import ReLUActivation

Array = np.ndarray


class Wire(nn.Module):
    """Passes the image through one activation; the logits are the activations."""

    def __init__(self, features: int, activation: nn.Module) -> None:
        super().__init__()
        self.flatten, self.act, self.out = nn.Flatten(), activation, nn.Linear(features, features)
        with torch.no_grad():
            self.out.weight.copy_(torch.eye(features))
            self.out.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.flatten(x)))


class TwoConvolutions(nn.Module):
    """Two blocks of convolution, BN and ReLU, with pooling between them."""

    def __init__(self, pool: nn.Module | None = None, classes: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.pool = pool or nn.AvgPool2d(2)
        self.conv2, self.bn2, self.act2 = nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()
        self.mean, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act1(self.bn1(self.conv1(x))))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.fc(self.mean(x).flatten(1))


class Layers(nn.Module):
    """Linear layers with ReLU between them, ready for conversion, in double precision."""

    def __init__(
        self, widths: Sequence[int] = (6, 8, 7, 4), seed: int = 0, activation: type[nn.Module] = ReLUActivation
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.depth = len(widths) - 2
        for index, (inputs, outputs) in enumerate(pairwise(widths), 1):
            layer = nn.Linear(inputs, outputs).double()
            with torch.no_grad():
                layer.weight.copy_(torch.randn(outputs, inputs, generator=generator, dtype=torch.float64))
                layer.weight.mul_(1.5 / inputs**0.5)
                layer.bias.copy_(torch.randn(outputs, generator=generator, dtype=torch.float64) / 4)
            self.add_module(f"fc{index}", layer)
            if index <= self.depth:
                self.add_module(f"act{index}", activation())

    def forward(self, x: Tensor) -> Tensor:
        for index in range(1, self.depth + 1):
            x = self.get_submodule(f"act{index}")(self.get_submodule(f"fc{index}")(x))
        return self.get_submodule(f"fc{self.depth + 1}")(x)

    def arrays(self) -> list[tuple[Array, Array]]:
        """Returns weight and bias of each linear layer."""
        layers = [self.get_submodule(f"fc{index}") for index in range(1, self.depth + 2)]
        return [(numpy(layer.weight).copy(), numpy(layer.bias).copy()) for layer in layers]


def numpy(x: Tensor) -> Array:
    return x.detach().numpy()


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise in double precision."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batches(images: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Splits images into uneven batches, with labels that are not used."""
    assert sum(sizes) == len(images)
    return [(part, torch.zeros(len(part), dtype=torch.long)) for part in torch.split(images, list(sizes))]


def convolve(x: Array, layer: nn.Conv2d) -> Array:
    """Convolution with stride 1, as a sum over the positions of the kernel."""
    weight, bias = numpy(layer.weight), numpy(layer.bias)
    (pad, _), side = layer.padding, weight.shape[2]
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((len(x), len(weight), height, width)) + bias[None, :, None, None]
    for i in range(side):
        for j in range(side):
            part = padded[:, :, i : i + height, j : j + width]
            out += np.einsum("bchw,oc->bohw", part, weight[:, :, i, j])
    return out


def normalise(x: Array, norm: nn.BatchNorm2d | nn.BatchNorm1d) -> Array:
    """Batch normalisation in evaluation mode."""
    mean, var, weight, bias = (
        numpy(value).reshape(1, -1, *[1] * (x.ndim - 2))
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)  # type: ignore[arg-type]
    )
    return (x - mean) / np.sqrt(var + norm.eps) * weight + bias


def average_pool(x: Array) -> Array:
    """Average pooling of 2x2 windows."""
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def activations(net: TwoConvolutions, x: Array) -> tuple[Array, Array]:
    """Returns the ReLU outputs of both layers."""
    first = np.maximum(normalise(convolve(x, net.conv1), net.bn1), 0)
    second = np.maximum(normalise(convolve(average_pool(first), net.conv2), net.bn2), 0)
    return first, second


def spike_train(current: Array, theta: Array | float, start: Array | float, shift: Array | float = 0.0) -> Array:
    """Returns the output ``theta s_t`` of soft-reset neurons for the currents ``[T, ...]`` and a constant ``shift``."""
    v = np.zeros(current.shape[1:]) + start
    out = np.zeros(current.shape)
    for t in range(len(current)):
        v = v + current[t] + shift
        out[t] = np.where(v >= theta, theta, 0.0)
        v = v - out[t]
    return out


def constant(current: Array, T: int) -> Array:
    return np.repeat(current[None], T, axis=0)
