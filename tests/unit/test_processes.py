"""Two processes that have seen different images measure and evaluate one network: that of the first."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import tiny
import torch
from reference import randomise
from torch import Tensor, nn

from bench.run.callbacks import ConversionCallback
from methods.nq import NQ
from methods.relu import ReLU
from methods.snnc_lp import SNNCLight


def differing(net: nn.Module, rank: int) -> None:
    """BN statistics as after one more step on other images."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(0.1 * rank)  # type: ignore[union-attr]


def measured_and_converted(rank: int, folder: Path) -> None:
    """What one of the two has, in a file."""
    address = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=200)
    )
    try:
        torch.save(networks(rank), folder / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def networks(rank: int) -> dict[str, dict[str, Tensor]]:
    model = NQ(tiny.TwoConvolutions(), T_val=2).to(memory_format=torch.channels_last)
    randomise(model, 0)
    differing(model.net, rank)
    model.on_validation_epoch_start()
    found = {"nq": model._snn[0].state_dict(), "nq's net": model.net.state_dict()}

    trained = ReLU(tiny.TwoConvolutions())
    randomise(trained, 0)
    differing(trained.net, rank)
    images = tiny.normal(8, 3, 8, 8, seed=rank).float()
    datamodule = SimpleNamespace(
        split=lambda name: images,
        subset=None,
        eval_split="test",
        eval_batch_size=8,
        num_classes=3,
        input_shape=(3, 8, 8),
        calibration_dataloader=lambda n: tiny.batches(images[:n], (n,)),
    )
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(datamodule=datamodule, strategy=strategy, num_test_batches=[1])
    callback = ConversionCallback((1, 2), per_T=True)
    callback.on_test_start(trainer, SNNCLight(trained.net, calibration_images=8))  # type: ignore[arg-type]
    for T in (1, 2):
        found[f"snn {T}"], found[f"twin {T}"] = callback.networks[T].state_dict(), callback.twins[T].state_dict()
    return found


def test_two_processes_have_one_network(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=measured_and_converted, args=(1, tmp_path))
    other.start()
    measured_and_converted(0, tmp_path)
    other.join(200)
    assert other.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, state in first.items():
        assert state.keys() == second[name].keys()
        different = [key for key, value in state.items() if not torch.equal(value, second[name][key])]
        assert not different, f"{name}: {different}"
