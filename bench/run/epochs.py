"""Callbacks of a training: seeds, a line for each epoch, early refusal of NaN."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from bench.errors import UserError
from bench.records.record import duration
from bench.snn.calibration import Batch


@rank_zero_only
def _print_on_rank_zero(line: str) -> None:
    print(line, flush=True)


class EpochSeed(pl.Callback):
    """Makes the random numbers of an epoch (dropout, noise) a function of (seed, epoch).

    A resumed run then continues exactly as the uninterrupted run would have.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seeds torch, which seeds all devices; each process by itself, or all would draw the same noise."""
        torch.manual_seed(self.seed * 1_000_003 + trainer.current_epoch + (trainer.global_rank << 40))


class EpochLine(pl.Callback):
    """One line for each epoch, if there is no terminal for a progress bar."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to measure time."""
        self.started = self.epoch_started = time.monotonic()
        self.epochs_before = trainer.current_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the learning rate, which the scheduler changes before the epoch's end."""
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints on rank 0."""
        now, done = time.monotonic(), trainer.current_epoch + 1
        assert trainer.max_epochs is not None
        left = (now - self.started) / (done - self.epochs_before) * (trainer.max_epochs - done)
        values = "".join(f", {name} {float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items()))
        _print_on_rank_zero(
            f"epoch {done}/{trainer.max_epochs}: lr {self.rate:.4g}{values} "
            f"({now - self.epoch_started:.1f} s, {duration(left)} left)"
        )
        self.epoch_started = now


# A training goes on with its own settings alone, so others begin anew.
ADVICE = "the training diverges; begin anew with a lower --model.lr or --trainer.precision 32-true, and --overwrite"


class StopOnNaN(pl.Callback):
    """Ends a training whose loss is not finite, saying in which batch."""

    # Reading the loss waits for an accelerator; on a CPU it is free.
    every = 50

    def __init__(self) -> None:
        self.bad: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int
    ) -> None:
        """Checks every loss, on an accelerator in groups."""
        assert isinstance(outputs, Mapping)
        self.bad.append(~torch.isfinite(outputs["loss"].detach()))
        last = batch_idx + 1 == trainer.num_training_batches
        if trainer.strategy.root_device.type == "cpu" or len(self.bad) == self.every or last:
            flags = torch.stack(self.bad).tolist()
            if any(flags):
                first = batch_idx + 2 - len(flags) + flags.index(True)
                raise UserError(
                    f"the loss is not finite in batch {first} of epoch {trainer.current_epoch + 1}: {ADVICE}"
                )
            self.bad.clear()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks the weights: the last step of an epoch may break them although the loss was finite."""
        broken = [name for name, weight in pl_module.named_parameters() if not bool(torch.isfinite(weight).all())]
        if broken:
            raise UserError(f"{broken[0]} is not finite after epoch {trainer.current_epoch + 1}: {ADVICE}")
