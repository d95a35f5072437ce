"""The conversion papers' networks, registered with timm; every other architecture is timm's own.

The names are unambiguous on purpose: the literature calls at least three different nets "ResNet-20".
A data module declares an ``arch_family`` ("cifar" for 32x32 inputs). A short name is looked up in that
family first, so ``--arch resnet18`` means ``cifar_resnet18`` on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import timm
import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from bench.errors import UserError, nearest
from bench.registry.nets import ARCHITECTURES
from bench.snn.calibration import watching

TIMM_PREFIX = "timm/"


class PaddedShortcut(nn.Module):
    """Takes every second pixel and adds channels of zeros on both sides (option A of He et al., 2016, section 4.2).

    It has no weights and converts exactly: a channel of zeros never spikes.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, added = stride, channels - in_channels
        self.padding = (0, 0, 0, 0, added // 2, added - added // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C_in, H, W]`` to ``[B, C, H / stride, W / stride]``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BN.

    If the shape changes, the shortcut is a 1x1 convolution with BN (option B) or has no weights (option A).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, option: Literal["A", "B"] = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if (stride != 1 or in_channels != channels) and option == "A":
            self.shortcut = PaddedShortcut(in_channels, channels, stride)
        elif stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C_in, H, W]`` to ``[B, C, H / stride, W / stride]``."""
        out: Tensor = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)) + self.shortcut(x))
        return out


class CifarResNet(nn.Module):
    """ResNet with a 3x3 stride-1 stem and no max-pool (He et al., 2016, section 4.2).

    Weights start from PyTorch's defaults, as in the code of QCFS, COS and SRP.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int | Sequence[int],
        num_classes: int,
        option: Literal["A", "B"] = "B",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU()
        stages: list[nn.Module] = []
        previous = widths[0]
        depths = [blocks] * len(widths) if isinstance(blocks, int) else blocks
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stage = [BasicBlock(previous, width, 1 if index == 0 else 2, option)]
            stage += [BasicBlock(width, width, stride=1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*stage))
            previous = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[B, 3, H, W]`` to logits ``[B, num_classes]``."""
        x = self.act1(self.bn1(self.conv1(x)))
        logits: Tensor = self.fc(self.flatten(self.pool(self.stages(x))))
        return logits


class CifarVGG(nn.Module):
    """VGG with BN, average pooling after each stage and two hidden linear layers of 4096.

    It has average pooling instead of the original's max-pooling, because the maximum of spike trains is not
    the spike train of the maximum. The conversion papers train with average pooling from the start.
    """

    def __init__(self, stages: Sequence[Sequence[int]], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        previous = 3
        for stage in stages:
            for width in stage:
                layers += [nn.Conv2d(previous, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
                previous = width
            layers.append(nn.AvgPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(previous, 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        )
        for module in self.modules():  # as in the QCFS authors' VGG
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[B, 3, 32, 32]`` to logits ``[B, num_classes]``."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


Make = TypeVar("Make", bound=Callable[..., nn.Module])


def registered(make: Make) -> Make:
    """Calls timm's ``register_model``, which has no type annotations.

    timm also passes a pretrained configuration, which nets without published weights do not need.
    """
    register_model(make)
    return make


# Widths of the stages, blocks in each, and the shortcuts: with weights (option B), as in the conversion papers, or
# without (option A), as He et al. (2016) have them for CIFAR. cifar_resnet34 is the papers' net for ImageNet: a 3x3
# stem of stride 1 and no max-pooling, also at 224x224. The net with the 7x7 stem and pooling is timm's resnet34; it has
# about a sixteenth of the operations there and one point less accuracy as an ANN. cifar_resnet20_snnc is that of the
# code of SNNC (yhhhli/SNN_Calibration @ e21e297).
NARROW, WIDE = (16, 32, 64), (64, 128, 256, 512)
RESNETS: dict[str, tuple[tuple[int, ...], int | tuple[int, ...], Literal["A", "B"]]] = {
    "cifar_resnet18": (WIDE, 2, "B"),
    "cifar_resnet34": (WIDE, (3, 4, 6, 3), "B"),
    "cifar_resnet20": (NARROW, 3, "B"),
    "cifar_resnet32": (NARROW, 5, "B"),
    "cifar_resnet44": (NARROW, 7, "B"),
    "cifar_resnet56": (NARROW, 9, "B"),
    "cifar_resnet20a": (NARROW, 3, "A"),
    "cifar_resnet32a": (NARROW, 5, "A"),
    "cifar_resnet44a": (NARROW, 7, "A"),
    "cifar_resnet56a": (NARROW, 9, "A"),
    "cifar_resnet20_snnc": ((64, 128, 256), 3, "B"),
}


def _resnet(name: str) -> Callable[..., CifarResNet]:
    widths, blocks, option = RESNETS[name]

    def build(num_classes: int = 10, **_: object) -> CifarResNet:
        return CifarResNet(widths, blocks, num_classes, option)

    build.__name__, build.__module__ = name, __name__  # by which timm knows it
    return build


for resnet in RESNETS:
    registered(_resnet(resnet))


@registered
def cifar_vgg16(num_classes: int = 10, **_: object) -> CifarVGG:
    """VGG-16 of the conversion papers: 13 convolutions, 2 hidden linear layers, 15 activations."""
    stages = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
    return CifarVGG(stages, num_classes)


def resolve(name: str, family: str) -> str:
    """Converts the name that a user types to a name in timm's registry.

    Args:
        name: a short alias of the family (``resnet20``), a full name of ours (``cifar_resnet20``), or
            ``timm/<name>`` for any net of timm.
        family: the data module's ``arch_family``.

    Returns:
        A name that :func:`create` takes.

    Raises:
        UserError: the name is unknown; the message suggests the most similar one.
    """
    if name.startswith(TIMM_PREFIX):
        bare = name.removeprefix(TIMM_PREFIX)
        if "." in bare:
            raise UserError(
                f"--arch {name}: names pretrained weights; leave out everything from the dot on, and to convert these "
                f"weights give --ckpt {name}"
            )
        if timm.is_model(bare):
            return bare
        raise UserError(f"--arch {name}: not found in timm{nearest(bare, timm.list_models())}")
    if family != "cifar" and f"cifar_{name}" in ARCHITECTURES:
        # Results depend on the stem, so neither net is chosen silently.
        timms = f" or {TIMM_PREFIX}{name} (timm's own)" if timm.is_model(name) else ""
        raise UserError(f"--arch {name}: give cifar_{name} (for 32x32, or stem of stride 1 without max-pool){timms}")
    for candidate in (f"{family}_{name}", name):
        if candidate in ARCHITECTURES:
            return candidate
    short = [ours.removeprefix(f"{family}_") for ours in ARCHITECTURES]
    raise UserError(
        f"--arch {name}: unknown architecture; choose from {', '.join(short)} or timm/<name>{nearest(name, short)}"
    )


def typed(name: str) -> str:
    """Returns what a user types for a registered net, for any data set; the inverse of :func:`resolve`."""
    return name if name in ARCHITECTURES else f"{TIMM_PREFIX}{name}"


def create(name: str, num_classes: int) -> nn.Module:
    """Builds a registered net; the caller seeds its random weights."""
    net: nn.Module = timm.create_model(name, num_classes=num_classes)
    return net


def count_parameters(net: nn.Module) -> int:
    """Counts the weights of convolutions, linear layers and normalisation, without thresholds of activations."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
    return sum(p.numel() for m in net.modules() if isinstance(m, kinds) for p in m.parameters(recurse=False))


def count_macs(net: nn.Module, input_shape: Sequence[int]) -> int:
    """Counts the multiply-accumulates of one image in the convolutions and linear layers of ``net``.

    Args:
        net: a network in any mode; it is not changed.
        input_shape: ``(C, H, W)`` of one image.
    """
    total = 0

    def count(name: str, _: Tensor, output: Tensor) -> None:
        nonlocal total
        module = net.get_submodule(name)
        assert isinstance(module.weight, Tensor)
        positions = output[0, 0].numel() if isinstance(module, nn.modules.conv._ConvNd) else 1
        total += module.weight.numel() * positions

    with watching(net, count, (nn.modules.conv._ConvNd, nn.Linear)):
        net(torch.zeros(1, *input_shape, device=next(net.parameters()).device))
    return total
