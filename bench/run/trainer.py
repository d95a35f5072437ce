"""The Trainer as this suite uses it: whole checkpoints, exact resumption, no sampler but ours."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.accelerators import CUDAAccelerator
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from bench.errors import Interrupted, UserError, in_one_line
from bench.records.header import Header
from bench.records.record import Options
from bench.run import checkpoints
from bench.run.checkpoints import LAST, PREVIOUS
from bench.run.epochs import EpochLine
from datamodules.base import ImageDataModule
from datamodules.sampler import BatchSampler


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt`` before the first step and after every epoch, with a header that says what it is.

    Args:
        folder: where.
        datamodule: of the training.
        seconds_before: training time up to the checkpoint that is resumed from.

    Attributes:
        header: of the training; to be set before it begins.
    """

    header: Header

    def __init__(self, folder: Path, datamodule: ImageDataModule, seconds_before: float = 0.0) -> None:
        super().__init__(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.datamodule, self.seconds_before = datamodule, seconds_before
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, interruptions left out."""
        return self.seconds_before + time.monotonic() - self.started

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the start, so that a run interrupted in its first epoch can be resumed as well."""
        super().on_train_start(trainer, pl_module)
        if trainer.ckpt_path is None:
            assert self.dirpath is not None
            trainer.save_checkpoint(Path(self.dirpath) / LAST)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Adds the header."""
        # Counted when an epoch is over, unlike current_epoch.
        epochs = trainer.fit_loop.epoch_progress.current.state_dict()["processed"]
        # Damaged images may have been replaced since the training began.
        limited = self.header.limited or self.datamodule.limited_training
        now = {"epochs": epochs, "seconds": self.seconds, "limited": limited}
        checkpoint[checkpoints.HEADER] = self.header.model_copy(update=now).dump()


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out what Lightning says about itself, and warnings that users cannot act on."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            # Lightning 2.6 with torch 2.15: https://github.com/Lightning-AI/pytorch-lightning/issues/21326
            ".*LeafSpec.*is deprecated",
            # Batches are prepared in the training process on purpose: they are cut from memory a whole batch at a time.
            ".*does not have many workers",
            # A folder that holds a run is refused, resumed or overwritten on request before Lightning looks at it.
            ".*Checkpoint directory .* exists and is not empty",
            # A run may be moved and resumed: Lightning then forgets which checkpoint was best, and none is chosen here.
            "The dirpath has changed from",
            # If it is not used, a CPU was asked for, or it is Apple's, which cannot be.
            "GPU available but not used",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def make_trainer(
    arguments: Options, loggers: Sequence[Logger], callbacks: Sequence[Callback], out: Path, **fixed: str | int
) -> pl.Trainer:
    """A Trainer from ``--trainer.*`` and the suite's own choices; a progress bar only in a terminal.

    Args:
        arguments: ``--trainer.*``; ``None`` leaves the default, which is one process.
        loggers: may be empty.
        callbacks: in order.
        out: the run's folder.
        **fixed: what the caller decides against ``arguments``.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    ours = {"accelerator": "auto", "devices": 1, "num_nodes": 1, "enable_model_summary": False}
    options: dict[str, Any] = {**ours, "enable_progress_bar": sys.stdout.isatty(), **given, **fixed}
    options["accelerator"] = device_for(options)
    if "precision" in options:
        options["precision"] = _usable_precision(options["precision"], options["accelerator"])
    processes = options["devices"] * options["num_nodes"]
    if processes > 1 and options.get("strategy", "auto") == "auto":
        options["strategy"] = "ddp"  # in a notebook, Lightning would fork
    # Lightning's own requeueing would begin another job from a checkpoint that no command has named.
    environments = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    callbacks = [*callbacks, RichProgressBar() if options["enable_progress_bar"] else EpochLine()]
    try:
        with quiet():
            trainer = pl.Trainer(
                **options,
                logger=list(loggers) or False,
                callbacks=callbacks,
                plugins=[checkpoints.AtomicCheckpointIO(), *environments],
                # A folder that is never there: Lightning loads any hpc_ckpt_*.ckpt of its root, whatever run it is of.
                default_root_dir=out / ".lightning",
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                log_every_n_steps=1,
                enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            )
    except (MisconfigurationException, ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"--trainer.*: {in_one_line(error, 300)}") from error
    if trainer.world_size != processes:
        raise UserError(
            f"--trainer.devices {options['devices']}: the launcher (srun, torchrun) has started {trainer.world_size} "
            f"processes, and with --trainer.num_nodes {options['num_nodes']} the run would be one of {processes}"
        )
    return trainer


def device_for(options: Options, option: str = "--trainer.accelerator") -> str:
    """Returns the device type, ``cpu`` or ``cuda``, for the options of a Trainer.

    Args:
        options: of the Trainer.
        option: names the accelerator, for the message.

    Raises:
        UserError: there is no such device, or it does not have the precision.
    """
    accelerator = str(options.get("accelerator") or "auto")
    there = CUDAAccelerator.is_available()
    if accelerator in ("gpu", "cuda") and not there:
        raise UserError(f"{option} {accelerator}: PyTorch finds no CUDA device here; give cpu")
    # Lightning would take Apple's MPS for auto and gpu if there is one.
    device = "cuda" if there and accelerator != "cpu" else "cpu"
    if device == "cpu" and options.get("precision") == "16-mixed":
        # Lightning would take bf16-mixed, and the record would not say so.
        raise UserError("--trainer.precision 16-mixed: a CPU has no such arithmetic; give bf16-mixed or 32-true")
    return device


def require_batches(trainer: pl.Trainer, datamodule: ImageDataModule, *splits: str) -> None:
    """Checks the batches of each split now; Lightning would fail only at the first batch.

    Args:
        trainer: with its limits.
        datamodule: loaded.
        *splits: ``train``, ``val``, ``test``.

    Raises:
        UserError: a limit is less than one batch, or the evaluated images do not divide over the processes.
    """
    datamodule.trainer = trainer  # which processes share the images
    for split in splits:
        limit = getattr(trainer, f"limit_{split}_batches")
        batches = len(getattr(datamodule, f"{split}_dataloader")())
        if isinstance(limit, float) and int(batches * limit) < 1:
            raise UserError(
                f"--trainer.limit_{split}_batches {limit}: is less than one of {batches} batches; give a larger part, "
                "or how many batches"
            )


def training_images(trainer: pl.Trainer, datamodule: ImageDataModule) -> int:
    """How many images an epoch trains on, after limits; says if a last batch that was to be kept cannot be."""
    datamodule.trainer = trainer  # which processes share the images
    loader, limit = datamodule.train_dataloader(), trainer.limit_train_batches
    batches = int(len(loader) * limit) if isinstance(limit, float) else min(len(loader), limit or 0)
    assert isinstance(loader.sampler, BatchSampler)
    left_out = loader.sampler.left_out
    if left_out and datamodule.last_batch == "keep" and trainer.is_global_zero:
        why = (
            "does not divide over the processes" if left_out % trainer.world_size else "has one image for each process"
        )
        print(f"note: the last batch of an epoch, {left_out} images, is left out: it {why}")
    size = len(datamodule.split("train")) - left_out
    return int(min(size, batches * datamodule.batch_size * trainer.world_size))


@contextmanager
def interruptible(doing: str, advice: Callable[[], str]) -> Iterator[None]:
    """Raises ``Interrupted`` for every signal that ends Lightning. SLURM's warning, SIGUSR1, is treated as SIGTERM.

    Args:
        doing: what was under way, for the message.
        advice: how to continue, given the files on disk by then.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came.
        UserError: the disk is full, or something on it cannot be read or written any more.
    """
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGUSR1, lambda *_: signal.raise_signal(signal.SIGTERM)) if here else None
    try:
        yield
    except SIGTERMException as error:
        raise Interrupted(f"{doing} was terminated; {advice()}", 143) from error
    except (SystemExit, KeyboardInterrupt) as error:
        raise Interrupted(f"{doing} was interrupted; {advice()}", 130) from error
    except OSError as error:  # a full disk, a folder that has become read-only: in a log, most often
        raise UserError(f"{doing} ended: {in_one_line(error)}; {advice()}") from error
    finally:
        if here:
            signal.signal(signal.SIGUSR1, before)


def _usable_precision(precision: object, device_type: str) -> object:
    """What to train in: 32 bits, and a line that says so, if there are no instructions for the bfloat16 asked for."""
    if not str(precision).startswith("bf16"):
        return precision
    if device_type == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # emulated by other instructions, it takes some ten times as long as 32 bits
        there = "AVX512" in torch.backends.cpu.get_cpu_capability()
    if not there:
        print(f"note: this processor has no instructions for {precision}: training in 32 bits instead")
    return precision if there else "32-true"


def train(trainer: pl.Trainer, model: pl.LightningModule, datamodule: ImageDataModule, resume: Path | None) -> None:
    """``Trainer.fit``.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the last whole epoch is in the checkpoint.
        UserError: nothing would be trained on or evaluated.
    """

    def advice() -> str:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder and any((Path(folder) / name).exists() for name in (LAST, PREVIOUS)):
            out = shlex.quote(str(Path(folder).parent))
            return f"the last complete epoch is kept; to continue, repeat the command with --ckpt last --out {out}"
        return "it had not begun, so nothing is kept; repeat the command"

    with interruptible("training", advice):
        trainer.fit(model, datamodule=datamodule, ckpt_path=resume and str(resume), weights_only=True)
    if not trainer.state.finished:
        raise UserError(f"training ended in epoch {trainer.current_epoch + 1} with status {trainer.state.status}")
