"""scikit-learn's handwritten digits, a data set that needs no download."""

from __future__ import annotations

from typing import ClassVar

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from datamodules.augment import Pipeline
from datamodules.base import SPLIT_SEED, ImageDataModule
from datamodules.splits import Images


class DigitsDataModule(ImageDataModule):
    """1,797 digits of 8x8 pixels and 17 grey levels, shown to the networks as 3x32x32.

    Each pixel becomes a 4x4 block in three equal channels. 360 images, stratified and fixed, are the test set.
    scikit-learn ships the test part of the UCI "Optical Recognition of Handwritten Digits" set
    (Alpaydin & Kaynak, 1998, https://doi.org/10.24432/C50P49).
    """

    name = "digits"
    num_classes: ClassVar[int] = 10
    num_test: ClassVar[int] = 360
    mean = (0.305,) * 3
    std = (0.376,) * 3

    def load(self) -> tuple[Images, Images]:
        """Splits the bundled images; the same split for every run."""
        bunch = load_digits()
        pixels = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)
        images = pixels.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].repeat(1, 3, 1, 1)
        everything = Images(images, torch.from_numpy(bunch.target).long())
        train, test = train_test_split(
            range(len(everything)), test_size=self.num_test, stratify=bunch.target, random_state=SPLIT_SEED
        )
        return everything.take(torch.tensor(sorted(train))), everything.take(torch.tensor(sorted(test)))

    def pipeline(self) -> Pipeline:
        """A shift by at most two pixels, half a pixel of the 8x8 original; digits are not mirrored."""
        return Pipeline(self.mean, self.std, crop_padding=2)
