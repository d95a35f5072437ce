"""Decides which images form a batch and the seed of its augmentation, from the run's seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator
from torch.utils.data import Sampler

from bench.errors import UserError
from datamodules.splits import Draw


class BatchSampler(Sampler[Draw]):
    """Batches of rows that depend on (seed, epoch) alone, sharded evenly over the ranks.

    Args:
        size: number of images.
        batch_size: images per batch and rank.
        seed: of the run; ``None`` for no shuffling and no augmentation.
        rank: of this process.
        world_size: number of processes; an evaluation refuses a remainder.
        keep_last: with a seed, keep the last, incomplete batch of an epoch, if it divides over the processes and has
            at least two images for each: BN cannot normalise one.

    Attributes:
        left_out: images at the end of each epoch's order that are in no batch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        keep_last: bool = False,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        if seed is None and size % world_size:
            raise UserError(
                f"{size} evaluation images do not divide over {world_size} processes: padding would count some "
                f"twice; use a number of devices that divides {size}"
            )
        # A set smaller than one batch is one batch.
        whole = min(batch_size * world_size, size)
        self.batches, rest = divmod(size, whole)
        keeps = seed is None or (keep_last and rest % world_size == 0 and rest > world_size)
        self.batches += bool(rest) and keeps
        self.left_out = 0 if keeps else rest

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Draw]:
        order = torch.arange(self.size)
        if self.seed is not None:
            order = torch.randperm(self.size, generator=Generator().manual_seed(_mix(self.seed, self.epoch)))
        step = self.batch_size * self.world_size
        for index in range(self.batches):
            rows = order[index * step : (index + 1) * step][self.rank :: self.world_size]
            seed = -1 if self.seed is None else _mix(self.seed, self.epoch, index, self.rank)
            yield seed, rows.tolist()


def _mix(*numbers: int) -> int:
    """One well-spread 63-bit seed from several small numbers, the same on every platform."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
