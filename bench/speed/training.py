"""Training steps against those of the same net with ReLU, and augmentation against ready batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.snn.activations import Activation
from bench.snn.compilation import compiled_for_training
from bench.speed.figures import Figure, Rate, named, noise, rate
from datamodules.cifar import CIFAR10DataModule
from datamodules.sampler import BatchSampler
from datamodules.splits import BatchDataset, Images
from methods.cs_qcfs import CSQCFS
from methods.nq import NQ
from methods.qcfs import QCFS
from methods.relu import ReLU

BATCH = 128
METHODS: dict[str, type[Any]] = {"QCFS": QCFS, "CS-QCFS": CSQCFS, "NQ": NQ}


class Stepper:
    """Training steps of one method, bf16 autocast, channels last.

    Args:
        arch: CIFAR net.
        method: a trained one.
        mode: ``eager``; ``activation``, where only the activations are compiled; ``compiled``, the whole net.
        batches: of the steps, ``(images, labels)``.
        device: of the net.
    """

    def __init__(self, arch: str, method: type[Any], mode: str, batches: Any, device: str) -> None:
        self.model = method(named(arch)).to(device, memory_format=torch.channels_last)
        self.batches = batches
        if mode == "activation":
            for module in self.model.modules():
                if isinstance(module, Activation):
                    module.compile()
        self.net = compiled_for_training(self.model.net) if mode == "compiled" else self.model.net
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One."""
        self.optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = self.net(x)
        loss = F.cross_entropy(logits.float(), y)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def __call__(self) -> float:
        """Images a second."""

        def work() -> None:
            for x, y in self.batches:
                self.step(x.contiguous(memory_format=torch.channels_last), y)

        return rate(work, len(self.batches) * BATCH)


def ready_batches(batches: int, device: str) -> list[tuple[Tensor, Tensor]]:
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
    steppers: dict[tuple[str, str], Rate] = {
        ("ReLU", mode): Stepper(arch, ReLU, mode, ready, device) for mode in ("eager", "compiled")
    }
    figure = Figure("training, ReLU, compiled", "ReLU, eager", "images/s")
    figures = [figure.measure(steppers["ReLU", "compiled"], steppers["ReLU", "eager"], pairs)]
    for name, method in METHODS.items():
        for mode in ("eager", "activation", "compiled") if name == "QCFS" else ("compiled",):
            measured = steppers[name, mode] = Stepper(arch, method, mode, ready, device)
            limit = "compiled" if mode == "compiled" else "eager"
            figure = Figure(f"training, {name}, {_MODES[mode]}", f"ReLU, {limit}", "images/s")
            figures.append(figure.measure(measured, steppers["ReLU", limit], pairs))
    figure = Figure("training, QCFS, compiled", "ReLU, eager", "images/s")
    figures.append(figure.measure(steppers["QCFS", "compiled"], steppers["ReLU", "eager"], pairs))
    return figures


_MODES = {"eager": "eager", "activation": "activations compiled", "compiled": "compiled"}


def data(arch: str, batches: int, pairs: int, device: str) -> list[Figure]:
    """A step with the papers' whole augmentation, against one on a ready batch, and against plain ReLU.

    The images are random bytes in memory, as CIFAR's are after loading.
    """
    number = batches * BATCH
    images = Images(torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (number,)))
    module = CIFAR10DataModule()

    def loader(workers: int) -> Any:
        return torch.utils.data.DataLoader(
            BatchDataset(images, module.pipeline()),
            batch_size=None,
            sampler=BatchSampler(number, BATCH, 0, 0, 1),
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    ready = ready_batches(batches, device)
    bare, relu = Stepper(arch, QCFS, "compiled", ready, device), Stepper(arch, ReLU, "eager", ready, device)
    figures = []
    for workers in (0, 2):
        fed = Stepper(arch, QCFS, "compiled", _OnDevice(loader(workers), device), device)
        name = f"training, QCFS, compiled, augmented, {workers} workers"
        figures.append(Figure(name, "ready batches", "images/s").measure(fed, bare, pairs))
        figures.append(Figure(name, "ReLU, eager, ready batches", "images/s").measure(fed, relu, pairs))
    alone = _OnDevice(loader(0), device)
    figure = Figure("augmentation alone", "training, QCFS, compiled, ready batches", "images/s")
    return [*figures, figure.measure(lambda: rate(lambda: list(alone), number), bare, pairs)]


class _OnDevice:
    def __init__(self, loader: Any, device: str) -> None:
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        return ((x.to(self.device), y.to(self.device)) for x, y in self.loader)
