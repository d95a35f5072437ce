"""Images of one split, in memory or elsewhere, and how a batch of them is fetched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset

Draw = tuple[int, list[int]]


class Split(Protocol):
    """Images of one split, wherever they are, with their labels ``[N]``."""

    @property
    def labels(self) -> Tensor:
        """Class numbers, int64 ``[N]``."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> Self:
        """The images at ``rows``."""

    def fetch(self, rows: Tensor, training: bool) -> tuple[Tensor | list[Image.Image], Tensor]:
        """A batch as the data module's pipeline takes it, and its labels."""

    def fingerprint(self) -> str:
        """SHA-256 of images and labels, in order."""


class Transform(Protocol):
    """Augmentation and normalisation of a fetched batch."""

    def __call__(self, images: Any, generator: Generator | None = None) -> Tensor:
        """Float ``[B, 3, H, W]``; augmented only if a generator is given."""


@dataclass(frozen=True)
class Images:
    """Images in memory, uint8 ``[N, 3, H, W]``, and their labels ``[N]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Self:
        """The images at ``rows``."""
        return type(self)(self.images[rows], self.labels[rows])

    def fetch(self, rows: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Images uint8 ``[B, 3, H, W]`` and labels ``[B]``."""
        return self.images[rows], self.labels[rows]

    def fingerprint(self) -> str:
        """SHA-256 of the images' bytes and the labels."""
        digest = hashlib.sha256(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.to(torch.int64).numpy().tobytes())
        return digest.hexdigest()


class BatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images fetched and augmented a batch at a time.

    An item is named by (random seed of the batch, rows); the seed -1 asks for no augmentation.
    """

    def __init__(self, data: Split, pipeline: Transform) -> None:
        self.data, self.pipeline = data, pipeline

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        seed, rows = draw
        generator = Generator().manual_seed(seed) if seed >= 0 else None
        images, labels = self.data.fetch(torch.tensor(rows), training=seed >= 0)
        return self.pipeline(images, generator), labels
