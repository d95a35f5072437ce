"""Conversion and evaluation of the SNN, on Lightning's test hooks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypedDict

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from bench.errors import UserError
from bench.records.energy import ENERGY_MODEL
from bench.records.record import Accuracy, SnnAccuracy
from bench.snn.calibration import Batch
from bench.snn.compilation import worth_compiling
from bench.snn.processes import share
from bench.snn.readout import DELAY_IMAGES
from bench.snn.simulate import SpikingNetwork, simulate
from datamodules.base import ImageDataModule
from methods.base import ConversionModule


class Results(TypedDict):
    """What a record holds of an evaluation; accuracies are fractions.

    Attributes:
        ann: ``top1`` and ``top5``.
        snn: the point of each T.
        extras: ``top1`` of the method's further classifiers.
        num_eval_samples: images.
    """

    ann: Accuracy
    snn: list[SnnAccuracy]
    extras: dict[str, float]
    num_eval_samples: int


def accuracies(num_classes: int) -> MetricCollection:
    """Top-1 and top-5 of one classifier; torchmetrics sums them over processes."""
    kinds: dict[str, Metric | MetricCollection] = {
        f"top{k}": MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro") for k in (1, 5)
    }
    return MetricCollection(kinds, compute_groups=False)


def calibration_size(model: ConversionModule, datamodule: ImageDataModule) -> int:
    """How many training images the conversion looks at; in a run on a subset, at most the size of the subset.

    Raises:
        UserError: the method asks for more than the training set has.
    """
    wanted, there = model.calibration_images, len(datamodule.split("train"))
    if wanted > there and datamodule.subset is None:
        estimated = model.readout.delay == "auto" and wanted == DELAY_IMAGES
        option = "--snn.delay auto" if estimated else f"--model.calibration_images {wanted}"
        raise UserError(f"{option}: needs {wanted} training images, and {datamodule.name} has only {there}")
    return min(wanted, there)


def calibration_batches(model: ConversionModule, datamodule: ImageDataModule) -> list[Batch]:
    """The training images that the conversion looks at, on the model's device.

    Raises:
        UserError: the method asks for more than the training set has.
    """
    size, device = calibration_size(model, datamodule), next(model.parameters()).device
    loader: Iterable[Batch] = datamodule.calibration_dataloader(size) if size else []
    return [(images.to(device), labels.to(device)) for images, labels in loader]


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

    results: Results

    def __init__(self, steps: Sequence[int], per_T: bool = False) -> None:
        self.steps, self.per_T, self.draws = tuple(steps), per_T, 1
        self.networks: dict[int, SpikingNetwork] = {}
        self.twins: dict[int, nn.Module] = {}
        self.metrics: dict[str, MetricCollection] = {}
        # Whole numbers add up exactly, in whatever order: images, logits that are not finite; by T, spikes of each
        # layer, and synaptic operations and multiply-accumulates.
        self.totals: dict[str, Tensor] = {}
        self.spikes: dict[int, Tensor] = {}
        self.operations: dict[int, Tensor] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Converts."""
        assert isinstance(pl_module, ConversionModule)
        device = trainer.strategy.root_device
        datamodule: ImageDataModule = getattr(trainer, "datamodule")  # noqa: B009 - Lightning declares it nowhere
        # Lightning tests in inference mode, whose tensors cannot be copied and changed as conversion does.
        with torch.inference_mode(False), torch.no_grad():
            # After a training each process has its own BN statistics, and the weights of the first are the ones kept.
            share(pl_module.buffers())
            batches = calibration_batches(pl_module, datamodule)
            self.draws = pl_module.readout.draws if pl_module.random else 1
            images = min(
                len(datamodule.split(datamodule.eval_split)),
                int(sum(trainer.num_test_batches)) * datamodule.eval_batch_size,
            )
            for T in self.steps if self.per_T else self.steps[-1:]:
                self.networks[T] = pl_module.convert(T, batches, datamodule.input_shape).to(device)
                self.networks[T].compiled = not pl_module.random and worth_compiling(images * T)
            self.twins = {T: self._network(T).twin(T) for T in self.steps}
            # All processes evaluate the same network, even if their calibrations were rounded differently.
            for module in (*self.networks.values(), *self.twins.values()):
                share(itertools.chain(module.parameters(), module.buffers()))
        names = ["ann", *pl_module.extras, *(f"{kind}{T}" for T in self.steps for kind in ("snn", "twin"))]
        self.metrics = {name: accuracies(datamodule.num_classes).to(device) for name in names}
        zeros = torch.zeros(2, dtype=torch.int64, device=device)
        self.totals = {"samples": zeros[0].clone(), "not_finite": zeros[0].clone()}
        self.operations = {T: zeros.clone() for T in self.steps}
        self.spikes = {T: zeros.new_zeros(len(self._network(T).neurons)) for T in self.steps}

    def _network(self, T: int) -> SpikingNetwork:
        return self.networks[T if self.per_T else self.steps[-1]]

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Simulates the batch that the ANN has just seen."""
        if trainer.received_sigterm:
            raise SIGTERMException
        assert isinstance(pl_module, ConversionModule) and isinstance(outputs, Tensor)
        images, labels = batch
        self.totals["samples"] += len(labels)
        self._see("ann", outputs, labels)
        for name in pl_module.extras:
            self.metrics[name].update(pl_module.extra_logits(name, images, batch_idx), labels)
        for T, twin in self.twins.items():
            self._see(f"twin{T}", twin(images), labels)
        for run, network in self.networks.items():
            readings = [run] if self.per_T else list(self.steps)
            for _ in range(self.draws):
                start = 0
                for logits_TBK, counts in simulate(network, images, run):
                    part = labels[start : start + logits_TBK.shape[1]]
                    start += len(part)
                    self.totals["not_finite"] += (~torch.isfinite(logits_TBK)).sum()
                    for step in readings:
                        self.metrics[f"snn{step}"].update(network.score(logits_TBK, step), part)
                        self.spikes[step] += counts.spikes[:, network.counted(step)].sum(1)
                        self.operations[step] += network.paid(counts, step)

    def _see(self, name: str, logits: Tensor, labels: Tensor) -> None:
        self.totals["not_finite"] += (~torch.isfinite(logits)).sum()
        self.metrics[name].update(logits, labels)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Computes, on all processes together, and logs."""
        assert isinstance(pl_module, ConversionModule)
        samples = int(self._total(trainer, self.totals["samples"]))
        if self._total(trainer, self.totals["not_finite"]):
            raise UserError("the network's logits are not all finite numbers: its weights are broken")
        # torchmetrics answers in single precision; whole numbers of right answers give the fraction in double.
        seen = {name: samples * (self.draws if name.startswith("snn") else 1) for name in self.metrics}
        found = {
            name: {top: round(float(value) * seen[name]) / seen[name] for top, value in metric.compute().items()}
            for name, metric in self.metrics.items()
        }
        extras = {name: found[name]["top1"] for name in pl_module.extras}
        self.results = Results(ann=Accuracy(**found["ann"]), snn=[], extras=extras, num_eval_samples=samples)
        logged = {f"{name}/acc": value for name, value in extras.items()}
        logged |= {"ann/acc": found["ann"]["top1"], "ann/acc_top5": found["ann"]["top5"]}
        for T in self.steps:
            network, snn, quantised = self._network(T), found[f"snn{T}"], found[f"twin{T}"]["top1"]
            spikes, runs = self._total(trainer, self.spikes[T]).tolist(), samples * self.draws
            synops, macs = (int(total) / runs for total in self._total(trainer, self.operations[T]))
            sizes = {name: neuron.size for name, neuron in network.neurons.items()}
            rates = {name: n / (runs * size * T) for n, (name, size) in zip(spikes, sizes.items(), strict=True)}
            rate, joules = sum(spikes) / (runs * network.num_neurons * T), ENERGY_MODEL.joules(macs, synops)
            point = SnnAccuracy(
                T=T, warmup=network.warmup, wait=network.wait, delay=network.window(T).start,
                top1=snn["top1"], top5=snn["top5"], quantised_top1=quantised,
                firing_rate=rate, layer_firing_rates=rates, synops=synops, macs=macs,
                membrane_updates=network.membrane_updates(T), shifts=network.shifts(T), energy_joule=joules,
            )  # fmt: skip
            self.results["snn"].append(point)
            logged |= {
                f"snn/acc@T={T}": snn["top1"], f"snn/acc_top5@T={T}": snn["top5"], f"snn/firing_rate@T={T}": rate,
                f"snn/synops@T={T}": synops, f"snn/energy_joule@T={T}": joules, f"ann/quantised_acc@T={T}": quantised,
            }  # fmt: skip
        pl_module.log_dict(logged, rank_zero_only=True)

    def _total(self, trainer: pl.Trainer, local: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Tensor = trainer.strategy.reduce(local, reduce_op="sum")
        return total

    @property
    def evaluated(self) -> SpikingNetwork:
        """The converted network that was run (at the largest T)."""
        return self._network(self.steps[-1])
