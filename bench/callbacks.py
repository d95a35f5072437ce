"""Lightning callbacks: conversion and SNN evaluation on the test hooks, seeds, checkpoints, early refusal of NaN."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from bench.errors import UserError
from bench.snn.compilation import worth_compiling
from bench.snn.simulate import SpikingNetwork, simulate


class _Accuracies(nn.Module):
    """Top-1 and top-5 of one classifier; torchmetrics sums them over processes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        kinds: dict[str, Metric | MetricCollection] = {
            f"top{k}": MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro") for k in (1, 5)
        }
        self.metrics = MetricCollection(kinds, compute_groups=False)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        self.metrics.update(scores, labels)

    def compute(self, samples: int) -> dict[str, float]:
        # torchmetrics answers in single precision; whole numbers of right answers give the fraction in double.
        return {name: round(float(value) * samples) / samples for name, value in self.metrics.compute().items()}


def calibration_size(model: Any, datamodule: Any) -> int:
    """How many training images the conversion looks at; in a run on a subset no more than there are.

    Raises:
        UserError: the method asks for more than the training set has.
    """
    wanted: int = model.calibration_images
    there = len(datamodule.split("train"))
    if wanted > there and datamodule.subset is None:
        raise UserError(f"--model.calibration_images {wanted}: the training set of {datamodule.name} has only {there}")
    return min(wanted, there)


class ConversionCallback(pl.Callback):
    """Converts the network when testing starts and evaluates the SNN at every T.

    One pass of ``max(T)`` steps gives the accuracy at each T, because the converted network is causal; a method
    whose conversion depends on T is converted and run once for each. After the test, :attr:`results` holds what the
    record needs; every logger gets ``ann/acc``, ``snn/acc@T=8``, ``snn/firing_rate@T=8`` and the quantised twin.

    Args:
        steps: the values of T, increasing.
        per_T: convert once for each T.

    Raises:
        UserError: when testing starts, for a network that cannot be converted.
    """

    def __init__(self, steps: Sequence[int], per_T: bool = False) -> None:
        self.steps, self.per_T = tuple(steps), per_T
        self.networks: dict[int, SpikingNetwork] = {}
        self.twins: dict[int, nn.Module] = {}
        self.metrics = nn.ModuleDict()
        # Whole numbers add up exactly, in whatever order: images, images with logits that are not finite, spikes by T.
        self.counts: dict[str | int, int | Tensor] = {}
        self.results: dict[str, Any] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Converts."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        # Lightning tests in inference mode, whose tensors cannot be copied and changed as conversion does.
        with torch.inference_mode(False), torch.no_grad():
            batches = []
            if size := calibration_size(pl_module, datamodule):
                loader = datamodule.calibration_dataloader(size)
                batches = [(x.to(pl_module.device), y.to(pl_module.device)) for x, y in loader]
            for T in self.steps if self.per_T else self.steps[-1:]:
                self.networks[T] = pl_module.convert(T, batches).to(pl_module.device)  # type: ignore[operator]
                self.networks[T].compiled = worth_compiling(len(datamodule.split(datamodule.eval_split)) * T)
            self.twins = {T: self._network(T).twin(T) for T in self.steps}
        self.metrics = nn.ModuleDict({"ann": _Accuracies(datamodule.num_classes)})
        for T in self.steps:
            self.metrics[f"snn{T}"] = _Accuracies(datamodule.num_classes)
            self.metrics[f"twin{T}"] = _Accuracies(datamodule.num_classes)
        for name in pl_module.extras:  # type: ignore[union-attr]
            self.metrics[name] = _Accuracies(datamodule.num_classes)
        self.metrics.to(trainer.strategy.root_device)
        self.counts = {"samples": 0, "not_finite": 0, **dict.fromkeys(self.steps, 0)}

    def _network(self, T: int) -> SpikingNetwork:
        return self.networks[T if self.per_T else self.steps[-1]]

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Simulates the batch that the ANN has just seen."""
        if trainer.received_sigterm:
            raise SIGTERMException
        images, labels = batch
        self.counts["samples"] += len(labels)
        self.counts["not_finite"] += (~torch.isfinite(outputs)).sum()
        self.metrics["ann"].update(outputs, labels)  # type: ignore[operator]
        for name in pl_module.extras:  # type: ignore[union-attr]
            self.metrics[name].update(pl_module.extra_logits(name, images, batch_idx), labels)  # type: ignore[operator]
        for T, twin in self.twins.items():
            quantised = twin(images)
            self.counts["not_finite"] += (~torch.isfinite(quantised)).sum()
            self.metrics[f"twin{T}"].update(quantised, labels)  # type: ignore[operator]
        for run, network in self.networks.items():
            readings = [run] if self.per_T else list(self.steps)
            start = 0
            for logits_TBK, spikes_T in simulate(network, images, run):
                part = labels[start : start + logits_TBK.shape[1]]
                start += len(part)
                self.counts["not_finite"] += (~torch.isfinite(logits_TBK)).sum()
                scores_BK = torch.zeros_like(logits_TBK[0])
                for step, logits_BK in enumerate(logits_TBK, 1):
                    scores_BK += logits_BK
                    if step in readings:
                        self.metrics[f"snn{step}"].update(scores_BK, part)  # type: ignore[operator]
                        self.counts[step] += spikes_T[:step].sum()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Computes, on all processes together, and logs."""
        samples = self._count(trainer, "samples")
        if self._count(trainer, "not_finite"):
            raise UserError("the network's logits are not all finite numbers: its weights are broken")
        ann = self._compute("ann", samples)
        points = []
        for T in self.steps:
            point = {"T": T, "warmup": self._network(T).warmup, **self._compute(f"snn{T}", samples)}
            point["firing_rate"] = self._count(trainer, T) / (samples * self._network(T).num_neurons * T)
            point["quantised_top1"] = self._compute(f"twin{T}", samples)["top1"]
            points.append(point)
        extras = {name: self._compute(name, samples)["top1"] for name in pl_module.extras}  # type: ignore[union-attr]
        self.results = {"ann": ann, "snn": points, "extras": extras, "num_eval_samples": samples}
        logged = {f"{name}/acc": value for name, value in extras.items()}
        logged |= {"ann/acc": ann["top1"], "ann/acc_top5": ann["top5"]}
        for point in points:
            logged[f"snn/acc@T={point['T']}"] = point["top1"]
            logged[f"snn/acc_top5@T={point['T']}"] = point["top5"]
            logged[f"snn/firing_rate@T={point['T']}"] = point["firing_rate"]
            logged[f"ann/quantised_acc@T={point['T']}"] = point["quantised_top1"]
        pl_module.log_dict(logged, rank_zero_only=True)

    def _count(self, trainer: pl.Trainer, key: str | int) -> int:
        """The sum over all processes."""
        local = torch.as_tensor(self.counts[key], device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(local, reduce_op="sum"))

    def _compute(self, name: str, samples: int) -> dict[str, float]:
        accuracies = self.metrics[name]
        assert isinstance(accuracies, _Accuracies)
        return accuracies.compute(samples)

    @property
    def evaluated(self) -> SpikingNetwork:
        """The converted network that was run (at the largest T)."""
        return self._network(self.steps[-1])


@rank_zero_only
def _print_on_rank_zero(line: str) -> None:
    print(line, flush=True)


class EpochSeed(pl.Callback):
    """Makes what is random in an epoch (dropout, noise) a function of (seed, epoch).

    A resumed run then goes on exactly where the interrupted one would have been.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seeds torch, which seeds all devices."""
        torch.manual_seed(self.seed * 1_000_003 + trainer.current_epoch)


class EpochLine(pl.Callback):
    """One line for each epoch, where there is no terminal for a progress bar."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints on rank 0."""
        now = time.monotonic()
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items()))
        _print_on_rank_zero(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {values} ({now - self.started:.1f} s)"
        )
        self.started = now


class StopOnNaN(pl.Callback):
    """Ends a training whose loss is not finite, saying at which step."""

    # Reading the loss waits for an accelerator; on a CPU it is free.
    every = 50

    def __init__(self) -> None:
        self.bad: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Checks every loss, on an accelerator in groups."""
        self.bad.append(~torch.isfinite(outputs["loss"].detach()))
        last = batch_idx + 1 == trainer.num_training_batches
        if trainer.strategy.root_device.type == "cpu" or len(self.bad) == self.every or last:
            flags = torch.stack(self.bad).tolist()
            if any(flags):
                step = trainer.global_step - len(flags) + flags.index(True)
                raise UserError(
                    f"the loss is not finite at step {step} (epoch {trainer.current_epoch}); lower --model.lr, or use "
                    "--trainer.precision 32-true; the last whole epoch is in the checkpoint"
                )
            self.bad.clear()
