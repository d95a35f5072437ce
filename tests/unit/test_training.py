"""What the papers' recipes share: the optimiser, its schedule, and the defaults that are constants of a paper."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference import NETS
from torch import Generator, nn

from bench.registry.methods import METHODS
from datamodules import augment
from datamodules.augment import Pipeline
from datamodules.autoaugment import BatchedAutoAugment

SGD = [name for name, entry in METHODS.items() if entry.source is None and name != "rnl"]


@pytest.mark.parametrize("name", SGD)
def test_all_parameters_learn_by_sgd_with_momentum_decay_and_a_cosine_to_zero(name: str) -> None:
    """Bu et al. (2022): momentum 0.9, weight decay 5e-4 on weights, BN and thresholds, a cosine over the epochs."""
    model: Any = METHODS[name].load()(NETS["resnet20"](), lr=0.3)
    model.trainer = SimpleNamespace(max_epochs=4)
    [optimizer], [schedule] = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    groups = optimizer.param_groups
    learning = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in learning} == {id(p) for p in model.parameters()} and len(learning) == len(set(learning))
    assert {group["momentum"] for group in groups} == {0.9}
    own = {group["weight_decay"] for group in groups} - {5e-4}
    assert not own or name in ("tcl", "cs_qcfs"), "whose papers say something else of their thresholds"
    rates = []
    for _ in range(5):
        rates.append(groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.15 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(5)])


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("cos", "rho", 4), ("cos", "rounds", 1), ("cos", "epsilon", 1e-3), ("srp", "tau", 4), ("srp", "epsilon", 1e-3),
        ("burst", "percentile", 99.9), ("burst", "gamma", 5), ("robust_norm", "percentile", 99.9),
        ("opi", "v_init", 0.5), ("snnc_ap", "iterations", 5000), ("snnc_ap", "calibration_lr", 1e-5),
        ("rnl", "weight_decay", 1e-4), ("nq", "L", 4), ("qcfs", "lambda_init", 8.0),
    ],
)  # fmt: skip
def test_defaults_are_the_papers(method: str, option: str, value: float) -> None:
    found: dict[str, inspect.Parameter] = {}
    for kind in reversed(METHODS[method].load().__mro__):
        if issubclass(kind, nn.Module) and "__init__" in vars(kind):
            found |= inspect.signature(kind.__init__).parameters
    assert found[option].default == value


def test_the_pipeline_is_its_five_parts_in_the_papers_order() -> None:
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=Generator().manual_seed(1))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    whole = Pipeline(mean, std, 4, True, True, 16)(images, Generator().manual_seed(2))
    generator = Generator().manual_seed(2)
    x = augment.random_flip(augment.random_crop(images, 4, generator), generator)
    x = BatchedAutoAugment().apply(x, generator)
    x = (x.float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    x = augment.cutout(x, 16, generator)
    assert torch.allclose(whole, x, atol=1e-5)
    without = Pipeline(mean, std, 4, True, False, 16)(images, Generator().manual_seed(2))
    assert not torch.allclose(whole, without)
