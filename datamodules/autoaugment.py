"""AutoAugment's CIFAR-10 policy (Cubuk et al., CVPR 2019) as the conversion papers' code has it, for uint8 batches.

The code that QCFS, COS, SRP and NQ share applies the policy to PIL images, and in six details not as torchvision does:
what comes in from outside is grey (128), not black; shears interpolate bicubically; translations are rounded, not cut
off; rotations have no random sign; solarisation starts at 256; and one of the 50 probabilities is 0.8 instead of 0.6.
Here it is as they have it, with PIL's arithmetic for geometry and torchvision's for colours, which rounds by at most
one level otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torchvision.transforms import AutoAugmentPolicy, v2

GREY = 128
# Of torchvision's table and of the papers' code.
THEIRS = (("Equalize", 0.2, None), ("Equalize", 0.6, None))
OURS = (("Equalize", 0.2, None), ("Equalize", 0.8, None))


def affine(images: Tensor, x_in: tuple[float, float, float], y_in: tuple[float, float, float]) -> Tensor:
    """Takes the pixel nearest to ``(a x + b y + c, d x + e y + f)``, or grey; ``(x, y)`` are centres of pixels.

    Args:
        images: ``[..., H, W]``, uint8.
        x_in: a, b, c.
        y_in: d, e, f.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, dtype=torch.float64) + 0.5
    y = torch.arange(height, dtype=torch.float64)[:, None] + 0.5
    columns = (x_in[0] * x + x_in[1] * y + x_in[2]).floor().long()
    rows = (y_in[0] * x + y_in[1] * y + y_in[2]).floor().long()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    taken = images[..., rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return torch.where(inside, taken, GREY).to(images.dtype)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Turns images ``[..., H, W]`` counter-clockwise about their centres."""
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre_x, centre_y = width / 2, height / 2
    return affine(
        images,
        (cos, -sin, centre_x - cos * centre_x + sin * centre_y),
        (sin, cos, centre_y - sin * centre_x - cos * centre_y),
    )


def shear_x(images: Tensor, factor: float) -> Tensor:
    """Moves each row of ``[..., H, W]`` by ``-factor`` times its place, by cubic convolution (PIL's, with a = -1)."""
    height, width = images.shape[-2:]
    x = torch.arange(width, dtype=torch.float64) + 0.5
    at = x + factor * (torch.arange(height, dtype=torch.float64)[:, None] + 0.5)
    inside = (at >= 0) & (at < width)
    first = (at - 0.5).floor()
    d = at - 0.5 - first
    rows = torch.arange(height)[:, None]
    taps = [images[..., rows, (first.long() + k).clamp(0, width - 1)].double() for k in (-1, 0, 1, 2)]
    weights = (
        -d + 2 * d**2 - d**3,
        1 - 2 * d**2 + d**3,
        d + d**2 - d**3,
        -(d**2) + d**3,
    )
    mixed = torch.stack([weight * tap for weight, tap in zip(weights, taps, strict=True)]).sum(0)
    return torch.where(inside, mixed.clamp(0, 255), GREY).to(images.dtype)


def shear_y(images: Tensor, factor: float) -> Tensor:
    """As :func:`shear_x`, along columns."""
    return shear_x(images.mT, factor).mT


def translate_x(images: Tensor, share: float) -> Tensor:
    """Takes each pixel from ``share`` of the width to its right."""
    return affine(images, (1, 0, share * images.shape[-1]), (0, 1, 0))


def translate_y(images: Tensor, share: float) -> Tensor:
    """As :func:`translate_x`, along columns."""
    return affine(images, (1, 0, 0), (0, 1, share * images.shape[-2]))


# Operation, its magnitude at level 9, and whether a coin decides the sign.
GEOMETRY: dict[str, tuple[Callable[[Tensor, float], Tensor], float, bool]] = {
    "ShearX": (shear_x, 0.3, True),
    "ShearY": (shear_y, 0.3, True),
    "TranslateX": (translate_x, 150 / 331, True),
    "TranslateY": (translate_y, 150 / 331, True),
    "Rotate": (rotate, 30.0, False),
}


class BatchedAutoAugment(v2.AutoAugment):  # type: ignore[misc]  # torchvision has no types
    """The policy with one draw for each image of a batch.

    Images that drew the same operation, level and sign are transformed together, whichever of the 25 pairs of
    operations it came from.
    """

    def __init__(self) -> None:
        super().__init__(AutoAugmentPolicy.CIFAR10)
        table = self._get_policies(AutoAugmentPolicy.CIFAR10)
        self.pairs = [OURS if pair == THEIRS else pair for pair in table]
        # Every operation with its level, once; by place in a pair, and pair, which of them it is and how likely.
        self.operations: list[tuple[str, int | None]] = sorted(
            {(name, level) for pair in self.pairs for name, _, level in pair}, key=str
        )
        self._signed = torch.tensor([self.signed(name) for name, _ in self.operations])
        places = list(zip(*self.pairs, strict=True))
        number = {operation: number for number, operation in enumerate(self.operations)}
        self._number = torch.tensor([[number[name, level] for name, _, level in place] for place in places])
        self._chance = torch.tensor([[probability for _, probability, _ in place] for place in places])

    def apply(self, images: Tensor, generator: Generator) -> Tensor:
        """Augments uint8 images ``[B, 3, H, W]``; returns a new tensor."""
        images = images.clone()
        batch = len(images)
        policies = torch.randint(len(self.pairs), (batch,), generator=generator)
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

    def signed(self, name: str) -> bool:
        """Whether a coin decides the sign of an operation's magnitude."""
        return GEOMETRY[name][2] if name in GEOMETRY else bool(self._AUGMENTATION_SPACE[name][1])

    def _operate(self, images: Tensor, name: str, level: int | None, negative: bool) -> Tensor:
        sign = -1.0 if negative and self.signed(name) else 1.0
        if name in GEOMETRY:
            assert level is not None
            function, largest, _ = GEOMETRY[name]
            return function(images, sign * largest * level / 9)
        if name == "Solarize":
            assert level is not None
            magnitude = 256 / 255 * (1 - level / 9)  # of white
        else:
            magnitudes = self._AUGMENTATION_SPACE[name][0](10, *images.shape[-2:])
            magnitude = sign * float(magnitudes[level]) if magnitudes is not None else 0.0
        result: Tensor = self._apply_image_or_video_transform(
            images, name, magnitude, interpolation=self.interpolation, fill=self._fill
        )
        return result
