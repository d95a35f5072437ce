"""Augmentation of whole uint8 batches, with parameters drawn per image from an explicit generator.

The distribution is that of the per-image transforms; working on the batch at once is many times faster, and
the explicit generator makes a batch a function of (seed, epoch, batch index), which is what lets an interrupted
run go on exactly where it would have been, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from datamodules.autoaugment import BatchedAutoAugment


def random_crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Zero-pads by ``padding`` and crops back to the original size at a random place per image.

    Args:
        images: ``[B, C, H, W]``.
        padding: pixels on each side.
        generator: source of the offsets.
    """
    batch, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator)
    padded = F.pad(images, [padding] * 4)
    rows = offsets[0][:, None] + torch.arange(height)
    columns = offsets[1][:, None] + torch.arange(width)
    index = torch.arange(batch)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirrors each image ``[B, C, H, W]`` left to right with probability 1/2."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def cutout(images: Tensor, length: int, generator: Generator) -> Tensor:
    """Sets one square per image to zero (DeVries & Taylor, 2017), its centre uniform over the pixels.

    The square is cut off at the borders, so the hole can be smaller. The zero is that of normalised images
    (``images`` is float ``[B, C, H, W]``, after normalisation), which is the mean colour.

    Args:
        images: ``[B, C, H, W]``.
        length: side of the square in pixels, rounded down to an even number, as in the papers' code.
        generator: source of the centres.
    """
    batch, _, height, width = images.shape
    rows = torch.randint(0, height, (batch, 1), generator=generator)
    columns = torch.randint(0, width, (batch, 1), generator=generator)
    half = length // 2
    in_rows = (torch.arange(height) >= rows - half) & (torch.arange(height) < rows + half)
    in_columns = (torch.arange(width) >= columns - half) & (torch.arange(width) < columns + half)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


class Pipeline:
    """Crop, flip, AutoAugment, normalise, Cutout: the order of the conversion papers.

    Args:
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        crop_padding: zero padding before the random crop; 0 for none.
        flip: mirror with probability 1/2.
        autoaugment: the CIFAR-10 policy, as the papers' code has it.
        cutout_length: side of the hole; 0 for none.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int = 0,
        flip: bool = False,
        autoaugment: bool = False,
        cutout_length: int = 0,
    ) -> None:
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)
        self.crop_padding, self.flip, self.cutout_length = crop_padding, flip, cutout_length
        self.autoaugment = BatchedAutoAugment() if autoaugment else None

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Turns uint8 ``[B, C, H, W]`` into float; augments only if a generator is given."""
        if generator is None:
            return self.normalise(images)
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, generator)
        if self.flip:
            images = random_flip(images, generator)
        if self.autoaugment is not None:
            images = self.autoaugment.apply(images, generator)
        result = self.normalise(images)
        return cutout(result, self.cutout_length, generator) if self.cutout_length else result

    def normalise(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std``, channels last in memory."""
        return images.to(memory_format=torch.channels_last).float().div(255).sub_(self.mean).div_(self.std)
