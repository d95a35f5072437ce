"""CIFAR-10 and CIFAR-100 with the augmentation of the conversion papers."""

from __future__ import annotations

import os
import pickle
import shutil
import tarfile
from typing import Any, ClassVar

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from bench.errors import UserError
from bench.files import expand, lock
from datamodules.augment import Pipeline
from datamodules.base import ImageDataModule
from datamodules.splits import Images


class CIFARDataModule(ImageDataModule):
    """Either CIFAR (Krizhevsky, 2009), from disk or by torchvision's download, checked against its checksums.

    The augmentation of the papers is a random crop with padding 4, mirroring, the AutoAugment CIFAR-10 policy (on
    CIFAR-100 as well), normalisation and then one Cutout hole of zeros.

    Args:
        root: folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``; default ``$BENCH_DATA_DIR``, else
            ``data``.
        autoaugment: the CIFAR-10 policy of AutoAugment, with the operations of the papers' code.
        cutout: side of the Cutout hole in pixels, rounded down to an even number; 0 for none. The papers
            use 16, some 8 on CIFAR-100.
        **kwargs: as for :class:`ImageDataModule`.

    Attributes:
        source: torchvision's class, which knows files and checksums. Its CIFAR100 is a subclass of its CIFAR10.
        mean: per channel, by default as in the papers' code.
        std: per channel, by default as in the papers' code.
    """

    roles = ImageDataModule.roles | {"root": "local"}
    num_test: ClassVar[int] = 10_000
    source: ClassVar[type[CIFAR10]]

    def __init__(self, root: str | None = None, autoaugment: bool = True, cutout: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= cutout <= self.input_shape[1]:
            raise UserError(f"--data.cutout {cutout}: must be between 0 and {self.input_shape[1]}")
        self.root = expand(root or os.environ.get("BENCH_DATA_DIR") or "data")
        self.autoaugment, self.cutout = autoaugment, cutout

    def prepare_data(self) -> None:
        """Downloads the files once per node if they are missing."""
        folder = self.root / self.source.base_folder
        if folder.exists():
            return
        with lock(self.root / f".{self.name}.lock", wait=True):
            if folder.exists():  # another process has done it while this one waited
                return
            # Elsewhere first: a folder with half of the files would be taken for the whole.
            work = self.root / f".download-{self.name}"
            shutil.rmtree(work, ignore_errors=True)
            try:
                work.mkdir(parents=True)
                archive = self.root / self.source.filename
                if archive.exists():
                    (work / archive.name).symlink_to(archive.resolve())
                self.source(str(work), download=True)
                os.replace(work / self.source.base_folder, folder)
            except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
                raise UserError(
                    f"{self.name} is not in {self.root} and could not be downloaded ({error}); put "
                    f"{self.source.base_folder}/ there, or give its folder with --data.root or $BENCH_DATA_DIR"
                ) from error
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def load(self) -> tuple[Images, Images]:
        """Reads both splits, after checking every file's MD5."""
        self.prepare_data()
        return self._read(train=True), self._read(train=False)

    def _read(self, train: bool) -> Images:
        try:
            # torchvision checks the MD5 of each file before it unpickles anything.
            data = self.source(str(self.root), train=train)
        except PermissionError as error:
            raise UserError(f"{error.filename}: cannot be read (permission denied)") from error
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise UserError(
                f"{self.root / self.source.base_folder}: files are missing or damaged (their MD5 differs); "
                "remove the folder to download it again"
            ) from error
        return Images(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets))

    def pipeline(self) -> Pipeline:
        """The papers' order: crop, flip, AutoAugment, normalise, Cutout."""
        return Pipeline(self.mean, self.std, 4, True, self.autoaugment, self.cutout)


class CIFAR10DataModule(CIFARDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes."""

    name = "cifar10"
    num_classes: ClassVar[int] = 10
    source: ClassVar[type[CIFAR10]] = CIFAR10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2023, 0.1994, 0.2010)


class CIFAR100DataModule(CIFARDataModule):
    """CIFAR-100 with its 100 fine labels: 50,000 training and 10,000 test images."""

    name = "cifar100"
    num_classes: ClassVar[int] = 100
    source: ClassVar[type[CIFAR10]] = CIFAR100
    mean = (129.3 / 255, 124.1 / 255, 112.4 / 255)
    std = (68.2 / 255, 65.4 / 255, 70.4 / 255)
