"""Measures an imported net with several normalisations, to check that it was imported correctly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from bench.run.build import Trained
from bench.snn.precision import full_precision
from datamodules.base import ImageDataModule


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, for images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def options(self) -> str:
        """Formats it as options of ``bench import``."""
        return f"--mean {' '.join(map(repr, self.mean))} --std {' '.join(map(repr, self.std))}"


# Normalisations in common use for small images and ImageNet.
USUAL = (
    Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # CIFAR-10, std averaged over images
    Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),  # CIFAR-10, std over all pixels
    Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),  # CIFAR-100
    Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
    Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # to [-1, 1]
    Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # none
)
# Chosen here: enough to tell normalisations apart, seconds on a CPU.
TRAINING_IMAGES = 1000


def accuracy(net: Trained, images: int) -> tuple[float, int]:
    """Returns top-1 of the ANN on the first evaluation images, as a fraction, and the number of these images."""
    return _accuracy(net, net.datamodule.first_evaluated(images))


def best_normalisation(net: Trained) -> tuple[Normalisation, float]:
    """Finds the normalisation with the best accuracy on training images: a usual one, the net's or the data set's.

    Returns:
        The normalisation, and its top-1 on 1,000 training images without augmentation, as a fraction.
    """
    data = net.datamodule
    own, default = Normalisation(data.mean, data.std), Normalisation(type(data).mean, type(data).std)
    size = min(TRAINING_IMAGES, len(data.split("train")))
    plain = [(_denormalised(x, data), labels) for x, labels in data.calibration_dataloader(size)]
    found = {}
    for one in dict.fromkeys((own, default, *USUAL)):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in one)
        found[one] = _accuracy(net, [((x - mean) / std, labels) for x, labels in plain])[0]
    best = max(found, key=lambda one: found[one])
    return best, found[best]


def _denormalised(images: Tensor, data: ImageDataModule) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return images * std + mean


@torch.no_grad()
def _accuracy(net: Trained, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, int]:
    model, right, seen = net.model.float().eval(), 0, 0
    with full_precision():
        for images, labels in batches:
            right += int((model(images).argmax(1) == labels).sum())
            seen += len(labels)
    return right / seen, seen
