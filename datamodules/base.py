"""What every data module shares: splits, subsets, exact resumption, calibration images."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import ClassVar, Literal

import pytorch_lightning as pl
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from bench.errors import UserError
from bench.snn.calibration import CALIBRATION_BATCH
from datamodules.sampler import BatchSampler
from datamodules.splits import BatchDataset, Split, Transform

# The held-out part of the training set must be the same for every seed, or results of two seeds would differ by
# their split as well; any constant serves.
SPLIT_SEED = 20220303
Role = Literal["evaluation", "local"]
# The options that a trained net decides: whoever converts or evaluates it shows it images prepared like its own.
NORMALISATION = ("mean", "std")
# Loader processes beside a GPU. Chosen here: the papers' augmentation has about 12 times the rate at which two cores
# train ResNet-20 (docs/performance.md), which is less than what a GPU takes.
WORKERS = 4


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ImageDataModule(pl.LightningDataModule):
    """Base of the data modules.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: images per evaluation step and process.
        num_workers: loader processes; 0 prepares batches in the training process. Default: 0 on a CPU; with a GPU, one
            for each core of this process, at most 4.
        last_batch: ``keep`` trains on the last, incomplete batch of an epoch as well, as the papers' code does, unless
            it has one image for each process or does not divide over them; ``drop`` leaves it out.
        subset: use only the first N images of a fixed permutation of the training and of the test set. A run with
            a subset is marked ``limited`` and never ranked.
        val_split: number of training images held out (the same for each seed) for validation and for choosing settings.
        val_augment: augment the held-out images as in training, drawn again in each epoch; some methods measure on such
            images. Their last batch is kept, as with ``last_batch="keep"``.
        eval_split: which images are evaluated: ``test``, or ``val`` to choose settings without touching the test set.
        mean: mean of each channel, for images in [0, 1]; it is subtracted. Default: the data set's.
        std: standard deviation of each channel, by which images are then divided. Default: the data set's.
    """

    # What an option is for, unless it decides the result of a training: ``evaluation``, which images are evaluated and
    # how; ``local``, how and where batches are made, which changes no result, except that networks that draw random
    # numbers draw others. A conversion that trains its source net first hands all of these on to that training, except
    # those that are called ``eval_``.
    roles: ClassVar[dict[str, Role]] = {
        "subset": "evaluation",
        "val_split": "evaluation",
        "eval_split": "evaluation",
        "num_workers": "local",
        "eval_batch_size": "local",
    }
    name: str
    arch_family: ClassVar[str] = "cifar"
    num_classes: ClassVar[int]
    input_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    num_test: ClassVar[int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 100,
        num_workers: int | None = None,
        last_batch: Literal["keep", "drop"] = "keep",
        subset: int | None = None,
        val_split: int = 0,
        val_augment: bool = False,
        eval_split: Literal["test", "val"] = "test",
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        for option, value, least in (("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1),
                                     ("num_workers", num_workers or 0, 0), ("val_split", val_split, 0)):  # fmt: skip
            if value < least:
                raise UserError(f"--data.{option} {value}: must be at least {least}")
        if subset is not None and subset < 1:
            raise UserError(f"--subset {subset}: must be at least 1")
        if eval_split == "val" and not val_split:
            raise UserError("--data.eval_split val: there is no validation split; give --data.val_split N as well")
        self.batch_size, self.eval_batch_size, self._workers = batch_size, eval_batch_size, num_workers
        self.subset, self.val_split, self.eval_split = subset, val_split, eval_split
        self.val_augment, self.last_batch = val_augment, last_batch
        self.mean = self.mean if mean is None else self._channels("mean", mean)
        self.std = self.std if std is None else self._channels("std", std)
        if min(self.std) <= 0:
            raise UserError(f"--data.std {list(self.std)}: must be positive")
        self.seed = 0
        self._splits: dict[str, Split] | None = None

    def _channels(self, option: str, values: Sequence[float]) -> tuple[float, ...]:
        channels = self.input_shape[0]
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise UserError(f"--data.{option} {list(values)}: must be {channels} finite numbers, one for each channel")
        return tuple(values)

    @property
    def num_workers(self) -> int:
        """Loader processes, of those asked for or by default; batches are the same with any number."""
        if self._workers is None:
            # A GPU would wait for a process that augments and launches kernels in turn; a CPU has no core to spare.
            return min(WORKERS, cores()) if self.on_gpu else 0
        return self._workers

    @property
    def on_gpu(self) -> bool:
        """Whether a Trainer is there whose process computes on a GPU."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def load(self) -> tuple[Split, Split]:
        """Reads the training and the test images.

        Raises:
            UserError: the files are absent or damaged.
        """
        raise NotImplementedError

    def pipeline(self) -> Transform:
        """Augmentation and normalisation."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Loads once, cuts off the validation split, applies ``subset``; Lightning calls it for every stage."""
        if self._splits is not None:
            return
        train, test = self.load()
        if self.val_split >= len(train):
            raise UserError(f"--data.val_split {self.val_split}: the training set has only {len(train)} images")
        order = torch.randperm(len(train), generator=Generator().manual_seed(SPLIT_SEED))
        held_out, kept = order[: self.val_split], order[self.val_split :].sort().values
        splits: dict[str, Split] = {"train": train.take(kept), "val": train.take(held_out), "test": test}
        if self.subset is not None:
            splits = {name: self._limit(name, part) for name, part in splits.items()}
        self._splits = splits

    def check_training_files(self) -> None:
        """Checks the image files of a training before it starts; does nothing if images are not files.

        Raises:
            UserError: some cannot be read.
        """

    def _limit(self, name: str, part: Split) -> Split:
        assert self.subset is not None
        if name == "train" and self.subset > len(part):
            raise UserError(f"--subset {self.subset}: larger than the training set of {self.name} ({len(part)} images)")
        order = torch.randperm(len(part), generator=Generator().manual_seed(SPLIT_SEED))
        return part.take(order[: self.subset])

    def split(self, name: str) -> Split:
        """The :class:`Split` called ``train``, ``val`` or ``test`` (after ``setup``)."""
        self.setup()
        assert self._splits is not None
        return self._splits[name]

    @property
    def limited_training(self) -> bool:
        """True if training images are left out and not used for validation."""
        return self.subset is not None

    @property
    def limited(self) -> bool:
        """True if the evaluation does not use the whole test set, or if training images are left out."""
        return self.limited_training or self.eval_split != "test"

    def fingerprint(self) -> str:
        """SHA-256 of the evaluated images and labels, in order."""
        return self.split(self.eval_split).fingerprint()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled, augmented batches."""
        loader = self._loader(self.split("train"), self.batch_size, self.seed, self.last_batch == "keep")
        if self.trainer is not None:
            # Lightning begins to iterate before it tells the sampler the epoch, and worker processes fetch at once.
            # Of a training that is resumed, current_epoch still lags behind here.
            assert isinstance(loader.sampler, BatchSampler)
            loader.sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.state_dict()["processed"])
        return loader

    def val_dataloader(self) -> list[DataLoader[tuple[Tensor, Tensor]]]:
        """The held-out training images, plain unless ``val_augment``; no loader if nothing is held out."""
        part = self.split("val")
        if not len(part):
            return []
        # What a method measures on a batch may depend on its size, as augmentation does, so the record must have it.
        return [self._loader(part, self.batch_size, self.seed if self.val_augment else None, keep_last=True)]

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The evaluated images, plain, in file order."""
        return self._loader(self.split(self.eval_split), self.eval_batch_size)

    def first_evaluated(self, number: int) -> list[tuple[Tensor, Tensor]]:
        """The first ``number`` evaluated images and their labels, in batches; all of them if there are fewer."""
        batches: list[tuple[Tensor, Tensor]] = []
        for images, labels in self.test_dataloader():
            batches.append((images[:number], labels[:number]))
            number -= len(images)
            if number <= 0:
                break
        return batches

    def calibration_dataloader(self, n: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """``n`` training images (a fixed choice), without augmentation.

        Raises:
            UserError: ``n`` is not between 1 and the size of the training set.
        """
        part = self.split("train")
        if not 1 <= n <= len(part):
            raise UserError(f"{n} calibration images: must be between 1 and {len(part)}, the size of the training set")
        rows = torch.randperm(len(part), generator=Generator().manual_seed(SPLIT_SEED))[:n]
        # Not eval_batch_size: some methods average over batches, and that option must not change a result.
        sampler = BatchSampler(n, CALIBRATION_BATCH, None)
        return DataLoader(BatchDataset(part.take(rows), self.pipeline()), batch_size=None, sampler=sampler)

    def _loader(
        self, part: Split, batch_size: int, seed: int | None = None, keep_last: bool = False
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            BatchDataset(part, self.pipeline()),
            batch_size=None,
            # Its own: an iterator draws a number when it begins, which in a resumed run is before the epoch is seeded.
            generator=Generator(),
            sampler=BatchSampler(len(part), batch_size, seed, rank, world, keep_last),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.on_gpu,
        )
