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
from torchvision.transforms import AutoAugmentPolicy, v2


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
        length: side of the square in pixels.
        generator: source of the centres.
    """
    batch, _, height, width = images.shape
    rows = torch.randint(0, height, (batch, 1), generator=generator)
    columns = torch.randint(0, width, (batch, 1), generator=generator)
    half = length // 2
    in_rows = (torch.arange(height) >= rows - half) & (torch.arange(height) < rows + half)
    in_columns = (torch.arange(width) >= columns - half) & (torch.arange(width) < columns + half)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


class BatchedAutoAugment(v2.AutoAugment):
    """torchvision's AutoAugment (Cubuk et al., CVPR 2019) with one draw per image of a batch.

    The policy table, magnitudes and operations are torchvision's; images that drew the same operation, magnitude and
    sign are transformed together, whichever of the 25 pairs of operations it came from. The QCFS authors' released code
    differs from torchvision in details: it fills with grey (128) instead of black, shears with bicubic interpolation,
    and rotates without a random sign.
    """

    def __init__(self) -> None:
        super().__init__(AutoAugmentPolicy.CIFAR10)
        # Every operation with its level, once; by place in a pair, and pair, which of them it is and how likely.
        self.operations: list[tuple[str, int | None]] = sorted(
            {(name, level) for pair in self._policies for name, _, level in pair}, key=str
        )
        self._signed = torch.tensor([self._AUGMENTATION_SPACE[name][1] for name, _ in self.operations])
        places = list(zip(*self._policies, strict=True))
        number = {operation: number for number, operation in enumerate(self.operations)}
        self._number = torch.tensor([[number[name, level] for name, _, level in place] for place in places])
        self._chance = torch.tensor([[probability for _, probability, _ in place] for place in places])

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Augments uint8 images ``[B, 3, H, W]``; returns a new tensor."""
        images = images.clone()
        batch = len(images)
        policies = torch.randint(len(self._policies), (batch,), generator=generator)
        chances = torch.rand(batch, 2, generator=generator)
        negative = torch.rand(batch, 2, generator=generator) < 0.5
        for place in (0, 1):
            number = self._number[place, policies]
            kind = 2 * number + (negative[:, place] & self._signed[number])
            kind[chances[:, place] >= self._chance[place, policies]] = -1
            for drawn in sorted({*kind.tolist()} - {-1}):
                rows = (kind == drawn).nonzero()[:, 0]
                name, level = self.operations[drawn // 2]
                images[rows] = self._operate(images[rows], name, level, negative=drawn % 2 == 1)
        return images

    def _operate(self, images: Tensor, name: str, level: int | None, negative: bool) -> Tensor:
        magnitudes_of, signed = self._AUGMENTATION_SPACE[name]
        magnitudes = magnitudes_of(10, *images.shape[-2:])
        magnitude = float(magnitudes[level]) if magnitudes is not None else 0.0
        if signed and negative:
            magnitude = -magnitude
        result: Tensor = self._apply_image_or_video_transform(
            images, name, magnitude, interpolation=self.interpolation, fill=self._fill
        )
        return result


class Pipeline:
    """Crop, flip, AutoAugment, normalise, Cutout: the order of the conversion papers.

    Args:
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        crop_padding: zero padding before the random crop; 0 for none.
        flip: mirror with probability 1/2.
        autoaugment: the CIFAR-10 policy.
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
        """Turns uint8 ``[B, C, H, W]`` into float; augments only where a generator is given."""
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
