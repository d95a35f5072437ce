"""Training steps against those of the same net with ReLU, and augmentation against ready batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from bench.snn.activations import Activation
from bench.snn.calibration import Batch
from bench.snn.compilation import compiled_for_training
from bench.speed.figures import Figure, named, noise, rate
from datamodules.cifar import CIFAR10DataModule
from datamodules.sampler import BatchSampler
from datamodules.splits import BatchDataset, Images
from methods.cs_qcfs import CSQCFS
from methods.nq import NQ
from methods.qcfs import QCFS
from methods.relu import ReLU
from methods.training import TrainingModule

BATCH = 128
Batches = list[Batch] | DataLoader[Batch]
METHODS: dict[str, type[TrainingModule]] = {"ReLU": ReLU, "QCFS": QCFS, "CS-QCFS": CSQCFS, "NQ": NQ}


class Stepper:
    """Training steps of one method, bf16 autocast, channels last.

    Args:
        arch: CIFAR net.
        method: a trained one.
        mode: ``eager``, ``activations compiled``, or ``compiled``, the whole net.
        batches: of the steps, ``(images, labels)``.
        device: of the net.
    """

    def __init__(self, arch: str, method: str, mode: str, batches: Batches, device: str) -> None:
        model = METHODS[method](named(arch)).to(memory_format=torch.channels_last).to(device)
        self.batches, self.device = batches, device
        if mode == "activations compiled":
            for module in model.modules():
                if isinstance(module, Activation):
                    module.compile()
        self.net = compiled_for_training(model.net) if mode == "compiled" else model.net
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def __call__(self) -> float:
        """Images a second."""

        def work() -> None:
            for x, y in self.batches:
                self.optimizer.zero_grad()
                with torch.autocast(self.device, torch.bfloat16):
                    logits = self.net(x.to(self.device, memory_format=torch.channels_last))
                torch.autograd.backward(F.cross_entropy(logits.float(), y.to(self.device)))
                self.optimizer.step()

        return rate(work, len(self.batches) * BATCH)


def ready_batches(batches: int, device: str) -> list[Batch]:
    """One batch of noise, again and again, on the device already."""
    return [(noise(BATCH, device), torch.randint(0, 10, (BATCH,), device=device))] * batches


def training(arch: str, batches: int, pairs: int, device: str) -> list[Figure]:
    """The methods against ReLU, in the same mode and in eager mode.

    Args:
        arch: CIFAR net.
        batches: of 128 images, in one measurement.
        pairs: measurements of each ratio.
        device: ``cpu`` or ``cuda``.
    """
    ready = ready_batches(batches, device)
    against = [("ReLU", "compiled", "eager"), ("QCFS", "eager", "eager"), ("QCFS", "activations compiled", "eager")]
    against += [*((name, "compiled", "compiled") for name in ("QCFS", "CS-QCFS", "NQ")), ("QCFS", "compiled", "eager")]
    asked = {("ReLU", "eager"), *((name, mode) for name, mode, _ in against)}
    steppers = {pair: Stepper(arch, *pair, ready, device) for pair in sorted(asked)}
    figures = []
    for name, mode, limit in against:
        figure = Figure(f"training, {name}, {mode}", f"ReLU, {limit}", "images/s")
        figures.append(figure.measure(steppers[name, mode], steppers["ReLU", limit], pairs))
    return figures


def data(arch: str, batches: int, pairs: int, device: str) -> list[Figure]:
    """A step with the papers' whole augmentation, against one on a ready batch, and against plain ReLU.

    The images are random bytes in memory, as CIFAR's are after loading.
    """
    number = batches * BATCH
    images = Images(torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (number,)))
    module, sampler = CIFAR10DataModule(), BatchSampler(number, BATCH, 0, 0, 1)

    def loader(workers: int) -> DataLoader[Batch]:
        dataset = BatchDataset(images, module.pipeline())
        return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers,
                          persistent_workers=workers > 0)  # fmt: skip

    ready = ready_batches(batches, device)
    bare, relu = Stepper(arch, "QCFS", "compiled", ready, device), Stepper(arch, "ReLU", "eager", ready, device)
    figures = []
    for workers in (0, 2):
        fed = Stepper(arch, "QCFS", "compiled", loader(workers), device)
        name = f"training, QCFS, compiled, augmented, {workers} workers"
        figures.append(Figure(name, "ready batches", "images/s").measure(fed, bare, pairs))
        figures.append(Figure(name, "ReLU, eager, ready batches", "images/s").measure(fed, relu, pairs))
    alone = loader(0)
    figure = Figure("augmentation alone", "training, QCFS, compiled, ready batches", "images/s")
    return [*figures, figure.measure(lambda: rate(lambda: list(alone), number), bare, pairs)]
