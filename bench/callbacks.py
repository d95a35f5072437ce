"""Lightning callbacks: conversion and SNN evaluation on the test hooks, seeds, checkpoints, early refusal of NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from bench.errors import UserError
from bench.snn.simulate import SpikingNetwork, simulate


class _Accuracies(nn.Module):
    """Top-1 and top-5 of one classifier; torchmetrics sums them over processes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        kinds = {
            f"top{k}": MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro") for k in (1, 5)
        }
        self.metrics = MetricCollection(kinds, compute_groups=False)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        self.metrics.update(scores, labels)

    def compute(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.metrics.compute().items()}


class ConversionCallback(pl.Callback):
    """Converts the network when testing starts and evaluates the SNN at every T.

    One pass of ``max(T)`` steps gives the accuracy at each T, because the converted network is causal; a method
    whose conversion depends on T is converted and run once for each. After the test, :attr:`results` holds what the
    record needs; every logger gets ``ann/acc``, ``snn/acc@T=8``, ``snn/firing_rate@T=8`` and the quantised twin.

    Args:
        steps: the values of T, increasing.
        per_T: convert once for each T.
        calibration_images: training images shown to the conversion.

    Raises:
        UserError: when testing starts, for a network that cannot be converted.
    """

    def __init__(self, steps: Sequence[int], per_T: bool = False, calibration_images: int = 1000) -> None:
        self.steps, self.per_T, self.calibration_images = tuple(steps), per_T, calibration_images
        self.networks: dict[int, SpikingNetwork] = {}
        self.twins: dict[int, nn.Module] = {}
        self.metrics = nn.ModuleDict()
        self.results: dict[str, Any] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Converts."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        size = min(self.calibration_images, len(datamodule.split("train")))
        # Lightning tests in inference mode, whose tensors cannot be copied and changed as conversion does.
        with torch.inference_mode(False), torch.no_grad():
            batches = [
                (images.to(pl_module.device), labels.to(pl_module.device))
                for images, labels in datamodule.calibration_dataloader(size)
            ]
            for T in self.steps if self.per_T else self.steps[-1:]:
                self.networks[T] = pl_module.convert(T, batches).to(pl_module.device)  # type: ignore[operator]
            self.twins = {T: self._network(T).twin(T) for T in self.steps}
        self.metrics = nn.ModuleDict({"ann": _Accuracies(datamodule.num_classes), "samples": SumMetric()})
        for T in self.steps:
            self.metrics[f"snn{T}"] = _Accuracies(datamodule.num_classes)
            self.metrics[f"twin{T}"] = _Accuracies(datamodule.num_classes)
            self.metrics[f"rate{T}"] = MeanMetric()
        self.metrics.to(pl_module.device)

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
        images, labels = batch
        self.metrics["samples"].update(len(labels))  # type: ignore[operator]
        self.metrics["ann"].update(outputs, labels)  # type: ignore[operator]
        for T, twin in self.twins.items():
            self.metrics[f"twin{T}"].update(twin(images), labels)  # type: ignore[operator]
        for run, network in self.networks.items():
            readings = [run] if self.per_T else list(self.steps)
            start = 0
            for logits_TBK, rates_T in simulate(network, images, run):
                part = labels[start : start + logits_TBK.shape[1]]
                start += len(part)
                sums_TBK, rate_sums_T = logits_TBK.cumsum(0), rates_T.cumsum(0)
                for T in readings:
                    self.metrics[f"snn{T}"].update(sums_TBK[T - 1], part)  # type: ignore[operator]
                    self.metrics[f"rate{T}"].update(rate_sums_T[T - 1] / T, weight=len(part))  # type: ignore[operator]

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Computes, on all processes together, and logs."""
        ann = self._compute("ann")
        points = []
        for T in self.steps:
            point = {"T": T, "warmup": self._network(T).warmup, **self._compute(f"snn{T}")}
            point["firing_rate"] = float(self.metrics[f"rate{T}"].compute())  # type: ignore[operator]
            point["quantised_top1"] = self._compute(f"twin{T}")["top1"]
            points.append(point)
        samples = int(self.metrics["samples"].compute())  # type: ignore[operator]
        self.results = {"ann": ann, "snn": points, "num_eval_samples": samples}
        logged = {"ann/acc": ann["top1"], "ann/acc_top5": ann["top5"]}
        for point in points:
            logged[f"snn/acc@T={point['T']}"] = point["top1"]
            logged[f"snn/acc_top5@T={point['T']}"] = point["top5"]
            logged[f"snn/firing_rate@T={point['T']}"] = point["firing_rate"]
            logged[f"ann/quantised_acc@T={point['T']}"] = point["quantised_top1"]
        pl_module.log_dict(logged, rank_zero_only=True)

    def _compute(self, name: str) -> dict[str, float]:
        accuracies = self.metrics[name]
        assert isinstance(accuracies, _Accuracies)
        return accuracies.compute()

    @property
    def evaluated(self) -> SpikingNetwork:
        """The converted network that was run (at the largest T)."""
        return self._network(self.steps[-1])


class EpochSeed(pl.Callback):
    """Makes what is random in an epoch (dropout, noise) a function of (seed, epoch), so that a resumed run goes on
    exactly where the interrupted one would have been."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seeds torch, which seeds all devices."""
        torch.manual_seed(self.seed * 1_000_003 + trainer.current_epoch)


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
        if pl_module.device.type == "cpu" or len(self.bad) == self.every or last:
            flags = torch.stack(self.bad).tolist()
            if any(flags):
                step = trainer.global_step - len(flags) + flags.index(True)
                raise UserError(
                    f"the loss is not finite at step {step} (epoch {trainer.current_epoch}); lower --model.lr, or use "
                    "--trainer.precision 32-true; the last whole epoch is in the checkpoint"
                )
            self.bad.clear()
