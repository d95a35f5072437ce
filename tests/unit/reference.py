"""A step-by-step reference simulator for the tests, and small nets that spike.

Nothing here uses bench.snn.neurons or bench.snn.simulate.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny import TwoConvolutions
from torch import Tensor, nn

from bench.errors import UserError
from bench.nets.architectures import CifarResNet, CifarVGG
from bench.snn.activations import QCFSActivation
from methods.qcfs import QCFS
from methods.relu import ReLU
from methods.training import TrainingModule


class StepNeuron(nn.Module):
    """One layer of IF neurons, called once per time step; records every spike."""

    def __init__(self, theta: Tensor, v_init: float) -> None:
        super().__init__()
        self.theta, self.v_init = theta.detach().clone(), v_init
        self.potential: Tensor | None = None
        self.spikes: list[Tensor] = []

    def forward(self, current: Tensor) -> Tensor:
        before = torch.ones_like(current) * (self.v_init * self.theta) if self.potential is None else self.potential
        charged = before + current
        fires = charged >= self.theta
        self.potential = torch.where(fires, charged - self.theta, charged)
        self.spikes.append(fires)
        return torch.where(fires, self.theta, torch.zeros_like(charged))


def stepped(ann: nn.Module, v_init: float = 0.5) -> tuple[nn.Module, dict[str, StepNeuron]]:
    """Returns a copy of a QCFS net with a :class:`StepNeuron` for each activation, and these neurons by name."""
    snn = copy.deepcopy(ann).eval()
    layers: dict[str, StepNeuron] = {}
    for name, module in ann.named_modules():
        if isinstance(module, QCFSActivation):
            layers[name] = StepNeuron(module.threshold, v_init)
            snn.set_submodule(name, layers[name])
    return snn, layers


def step_by_step(ann: nn.Module, images: Tensor, T: int, v_init: float = 0.5) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs the whole network once per step on the same images, as the papers describe it.

    Returns:
        Logits of each step ``[T, B, classes]`` and the spikes of each layer ``[T, B, ...]`` as booleans.
    """
    snn, layers = stepped(ann, v_init)
    with torch.no_grad():
        logits = [snn(images) for _ in range(T)]
    return torch.stack(logits), {name: torch.stack(layer.spikes) for name, layer in layers.items()}


class PreActivationNet(nn.Module):
    """The first shortcut starts before the first neuron, so its addition sums a constant current and spikes."""

    def __init__(self, width: int = 5, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.bn1, self.act1 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2, self.act2 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn3, self.act3 = nn.BatchNorm2d(width), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(self.act2(self.bn2(self.conv1(self.act1(self.bn1(x))))))
        return self.fc(self.pool(self.act3(self.bn3(x))).flatten(1))


class LinearNet(nn.Module):
    """No convolution, no BN, no shortcut: the smallest net with two layers of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1, self.act1 = nn.Linear(3 * 8 * 8, 12), nn.ReLU()
        self.fc2, self.norm, self.act2 = nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU()
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.norm(self.fc2(self.act1(self.fc1(self.flatten(x)))))))


def resnet20_like() -> nn.Module:
    """cifar_resnet20 with a quarter of its width: identity and convolution shortcuts, 19 activations."""
    return CifarResNet((4, 6, 8), 3, num_classes=7)


def wide_resnet_like() -> nn.Module:
    """cifar_resnet18 with a sixteenth of its width: four stages of two blocks."""
    return CifarResNet((4, 8, 8, 16), 2, num_classes=7)


def vgg_like() -> nn.Module:
    """CifarVGG, with average pooling and with 24 instead of 4096 units in the hidden linear layers."""
    net = CifarVGG(((4, 4), (6,), (8, 8), (8,), (12,)), num_classes=7)
    net.classifier = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 7)
    )
    return net


NETS = {
    "resnet20": resnet20_like,
    "resnet18": wide_resnet_like,
    "vgg": vgg_like,
    "preactivation": PreActivationNet,
    "linear": LinearNet,
}
SIDE = {"vgg": 32, "linear": 8}


def images_for(net: str, batch: int = 3, seed: int = 0) -> Tensor:
    """Normal noise in the image size of ``net``, in double precision."""
    side = SIDE.get(net, 16)
    return torch.randn(batch, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomise(net: nn.Module, seed: int) -> None:
    """Sets weights, biases and BN statistics to random non-trivial values, as if the net had been trained."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(uniform(module.running_mean, -0.5, 0.5))
                module.running_var.copy_(uniform(module.running_var, 0.3, 2.0))
                module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(uniform(module.bias, -0.3, 0.5))
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                # Drawn here instead of in the constructors, so that no test depends on the global generator.
                bound = (6 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(uniform(module.weight, -bound, bound))
                if module.bias is not None:
                    module.bias.copy_(uniform(module.bias, -0.2, 0.2))


def calibrate(net: nn.Module, images: Tensor, quantile: float = 0.9) -> None:
    """Sets each threshold to a quantile of its layer's positive inputs, so that every layer spikes."""

    def at_quantile(activation: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(activation, QCFSActivation)
        positive = inputs[0][inputs[0] > 0].sort().values
        activation.threshold.data.copy_(positive[int(quantile * (len(positive) - 1))])

    hooks = [m.register_forward_pre_hook(at_quantile) for m in net.modules() if isinstance(m, QCFSActivation)]
    with torch.no_grad():
        net.eval()(images)
    for hook in hooks:
        hook.remove()


def trained(net: nn.Module, images: Tensor, L: int = 4, seed: int = 0) -> QCFS:
    """Returns a QCFS model in double precision that looks trained."""
    model = QCFS(net, L=L, image=images.shape[1:]).double().eval()
    randomise(model, seed)
    calibrate(model.net, images)
    return model


def named_model(name: str, L: int = 4) -> tuple[QCFS, Tensor]:
    """Returns one of :data:`NETS` as if trained, and three images for it."""
    images = images_for(name)
    return trained(NETS[name](), images, L), images


def relu_net(pool: nn.Module | None = None, seed: int = 0) -> nn.Module:
    """Two convolutions ready for conversion, in double precision, with non-trivial BN statistics."""
    model = ReLU(TwoConvolutions(pool), max_pool="keep").double().eval()
    randomise(model, seed)
    return model.net


def decayed(model: TrainingModule) -> dict[str, float]:
    """Returns by what fraction weight decay shrinks each parameter in one step of SGD with zero gradients."""
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=model.lr, weight_decay=model.weight_decay)
    before = copy.deepcopy(dict(model.named_parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    sums = {name: (p.detach().abs().sum(), before[name].detach().abs().sum()) for name, p in model.named_parameters()}
    return {name: 1 - (after / start).item() for name, (after, start) in sums.items() if start > 0}


@contextmanager
def refused(pattern: str) -> Iterator[None]:
    """Expects a ``UserError`` with a message of one line that matches ``pattern``."""
    with pytest.raises(UserError, match=pattern) as error:
        yield
    assert "\n" not in str(error.value)


def assert_lively(logits_TBK: Tensor, spikes: dict[str, Tensor]) -> None:
    """Checks that no layer is silent or saturated, because a test on such a net proves nothing."""
    for name, fired in spikes.items():
        assert 0.005 < fired.double().mean() < 0.95, f"{name} is silent or saturated"
    sums = logits_TBK.sum(0)
    assert sums.std(0).min() > 1e-6, "all images get the same logits"
    assert sums.std(1).min() > 1e-6, "all classes get the same logits"
