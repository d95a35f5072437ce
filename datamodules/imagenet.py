"""ImageNet (ILSVRC2012) with the transforms of the conversion papers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf

from bench.errors import UserError
from bench.files import expand
from datamodules.augment import Pipeline
from datamodules.base import ImageDataModule, cores
from datamodules.imagefiles import NAMED, Check, ImageFiles
from datamodules.imagenet_layout import read_split, standard_wnids


class Crops:
    """The papers' crops: in training at random, mirrored at random; in evaluation the centre of the resized image.

    Args:
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        color_jitter: brightness, contrast and saturation by up to 0.2, hue by up to 0.1, as QCFS has it.
        resize: shorter side of an evaluation image before its centre is taken, in pixels.
        interpolation: how an evaluation image is resized.
    """

    size = 224

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        color_jitter: bool = False,
        resize: int = 256,
        interpolation: str = "bilinear",
    ) -> None:
        jitter = [v2.ColorJitter(0.2, 0.2, 0.2, 0.1)] * color_jitter
        self.train = v2.Compose([v2.RandomResizedCrop(self.size), *jitter, v2.RandomHorizontalFlip()])
        self.test = v2.Compose([v2.Resize(resize, InterpolationMode(interpolation)), v2.CenterCrop(self.size)])
        self.normalise = Pipeline(mean, std).normalise

    def __call__(self, images: list[Image.Image], generator: Generator | None = None) -> Tensor:
        """RGB images of any size to float ``[B, 3, 224, 224]``."""
        if generator is None:
            return self._stack(self.test, images)
        # torchvision draws from the global generator: lent to it, so that a batch depends on its own seed alone.
        # torch.manual_seed would seed the accelerator too, whose draws (dropout, noise) are not ours to touch.
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(generator.initial_seed())
        try:
            return self._stack(self.train, images)
        finally:
            torch.default_generator.set_state(before)

    def _stack(self, transform: v2.Compose, images: list[Image.Image]) -> Tensor:
        return self.normalise(torch.stack([tvf.pil_to_tensor(transform(image)) for image in images]))


class ImageNetDataModule(ImageDataModule):
    """ImageNet (Russakovsky et al., 2015): 1,281,167 training and 50,000 validation images of 1,000 classes.

    The validation images are the test set, as in every paper. Found in ``root`` are ``train/<wnid>/`` and
    ``val/<wnid>/``; or a flat ``val/`` with a list of its classes (``ILSVRC2012_validation_ground_truth.txt`` and
    ``meta.mat`` of the development kit, or a text file of image and wnid); or the ``ILSVRC2012_*.tar`` archives, which
    are extracted there once.

    Args:
        root: folder of the data set; default ``$BENCH_DATA_DIR/imagenet``, else ``data/imagenet``.
        color_jitter: as the QCFS authors augment, beside crops and mirroring.
        eval_resize: shorter side of an evaluation image before its centre is taken, in pixels; default 256 as in the
            papers, and with ``--ckpt timm`` as timm has it for the weights at the training size (``crop_pct`` of its
            ``default_cfg``, not ``test_crop_pct``).
        eval_interpolation: how an evaluation image is resized; default bilinear, and with ``--ckpt timm`` likewise.
        check: what is looked at of the evaluated images, and before a training of its images: ``quick`` the ends of
            each file, ``full`` every file decoded, or ``none``. A calibration decodes what it reads.
        partial: take a set of fewer classes or images than the whole; such a run is ``limited`` and never ranked.
        num_workers: loader processes; default one for each core of this process, at most 16.
        **kwargs: as for :class:`ImageDataModule`.
    """

    roles = ImageDataModule.roles | {
        "root": "local",
        "check": "local",
        "partial": "evaluation",
        "eval_resize": "evaluation",
        "eval_interpolation": "evaluation",
    }
    name = "imagenet"
    arch_family: ClassVar[str] = "imagenet"
    num_classes: ClassVar[int] = 1000
    input_shape: ClassVar[tuple[int, int, int]] = (3, Crops.size, Crops.size)
    num_train: ClassVar[int] = 1_281_167
    num_test: ClassVar[int] = 50_000
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str | None = None,
        color_jitter: bool = False,
        eval_resize: int | None = None,
        eval_interpolation: Literal["bilinear", "bicubic"] | None = None,
        check: Check = "quick",
        partial: bool = False,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_workers=min(16, cores()) if num_workers is None else num_workers, **kwargs)
        self.root = expand(root or Path(os.environ.get("BENCH_DATA_DIR") or "data") / "imagenet")
        self.color_jitter, self.check, self.partial = color_jitter, check, partial
        if eval_resize is not None and eval_resize < Crops.size:
            raise UserError(f"--data.eval_resize {eval_resize}: must be at least {Crops.size}, the size of the crop")
        self.eval_resize, self.eval_interpolation = eval_resize or 256, eval_interpolation or "bilinear"
        self._checked: set[str] = set()
        self._replaced = 0

    def load(self) -> tuple[ImageFiles, ImageFiles]:
        """Lists both splits, and counts classes and images."""
        wnids = standard_wnids()
        train, test = (read_split(self.root, name, wnids) for name in ("train", "val"))
        self._count("train", train, self.num_train)
        self._count("val", test, self.num_test)
        untrained = np.setdiff1d(test.labels.numpy(), train.labels.numpy())
        if len(untrained) and getattr(rank_zero_only, "rank", 0) == 0:
            named = ", ".join(name for name, number in wnids.items() if number in untrained[:NAMED])
            print(f"note: {self.root / 'val'}: {len(untrained)} of its classes have no training image, such as {named}")
        return train, test

    def split(self, name: str) -> ImageFiles:
        """The image files called ``train``, ``val`` or ``test``."""
        part = super().split(name)
        assert isinstance(part, ImageFiles)
        return part

    def setup(self, stage: str | None = None) -> None:
        """Looks at the evaluated images as well, which every command reads."""
        super().setup(stage)
        self._look_at(self.eval_split)

    def check_training_files(self) -> None:
        """Looks at those of the training and of the validation split."""
        for name in ("train", "val"):
            self._look_at(name)

    def _look_at(self, name: str) -> None:
        # Once, and not by each of several processes on the same files.
        if name in self._checked or getattr(rank_zero_only, "rank", 0) != 0:
            return
        self._checked.add(name)
        modes = self.split(name).check(self.check)
        if modes and self.check == "full":
            kinds = ", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())
            print(f"imagenet: {modes.total():,} {name} images decoded ({kinds}); all are shown as RGB", flush=True)

    def _count(self, name: str, files: ImageFiles, expected: int) -> None:
        classes = len(np.unique(files.labels.numpy()))
        if (classes, len(files)) == (self.num_classes, expected):
            return
        found = f"{self.root / name}: found {len(files):,} images of {classes:,} classes"
        if self.partial and len(files):
            return
        raise UserError(
            f"imagenet: {found}, and the set has {expected:,} of {self.num_classes:,}; complete it, or train on what "
            "is there (fit --data.partial true, never ranked)"
        )

    def pipeline(self) -> Crops:
        """Random resized crop and mirroring; in evaluation the centre crop."""
        return Crops(self.mean, self.std, self.color_jitter, self.eval_resize, self.eval_interpolation)

    @property
    def limited_training(self) -> bool:
        """True if the set is incomplete or damaged images were replaced."""
        here = int(self.split("train").replacements)
        return super().limited_training or self.partial or max(self._replaced, here) > 0

    def state_dict(self) -> dict[str, object]:
        """Nothing; but Lightning asks all processes at each checkpoint, and what each has replaced is added up.

        The last checkpoint is written after the last epoch, so the record knows of all as well.
        """
        if self.trainer is not None:
            strategy = self.trainer.strategy
            here = self.split("train").replacements.clone().to(strategy.root_device)
            self._replaced = int(strategy.reduce(here, reduce_op="sum"))
        return {}
