"""Conversion and evaluation of the SNN, on Lightning's test hooks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from bench.errors import UserError
from bench.snn.compilation import worth_compiling
from bench.snn.cost import ENERGY_MODEL
from bench.snn.processes import share
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


def calibration_batches(model: Any, datamodule: Any) -> list[tuple[Tensor, Tensor]]:
    """The training images that the conversion looks at, on the model's device.

    Raises:
        UserError: the method asks for more than the training set has.
    """
    size = calibration_size(model, datamodule)
    loader = datamodule.calibration_dataloader(size) if size else []
    return [(images.to(model.device), labels.to(model.device)) for images, labels in loader]


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
        # Whole numbers add up exactly, in whatever order: images, logits that are not finite; by T, spikes of each
        # layer, and synaptic operations and multiply-accumulates.
        self.counts: dict[str, int | Tensor] = {}
        self.spikes: dict[int, Tensor] = {}
        self.operations: dict[int, Tensor] = {}
        self.results: dict[str, Any] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Converts."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        # Lightning tests in inference mode, whose tensors cannot be copied and changed as conversion does.
        with torch.inference_mode(False), torch.no_grad():
            # After a training each process has its own BN statistics, and the weights of the first are the ones kept.
            share(pl_module.buffers())
            batches = calibration_batches(pl_module, datamodule)
            for T in self.steps if self.per_T else self.steps[-1:]:
                self.networks[T] = pl_module.convert(T, batches).to(pl_module.device)  # type: ignore[operator]
                self.networks[T].compiled = worth_compiling(len(datamodule.split(datamodule.eval_split)) * T)
            self.twins = {T: self._network(T).twin(T) for T in self.steps}
            # All processes evaluate one network, however each has rounded what it calibrated.
            for module in (*self.networks.values(), *self.twins.values()):
                share(itertools.chain(module.parameters(), module.buffers()))
        self.metrics = nn.ModuleDict({"ann": _Accuracies(datamodule.num_classes)})
        for T in self.steps:
            self.metrics[f"snn{T}"] = _Accuracies(datamodule.num_classes)
            self.metrics[f"twin{T}"] = _Accuracies(datamodule.num_classes)
        for name in pl_module.extras:  # type: ignore[union-attr]
            self.metrics[name] = _Accuracies(datamodule.num_classes)
        self.metrics.to(trainer.strategy.root_device)
        self.counts = {"samples": 0, "not_finite": 0}
        zeros = torch.zeros(2, dtype=torch.int64, device=trainer.strategy.root_device)
        self.operations = {T: zeros.clone() for T in self.steps}
        self.spikes = {T: zeros.new_zeros(len(self._network(T).neurons)) for T in self.steps}

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
            for logits_TBK, _ in simulate(network, images, run):
                part = labels[start : start + logits_TBK.shape[1]]
                start += len(part)
                self.counts["not_finite"] += (~torch.isfinite(logits_TBK)).sum()
                scores_BK = torch.zeros_like(logits_TBK[0])
                for step, logits_BK in enumerate(logits_TBK, 1):
                    scores_BK += logits_BK
                    if step in readings:
                        self.metrics[f"snn{step}"].update(scores_BK, part)  # type: ignore[operator]
                        self._count_operations(network, step)

    def _count_operations(self, network: SpikingNetwork, T: int) -> None:
        counts = network.counts
        self.spikes[T] += counts.spikes[:, network.counted(T)].sum(1)
        self.operations[T] += torch.stack(network.paid(T))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Computes, on all processes together, and logs."""
        samples = self._count(trainer, "samples")
        if self._count(trainer, "not_finite"):
            raise UserError("the network's logits are not all finite numbers: its weights are broken")
        ann = self._compute("ann", samples)
        points = []
        for T in self.steps:
            network = self._network(T)
            point = {"T": T, "warmup": network.warmup, **self._compute(f"snn{T}", samples)}
            point["quantised_top1"] = self._compute(f"twin{T}", samples)["top1"]
            point |= self._costs(trainer, network, T, samples)
            points.append(point)
        extras = {name: self._compute(name, samples)["top1"] for name in pl_module.extras}  # type: ignore[union-attr]
        self.results = {"ann": ann, "snn": points, "extras": extras, "num_eval_samples": samples}
        logged = {f"{name}/acc": value for name, value in extras.items()}
        logged |= {"ann/acc": ann["top1"], "ann/acc_top5": ann["top5"]}
        for point in points:
            logged[f"snn/acc@T={point['T']}"] = point["top1"]
            logged[f"snn/acc_top5@T={point['T']}"] = point["top5"]
            logged[f"snn/firing_rate@T={point['T']}"] = point["firing_rate"]
            logged[f"snn/synops@T={point['T']}"] = point["synops"]
            logged[f"snn/energy_joule@T={point['T']}"] = point["energy_joule"]
            logged[f"ann/quantised_acc@T={point['T']}"] = point["quantised_top1"]
        pl_module.log_dict(logged, rank_zero_only=True)

    def _costs(self, trainer: pl.Trainer, network: SpikingNetwork, T: int, samples: int) -> dict[str, Any]:
        """Means over the images, and firing rates."""
        spikes = self._total(trainer, self.spikes[T]).tolist()
        synops, macs = (int(total) / samples for total in self._total(trainer, self.operations[T]))
        neurons = {name: neuron.size for name, neuron in network.neurons.items()}
        rates = {name: n / (samples * size * T) for n, (name, size) in zip(spikes, neurons.items(), strict=True)}
        return {
            "firing_rate": sum(spikes) / (samples * network.num_neurons * T),
            "layer_firing_rates": rates,
            "synops": synops,
            "macs": macs,
            "membrane_updates": network.membrane_updates(T),
            "energy_joule": ENERGY_MODEL.joules(macs, synops),
        }

    def _count(self, trainer: pl.Trainer, key: str) -> int:
        return int(self._total(trainer, torch.as_tensor(self.counts[key], device=trainer.strategy.root_device)))

    def _total(self, trainer: pl.Trainer, local: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Tensor = trainer.strategy.reduce(local, reduce_op="sum")
        return total

    def _compute(self, name: str, samples: int) -> dict[str, float]:
        accuracies = self.metrics[name]
        assert isinstance(accuracies, _Accuracies)
        return accuracies.compute(samples)

    @property
    def evaluated(self) -> SpikingNetwork:
        """The converted network that was run (at the largest T)."""
        return self._network(self.steps[-1])
