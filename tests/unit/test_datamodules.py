"""Splits, exact batches, sharding, augmentation against per-image references, and damaged CIFAR files."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import pickle
import shutil
import time
import urllib.error
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from pytorch_lightning.callbacks import ModelCheckpoint
from scipy.stats import chisquare
from sklearn.datasets import load_digits
from torch import Generator, Tensor
from torchvision.transforms import functional as tvf

from bench.errors import UserError
from bench.recipes import find_recipe
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS
from datamodules.augment import Pipeline, cutout, random_crop, random_flip
from datamodules.base import ImageDataModule
from datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule, CIFARDataModule
from datamodules.digits import DigitsDataModule
from datamodules.sampler import BatchSampler
from datamodules.splits import Images

FEW_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def uniform(counts: Counter | list[int], cells: int, least: float = 1e-4) -> None:
    """Chi-square test that ``cells`` outcomes are equally likely; seeds are fixed, so it cannot flicker."""
    observed = list(counts.values()) if isinstance(counts, Counter) else counts
    assert len(observed) <= cells
    assert chisquare(observed + [0] * (cells - len(observed))).pvalue > least


def epoch(data: ImageDataModule, number: int) -> list[tuple[Tensor, Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for first, second in zip(one, other, strict=True) for a, b in zip(first, second, strict=True)
    )


class Toy(ImageDataModule):
    """40 training and 12 test images of which each pixel says which image it is."""

    name = "toy"
    num_classes = 4
    num_test = 12

    def load(self) -> tuple[Images, Images]:
        def images(numbers: range) -> Images:
            index = torch.tensor(numbers)
            return Images(index.to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 4, 4), index % 4)

        return images(range(40)), images(range(100, 112))

    def pipeline(self) -> Pipeline:
        return Pipeline((0.0,) * 3, (1 / 255,) * 3)


def numbers(images: Tensor) -> list[int]:
    """Which images of :class:`Toy` a batch holds."""
    return images[:, 0, 0, 0].round().int().tolist()


def rows(part: Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in part.images}


# --------------------------------------------------------------------------------------------------------- digits


def test_digits_are_the_bundled_images_split_once_and_for_all() -> None:
    data = DigitsDataModule()
    train, test = data.split("train"), data.split("test")
    assert (len(train), len(test), len(data.split("val"))) == (1437, 360, 0)
    assert data.num_test == 360
    bunch = load_digits()
    originals = Counter(image.astype(np.float64).tobytes() for image in bunch.images)
    back = torch.cat([train.images, test.images])[:, 0, ::4, ::4].double() * 16 / 255
    assert Counter(image.round().numpy().tobytes() for image in back) == originals, "no image lost, none twice"
    assert torch.cat([train.labels, test.labels]).bincount().tolist() == np.bincount(bunch.target).tolist()


def test_digits_train_and_test_do_not_share_an_image() -> None:
    """Not even one that the bundle holds twice."""
    data = DigitsDataModule()
    assert not rows(data.split("train")) & rows(data.split("test"))


def test_the_digits_test_set_is_stratified() -> None:
    data = DigitsDataModule()
    share = torch.from_numpy(load_digits().target).bincount() * 360 / 1797
    assert (data.split("test").labels.bincount() - share).abs().max() <= 1


def test_the_digits_split_depends_on_no_seed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    one = DigitsDataModule(batch_size=7)
    one.seed = 5
    torch.manual_seed(2)
    other = DigitsDataModule()
    assert torch.equal(one.split("train").images, other.split("train").images)
    assert one.fingerprint() == other.fingerprint()


def test_a_digit_pixel_becomes_a_block_of_four_by_four_in_three_equal_channels() -> None:
    images = DigitsDataModule().split("test").images
    assert (images.dtype, images.shape[1:]) == (torch.uint8, (3, 32, 32))
    assert torch.equal(images[:, :1].expand_as(images), images)
    assert torch.equal(images[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), images)
    assert images.max() == 255


def test_digits_are_normalised_to_about_mean_zero_and_deviation_one() -> None:
    data = DigitsDataModule(eval_batch_size=2000)
    images = torch.cat([images for images, _ in data.calibration_dataloader(1437)])
    assert images.mean().abs() < 0.01
    assert (images.std() - 1).abs() < 0.01


# ------------------------------------------------------------------------------------------------- exact batches


@FEW_CORES
def test_batches_are_a_function_of_seed_and_epoch_whatever_the_workers() -> None:
    """Also with workers that live on from epoch to epoch, and out of order."""

    def digits(workers: int = 0, seed: int = 3) -> DigitsDataModule:
        data = DigitsDataModule(batch_size=256, num_workers=workers)
        data.seed = seed
        return data

    alone = digits()
    first, second = epoch(alone, 0), epoch(alone, 1)
    assert [len(labels) for _, labels in first] == [256] * 5 + [157], "the incomplete batch is kept"
    assert not same(first, second)
    assert not same(first, epoch(digits(seed=4), 0))
    torch.manual_seed(99)
    assert same(epoch(digits(), 0), first), "the global generator has no part in it"
    parallel = digits(workers=2).train_dataloader()
    for number, expected in ((1, second), (0, first)):
        parallel.sampler.set_epoch(number)
        assert same(list(parallel), expected)
    del parallel


@pytest.mark.parametrize(("last_batch", "sizes"), [("keep", [16, 16, 8]), ("drop", [16, 16])])
def test_the_last_batch_is_kept_or_dropped(last_batch: str, sizes: list[int]) -> None:
    loader = Toy(batch_size=16, last_batch=last_batch).train_dataloader()
    assert [len(images) for images, _ in loader] == sizes


def test_the_last_batch_is_left_out_on_request_and_if_bn_could_not_normalise_it() -> None:
    def sizes(batch_size: int, rank: int = 0, world_size: int = 1, keep_last: bool = True) -> list[int]:
        sampler = BatchSampler(40, batch_size, 0, rank, world_size, keep_last)
        batches = [len(rows) for _, rows in sampler]
        assert sum(batches) * world_size == 40 - sampler.left_out
        assert len(sampler) == len(batches)
        return batches

    assert sizes(16) == [16, 16, 8]
    assert sizes(16, keep_last=False) == [16, 16]
    assert sizes(39) == [39], "one image"
    assert sizes(64) == [40]
    assert sizes(12, 1, 2) == [12, 8]
    assert sizes(19, 1, 2) == [19], "one image for each process"
    assert sizes(6, 0, 3) == [6, 6], "4 images on 3 processes"


def test_an_epoch_shows_each_image_at_most_once_and_another_order_every_time() -> None:
    data = Toy(batch_size=8)
    orders = [[n for images, _ in epoch(data, number) for n in numbers(images)] for number in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    for images, labels in epoch(data, 0):
        assert labels.tolist() == [n % 4 for n in numbers(images)]


def test_augmentation_is_drawn_anew_for_every_batch_and_epoch() -> None:
    class Cropped(Toy):
        def load(self) -> tuple[Images, Images]:
            """Every image the same, so only the augmentation can make batches differ."""
            one = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(40, 3, 8, 8).contiguous()
            return Images(one, torch.zeros(40, dtype=torch.long)), Images(one[:12], torch.zeros(12, dtype=torch.long))

        def pipeline(self) -> Pipeline:
            return Pipeline((0.0,) * 3, (1.0,) * 3, crop_padding=3)

    data = Cropped(batch_size=10)
    batches = [images for number in range(2) for images, _ in epoch(data, number)]
    assert len(batches) == 8
    for one, other in itertools.combinations(batches, 2):
        assert not torch.equal(one, other)


@FEW_CORES
@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*is deprecated",
    "ignore:.*does not have many workers",
    "ignore:You passed in a `val_dataloader`",
    "ignore:The dirpath has changed",
)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stops", [(3,), (1, 3), (2, 3)], ids=["whole", "resumed", "resumed late"])
def test_lightning_tells_the_sampler_which_epoch_it_is(workers: int, stops: tuple[int, ...], tmp_path: Path) -> None:
    """The Trainer sees the same batches as a loop of our own, also where it goes on from a checkpoint."""
    seen: list[list[int]] = []

    class Watch(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            seen.append(numbers(batch[0]))
            return self.weight * 1

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    for begun, stop in enumerate(stops):
        keeper = ModelCheckpoint(tmp_path / str(begun), filename="last", save_on_train_epoch_end=True)
        trainer = pl.Trainer(
            max_epochs=stop,
            accelerator="cpu",
            logger=False,
            callbacks=[keeper],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            limit_val_batches=0,
        )
        last = str(tmp_path / str(begun - 1) / "last.ckpt") if begun else None
        trainer.fit(Watch(), datamodule=Toy(batch_size=16, num_workers=workers), ckpt_path=last, weights_only=True)
    plain = Toy(batch_size=16)
    assert seen == [numbers(images) for number in range(3) for images, _ in epoch(plain, number)]


# -------------------------------------------------------------------------------------------------------- sharding


@pytest.mark.parametrize("size", [40, 43, 5])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_of_one_process(size: int, world: int) -> None:
    """Together they see what one process with the whole batch sees, in the same steps."""
    whole = BatchSampler(size, 6 * world, seed=1)
    shards = [BatchSampler(size, 6, seed=1, rank=rank, world_size=world) for rank in range(world)]
    for number in range(2):
        for sampler in (whole, *shards):
            sampler.set_epoch(number)
        steps = [drawn for _, drawn in whole]
        parts = [[drawn for _, drawn in shard] for shard in shards]
        assert len(steps) == len(whole) == len(shards[0])
        for step, of_ranks in zip(steps, zip(*parts, strict=True), strict=True):
            assert sorted(itertools.chain(*of_ranks)) == sorted(step)
            assert max(map(len, of_ranks)) - min(map(len, of_ranks)) <= (size < 6 * world)


def test_ranks_augment_differently() -> None:
    """The same parameters on every rank would halve the variety of a batch."""
    seeds = [seed for rank in range(2) for seed, _ in BatchSampler(40, 5, seed=0, rank=rank, world_size=2)]
    assert len(set(seeds)) == len(seeds) == 8


def a_trainer(rank: int = 0, world: int = 1, device: str = "cpu") -> Any:
    """As much of a Trainer as the loaders ask."""
    progress = SimpleNamespace(current=SimpleNamespace(state_dict=lambda: {"processed": 0}))
    return SimpleNamespace(
        global_rank=rank,
        world_size=world,
        strategy=SimpleNamespace(root_device=torch.device(device)),
        fit_loop=SimpleNamespace(epoch_progress=progress),
    )


@FEW_CORES
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize(
    ("device", "asked", "workers"),
    [(None, None, 0), ("cpu", None, 0), ("cuda", None, 3), ("cuda", 0, 0), ("cpu", 2, 2)],
)
def test_only_beside_a_gpu_batches_are_prepared_by_processes_and_pinned(
    monkeypatch: pytest.MonkeyPatch, device: str | None, asked: int | None, workers: int
) -> None:
    monkeypatch.setattr("datamodules.base.cores", lambda: 3)
    data = Toy(num_workers=asked)
    data.trainer = None if device is None else a_trainer(device=device)
    for loader in (data.train_dataloader(), data.test_dataloader()):
        assert (loader.num_workers, loader.pin_memory) == (workers, device == "cuda")
    assert data.num_workers == workers, "what the record says"


def test_the_loaders_ask_the_trainer_for_their_rank() -> None:
    both = []
    for rank in range(2):
        data = Toy(batch_size=4, eval_batch_size=3)
        data.trainer = a_trainer(rank, 2)
        assert len(data.train_dataloader()) == 5
        both.append([n for images, _ in data.test_dataloader() for n in numbers(images)])
    assert sorted(both[0] + both[1]) == list(range(100, 112))


@pytest.mark.parametrize(("size", "batch", "world"), [(360, 100, 2), (360, 7, 3), (12, 5, 4), (6, 100, 2), (9, 4, 1)])
def test_an_evaluation_sees_every_image_exactly_once(size: int, batch: int, world: int) -> None:
    shards = [BatchSampler(size, batch, None, rank, world) for rank in range(world)]
    seen = [row for shard in shards for seed, drawn in shard for row in drawn if seed == -1]
    assert sorted(seen) == list(range(size))
    assert len({len(shard) for shard in shards}) == 1
    assert all(len(list(shard)) == len(shard) for shard in shards)
    if world == 1:
        assert seen == list(range(size)), "in file order"


@pytest.mark.parametrize(("size", "world"), [(360, 7), (10_000, 3), (1, 2)])
def test_an_evaluation_set_that_does_not_divide_over_the_processes_is_refused(size: int, world: int) -> None:
    with pytest.raises(UserError, match=f"{size} evaluation images do not divide over {world} processes"):
        BatchSampler(size, 100, None, 0, world)


# ------------------------------------------------------------------------------------- subset, val_split, eval_split


def test_a_validation_split_is_cut_from_training_and_is_the_same_for_every_seed() -> None:
    held = []
    for seed in range(2):
        data = Toy(val_split=8)
        data.seed = seed
        train, val = (set(numbers(data.split(name).images)) for name in ("train", "val"))
        assert (len(train), len(val)) == (32, 8)
        assert train | val == set(range(40))
        assert numbers(data.split("test").images) == list(range(100, 112))
        held.append(val)
    assert held[0] == held[1]


def test_the_evaluated_split_can_be_validation() -> None:
    data = Toy(val_split=8, eval_split="val")
    evaluated = [n for images, _ in data.test_dataloader() for n in numbers(images)]
    assert evaluated == numbers(data.split("val").images)
    assert data.limited
    assert not Toy(val_split=8).limited
    assert not Toy().limited


def test_a_validation_loader_exists_only_where_something_is_held_out() -> None:
    assert Toy().val_dataloader() == []
    (loader,) = Toy(val_split=8, batch_size=5).val_dataloader()
    assert [len(labels) for _, labels in loader] == [5, 3]


def test_a_subset_is_fixed_nested_and_marks_the_run_as_limited() -> None:
    small, large = Toy(subset=6), Toy(subset=10)
    assert small.limited
    for name in ("train", "test"):
        few, more = numbers(small.split(name).images), numbers(large.split(name).images)
        assert (len(few), len(more)) == (6, 10)
        assert more[:6] == few
    assert set(numbers(small.split("train").images)) <= set(range(40))
    assert set(numbers(small.split("test").images)) <= set(range(100, 112))
    assert numbers(large.split("train").images) != list(range(10)), "not simply the first ones"


def test_a_subset_and_a_validation_split_stay_disjoint() -> None:
    data = Toy(subset=20, val_split=10)
    train, val = (set(numbers(data.split(name).images)) for name in ("train", "val"))
    assert len(train) == 20
    assert len(val) == 10
    assert not train & val


def test_calibration_images_are_plain_training_images_of_a_fixed_choice() -> None:
    data = Toy(eval_batch_size=7, val_split=8)
    batches = list(data.calibration_dataloader(20))
    assert [len(labels) for _, labels in batches] == [20], "of 50 or fewer, whatever --data.eval_batch_size is"
    assert [len(labels) for _, labels in DigitsDataModule(eval_batch_size=7).calibration_dataloader(120)] == [
        50,
        50,
        20,
    ]
    chosen = [n for images, _ in batches for n in numbers(images)]
    assert len(set(chosen)) == 20
    assert set(chosen) <= set(numbers(data.split("train").images))
    other = Toy(eval_batch_size=20, val_split=8)
    other.seed = 9
    ((images, labels),) = other.calibration_dataloader(20)
    assert numbers(images) == chosen
    assert labels.tolist() == [n % 4 for n in chosen]


@pytest.mark.parametrize("augment", [True, False])
def test_held_out_images_come_in_the_batches_of_the_training_and_all_of_them(augment: bool) -> None:
    """What is drawn for a batch or measured on it depends on its size, which must be one that the record has."""
    one, other = (
        DigitsDataModule(val_split=144, val_augment=augment, batch_size=32, eval_batch_size=n) for n in (100, 7)
    )
    first, second = (list(data.val_dataloader()[0]) for data in (one, other))
    assert [len(labels) for _, labels in first] == [32, 32, 32, 32, 16]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))


def test_calibration_and_evaluation_do_not_augment() -> None:
    data = DigitsDataModule(eval_batch_size=360)
    ((images, labels),) = data.test_dataloader()
    part = data.split("test")
    plain = (part.images / 255 - 0.305) / 0.376
    assert torch.allclose(images, plain, atol=1e-5)
    assert torch.equal(labels, part.labels)
    known = {image.numpy().tobytes() for image in data.pipeline()(data.split("train").images).contiguous()}
    ((calibration, _),) = data.calibration_dataloader(50)
    assert all(image.numpy().tobytes() in known for image in calibration.contiguous())
    (training, _), *_ = epoch(data, 0)
    assert any(image.numpy().tobytes() not in known for image in training.contiguous())


def test_the_fingerprint_is_of_the_evaluated_images_and_labels_in_order() -> None:
    part = Toy().split("test")
    expected = hashlib.sha256(part.images.numpy().tobytes() + part.labels.numpy().tobytes()).hexdigest()
    assert Toy().fingerprint() == expected
    assert Toy(batch_size=3).fingerprint() == expected
    assert len({Toy(**kw).fingerprint() for kw in ({}, {"subset": 6}, {"val_split": 12, "eval_split": "val"})}) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "--data.batch_size 0"),
        ({"eval_batch_size": -1}, "--data.eval_batch_size -1"),
        ({"num_workers": -2}, "--data.num_workers -2"),
        ({"val_split": -1}, "--data.val_split -1"),
        ({"val_split": 40}, "--data.val_split 40: the training set has only 40"),
        ({"subset": 0}, "--subset 0"),
        ({"subset": 41}, "--subset 41: larger than the training set of toy"),
        ({"eval_split": "val"}, "--data.eval_split val.*val_split"),
    ],
)
def test_settings_out_of_range_are_refused_by_option(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Toy(**settings).setup()


@pytest.mark.parametrize("n", [0, 41, -1])
def test_calibration_with_more_images_than_there_are_is_refused(n: int) -> None:
    with pytest.raises(UserError, match=f"{n} calibration images"):
        Toy().calibration_dataloader(n)


def test_loading_happens_once() -> None:
    class Counted(Toy):
        loads = 0

        def load(self) -> tuple[Images, Images]:
            Counted.loads += 1
            return super().load()

    data = Counted()
    for stage in ("fit", "validate", "test", None):
        data.setup(stage)
    data.split("train")
    assert Counted.loads == 1


def test_the_registry_holds_what_the_classes_say() -> None:
    for name, entry in DATA.items():
        cls = entry.load()
        assert cls.name == name
        expected = ((3, 224, 224), "imagenet") if name == "imagenet" else ((3, 32, 32), "cifar")
        assert (cls.input_shape, cls.arch_family) == expected


# -------------------------------------------------------------------------------------------------- crop and flip


def test_a_crop_is_torchvisions_at_one_of_the_offsets() -> None:
    """Each output equals pad-and-crop of its own image at exactly one offset, for every channel alike."""
    images = torch.randint(1, 256, (60, 3, 8, 6), generator=seeded(1), dtype=torch.uint8)
    before = images.clone()
    out = random_crop(images, 2, seeded())
    assert torch.equal(images, before)
    assert (out.dtype, out.shape) == (torch.uint8, images.shape)
    for image, cropped in zip(images, out, strict=True):
        padded = tvf.pad(image, [2])
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(tvf.crop(padded, top, left, 8, 6), cropped)
        ]
        assert len(matches) == 1


def test_crop_offsets_are_uniform_and_independent() -> None:
    """25 equally likely places for padding 2; a marked centre pixel tells which was drawn."""
    images = torch.zeros(20_000, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 1
    places = random_crop(images, 2, seeded()).flatten(1).argmax(1)
    uniform(places.bincount(minlength=25).tolist(), 25)
    assert len(random_crop(images, 2, seeded()).flatten(1).any(1).unique()) == 1, "the centre never leaves"


def test_a_flip_is_torchvisions_for_half_of_the_images() -> None:
    images = torch.randint(0, 256, (4000, 2, 3, 5), generator=seeded(1), dtype=torch.uint8)
    out = random_flip(images, seeded())
    mirrored = tvf.hflip(images)
    flipped = (out == mirrored).flatten(1).all(1)
    kept = (out == images).flatten(1).all(1)
    assert torch.equal(flipped, ~kept)
    uniform([int(flipped.sum()), int(kept.sum())], 2)
    # Not one image flipped for the whole run of a batch: neighbours are independent.
    assert 1800 < (flipped[1:] != flipped[:-1]).sum() < 2200


# --------------------------------------------------------------------------------------------------------- cutout


def hole(row: int, column: int, length: int, size: int) -> Tensor:
    """Cutout as its authors wrote it: clipped corners, then zeros."""
    y1, y2 = (int(np.clip(row + sign * (length // 2), 0, size)) for sign in (-1, 1))
    x1, x2 = (int(np.clip(column + sign * (length // 2), 0, size)) for sign in (-1, 1))
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.mark.parametrize(("length", "size"), [(16, 32), (8, 32), (4, 8)])
def test_cutout_holes_are_those_of_the_authors_code_uniform_over_the_centres(length: int, size: int) -> None:
    """Each centre gives another hole, so its frequency is that of the centre; the distribution of areas follows."""
    table = {
        hole(row, column, length, size).numpy().tobytes(): (row, column)
        for row in range(size)
        for column in range(size)
    }
    assert len(table) == size * size
    count = 20 * size * size if size == 8 else 6000
    images = torch.ones(count, 1, size, size)
    zeros = cutout(images, length, seeded())[:, 0] == 0
    centres = Counter(table[mask.numpy().tobytes()] for mask in zeros)
    uniform(Counter(row for row, _ in centres.elements()), size)
    uniform(Counter(column for _, column in centres.elements()), size)
    if size == 8:
        uniform(centres, 64)
    areas = torch.tensor([int(np.frombuffer(mask, bool).sum()) for mask in table], dtype=torch.float64)
    measured = zeros.double().sum((1, 2))
    assert abs(measured.mean() - areas.mean()) < 4 * areas.std() / count**0.5
    assert measured.max() == length * length
    assert measured.min() == (length // 2) ** 2


def test_cutout_spares_the_rest_and_cuts_all_channels_alike() -> None:
    images = torch.randn(50, 3, 8, 8, generator=seeded(1)) + 10
    before = images.clone()
    out = cutout(images, 4, seeded())
    assert torch.equal(images, before)
    cut = out == 0
    assert torch.equal(cut[:, :1].expand_as(cut), cut)
    assert torch.equal(out[~cut], images[~cut])


def test_cutout_comes_after_normalisation_and_padding_before() -> None:
    """A hole is exactly 0, the mean colour; the border of a crop is black, which is -mean / std."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    white = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8)
    pipeline = Pipeline(mean, std, crop_padding=2, cutout_length=4)
    out = pipeline(white, seeded())
    for channel in range(3):
        black, full = -mean[channel] / std[channel], (1 - mean[channel]) / std[channel]
        values = sorted(set(out[:, channel].flatten().tolist()))
        assert values == pytest.approx(sorted([black, 0.0, full]), abs=1e-6)
        assert 0.0 in values


@pytest.mark.parametrize("own", [{}, {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}])
@pytest.mark.parametrize("cls", [CIFAR10DataModule, CIFAR100DataModule])
def test_normalisation_is_that_of_torchvision(cls: type[CIFARDataModule], own: dict[str, list[float]]) -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), generator=seeded(1), dtype=torch.uint8)
    ours = cls(root="nowhere", **own).pipeline()(images)
    theirs = tvf.normalize(images / 255, own.get("mean", cls.mean), own.get("std", cls.std))
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("cls", [CIFAR10DataModule, CIFAR100DataModule])
def test_the_papers_pipeline_is_switched_by_its_arguments(cls: type[CIFARDataModule]) -> None:
    """The same for both data sets, the AutoAugment policy of CIFAR-10 included."""
    full = cls(root="x").pipeline()
    assert (full.crop_padding, full.flip, full.cutout_length) == (4, True, 16)
    assert full.autoaugment is not None
    bare = cls(root="x", autoaugment=False, cutout=0).pipeline()
    assert (bare.crop_padding, bare.flip, bare.cutout_length, bare.autoaugment) == (4, True, 0, None)
    for wrong in (-1, 33):
        with pytest.raises(UserError, match=f"--data.cutout {wrong}"):
            cls(root="x", cutout=wrong)


def test_the_whole_pipeline_depends_on_its_generator_alone() -> None:
    images = torch.randint(0, 256, (30, 3, 32, 32), generator=seeded(1), dtype=torch.uint8)
    before = images.clone()
    pipeline = CIFAR10DataModule(root="x").pipeline()
    torch.manual_seed(1)
    one = pipeline(images, seeded(7))
    torch.manual_seed(2)
    assert torch.equal(pipeline(images, seeded(7)), one)
    assert not torch.equal(pipeline(images, seeded(8)), one)
    assert torch.equal(images, before)


# ---------------------------------------------------------------------------------------------------------- CIFAR


class Layout(NamedTuple):
    """The files of a data set as its authors distribute it, and what each holds beside its images."""

    cls: type[CIFARDataModule]
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str

    def content(self, name: str, count: int, generator: np.random.Generator) -> dict[str, Any]:
        """One file of images. The labels differ from file to file, and CIFAR-100 has coarse ones to be mistaken for."""
        content = {
            "batch_label": name,
            self.labels: [int(label) for label in generator.integers(0, self.cls.num_classes, count)],
            "data": generator.integers(0, 256, (count, 3072), dtype=np.uint8),
            "filenames": [f"{name}_{k}.png" for k in range(count)],
        }
        return content | ({"coarse_labels": [k % 20 for k in range(count)]} if self.labels == "fine_labels" else {})


LAYOUTS = {
    "cifar10": Layout(
        CIFAR10DataModule,
        "cifar-10-batches-py",
        tuple(f"data_batch_{k}" for k in range(1, 6)),
        "test_batch",
        "batches.meta",
        "labels",
        "label_names",
    ),
    "cifar100": Layout(
        CIFAR100DataModule, "cifar-100-python", ("train",), "test", "meta", "fine_labels", "fine_label_names"
    ),
}


def write_cifar(root: Path, layout: Layout, per_file: int = 6) -> type[torchvision.datasets.CIFAR10]:
    """A tiny data set in the original layout, and torchvision's class with its checksums."""
    folder = root / layout.folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    contents = {name: layout.content(name, per_file, generator) for name in (*layout.train, layout.test)}
    contents[layout.meta] = {layout.names: [str(k) for k in range(layout.cls.num_classes)]}
    md5 = {}
    for name, content in contents.items():
        # Python 2 wrote the originals, with protocol 2.
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    class Tiny(layout.cls.source):  # type: ignore[misc]
        train_list: ClassVar = [[name, md5[name]] for name in layout.train]
        test_list: ClassVar = [[layout.test, md5[layout.test]]]
        meta: ClassVar = {"filename": layout.meta, "key": layout.names, "md5": md5[layout.meta]}

    return Tiny


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture
def root(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny CIFAR, which the data module takes for the real one; no network."""
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layout.cls, "source", write_cifar(tmp_path / "data", layout))
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", _offline)
    return tmp_path / "data"


def _offline(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError("Name or service not known")


def test_cifar_is_read_from_its_files(root: Path, layout: Layout) -> None:
    data = layout.cls(str(root))
    train, test = data.split("train"), data.split("test")
    assert (train.images.shape, test.images.shape) == ((6 * len(layout.train), 3, 32, 32), (6, 3, 32, 32))
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    places = [(train, name, 6 * k) for k, name in enumerate(layout.train)] + [(test, layout.test, 0)]
    for part, name, offset in places:
        content = pickle.loads((root / layout.folder / name).read_bytes())
        rows = slice(offset, offset + 6)
        assert part.images[rows].flatten(1).tolist() == content["data"].tolist(), "channels, then rows, then columns"
        assert part.labels[rows].tolist() == content[layout.labels]


@pytest.mark.parametrize("how", ["argument", "environment", "default", "argument before environment"])
def test_where_cifar_is_looked_for(root: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    elsewhere = root.rename(root.parent / "elsewhere") if how != "default" else root
    argument = str(elsewhere) if how.startswith("argument") else None
    if how == "environment":
        monkeypatch.setenv("BENCH_DATA_DIR", str(elsewhere))
    if how == "argument before environment":
        monkeypatch.setenv("BENCH_DATA_DIR", "/nonexistent")
    data = layout.cls(argument)
    assert len(data.split("test")) == 6


def test_an_empty_environment_variable_is_as_good_as_none(
    root: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA_DIR", "")
    assert len(layout.cls().split("test")) == 6


def test_a_missing_folder_without_a_network_is_one_line_that_says_what_to_do(root: Path, layout: Layout) -> None:
    data = layout.cls(str(root / "typo"))
    for call in (data.prepare_data, data.setup):
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        for part in (layout.cls.name, str(root / "typo"), layout.folder, "--data.root", "BENCH_DATA_DIR"):
            assert part in message


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), RuntimeError("File not found or corrupted.")])
def test_whatever_ends_a_download_the_message_stays_one_line(
    root: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(UserError, match=r"--data\.root") as caught:
        layout.cls(str(root / "typo")).prepare_data()
    assert "\n" not in str(caught.value)


def test_a_download_that_breaks_off_leaves_nothing_and_that_of_two_processes_is_one(
    root: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "new"
    calls = tmp_path / "calls"

    def broken(_: str, download_root: Any, **__: Any) -> None:
        (Path(download_root) / layout.folder).mkdir(parents=True)
        raise EOFError("archive ends too early")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", broken)
    with pytest.raises(UserError, match="could not be downloaded"):
        layout.cls(str(target)).prepare_data()
    assert not [path for path in target.iterdir() if path.suffix != ".lock"]

    def slow(_: str, download_root: Any, **__: Any) -> None:
        with calls.open("a") as file:
            file.write("x")
        time.sleep(0.3)
        shutil.copytree(root / layout.folder, Path(download_root) / layout.folder)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", slow)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=layout.cls(str(target)).prepare_data) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3 and calls.read_text() == "x"
    assert len(layout.cls(str(target)).split("test")) == 6


@pytest.mark.parametrize("kind", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "empty"])
def test_a_damaged_file_is_refused_and_the_folder_named(root: Path, layout: Layout, kind: str, damage: str) -> None:
    """The files are pickles: nothing may be read from one whose checksum is wrong."""
    path = root / layout.folder / {"train": layout.train[-1], "test": layout.test, "meta": layout.meta}[kind]
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        changed = {"flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], "cut": content[:40], "empty": b""}
        path.write_bytes(changed[damage])
    with pytest.raises(UserError, match=rf"{layout.folder}.*missing or damaged") as caught:
        layout.cls(str(root)).setup()
    assert "\n" not in str(caught.value)


def test_a_file_with_a_payload_is_not_unpickled(root: Path, layout: Layout, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    (root / layout.folder / layout.train[0]).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError):
        layout.cls(str(root)).setup()
    assert not (tmp_path / "executed").exists()


def test_files_that_are_there_are_not_downloaded_again(
    root: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("no download was needed")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", never)
    data = layout.cls(str(root))
    data.prepare_data()
    data.setup()


def test_a_download_that_works_is_used(
    root: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "new"

    def download(url: str, download_root: Any, **_: Any) -> None:
        Path(download_root).mkdir(parents=True, exist_ok=True)
        (root / layout.folder).rename(Path(download_root) / layout.folder)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    assert len(layout.cls(str(target)).split("train")) == 6 * len(layout.train)


def test_cifar_constants_are_those_of_the_papers() -> None:
    assert (CIFAR10DataModule.num_classes, CIFAR100DataModule.num_classes) == (10, 100)
    assert CIFAR10DataModule.num_test == CIFAR100DataModule.num_test == 10_000
    assert CIFAR10DataModule.mean == (0.4914, 0.4822, 0.4465)
    assert CIFAR10DataModule.std == (0.2023, 0.1994, 0.2010)
    assert CIFAR100DataModule.mean == pytest.approx((129.3 / 255, 124.1 / 255, 112.4 / 255))
    assert CIFAR100DataModule.std == pytest.approx((68.2 / 255, 65.4 / 255, 70.4 / 255))


def test_the_files_and_checksums_of_cifar_are_torchvisions(layout: Layout) -> None:
    """The tests above replace them, so this one says what stands there else."""
    source = layout.cls.source
    assert (
        source is {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[layout.cls.name]
    )
    assert source.base_folder == layout.folder
    assert [name for name, _ in source.train_list] == list(layout.train)
    assert [name for name, _ in source.test_list] == [layout.test]
    assert (source.meta["filename"], source.meta["key"]) == (layout.meta, layout.names)


@pytest.mark.parametrize("arch", ["resnet18", "resnet20", "vgg16"])
@pytest.mark.parametrize("data", LAYOUTS)
def test_every_training_method_has_a_recipe_for_every_net(data: str, arch: str) -> None:
    """By default one whose name says whose settings they are, and for ResNet-20 a short one, of one length for all.

    Methods that tune the conversion of a trained net have recipes for that alone.
    """
    for method in [name for name, entry in METHODS.items() if entry.source is None and not entry.begins_from]:
        assert find_recipe("", method, data, arch).name in ("paper", "ours"), method
        if arch == "resnet20":
            assert find_recipe("quick", method, data, arch).settings["trainer"]["max_epochs"] == 64, method
