"""What the papers' recipes share: the optimiser, its schedule, and the defaults that are constants of a paper."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import NETS, LinearNet, refused
from torch import Generator, Tensor, nn

from bench.registry.methods import METHODS
from bench.snn.activations import Activation
from datamodules import augment
from datamodules.augment import Pipeline
from datamodules.autoaugment import BatchedAutoAugment

# RNL has an optimiser for each of its stages, SNN2ANN Adam, as its code has.
OWN_OPTIMISER = ("rnl", "snn2ann")
SGD = [name for name, entry in METHODS.items() if entry.source is None and name not in OWN_OPTIMISER]


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
    ("name", "scale"),
    [("qcfs", "lambda_lr_scale"), ("nq", "lambda_lr_scale"), ("cs_qcfs", "lambda_lr_scale"), ("dsr", "theta_lr_scale")],
)
def test_thresholds_learn_at_a_rate_of_their_own(name: str, scale: str) -> None:
    options: dict[str, Any] = {"lr": 0.4, "momentum": 0.8, scale: 0.25}
    model: Any = METHODS[name].load()(NETS["resnet20"](), **options)
    thresholds = {
        id(p) for module in model.net.modules() if isinstance(module, Activation) for p in module.parameters()
    }
    assert thresholds
    for group in model.optimizer().param_groups:
        for parameter in group["params"]:
            assert (group["lr"], group["momentum"]) == (0.1 if id(parameter) in thresholds else 0.4, 0.8)


def test_labels_are_smoothed(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = METHODS["qcfs"].load()(LinearNet(), label_smoothing=0.2)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    images, labels = torch.randn(6, 3, 8, 8, generator=Generator().manual_seed(0)), torch.arange(6) % 4
    expected = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.2)
    assert torch.isclose(model.training_step((images, labels), 0), expected)


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


class Dropping(LinearNet):
    """Drops activations in training only, by the function."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.1, training=self.training))


def test_dropout_that_evaluation_switches_off_is_trained_and_converted() -> None:
    model = METHODS["relu"].load()(Dropping().train())
    assert all(module.training for module in model.net.modules())
    x = torch.ones(2, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


NAN, INF = float("nan"), float("inf")
IMAGES = [(name, "calibration_images", (0, -3)) for name in ("relu", "rts", "max_norm", "robust_norm", "opi", "snm",
                                                             "burst", "snnc_lp", "snnc_ap")]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "option", "values"),
    [
        *IMAGES, ("qcfs", "L", (0,)), ("qcfs", "lambda_init", (0.0, NAN)), ("qcfs", "lambda_percentile", (0.0, 101.0)),
        ("cs_qcfs", "L", (0,)), ("cs_qcfs", "lambda_init", (0.0, INF)), ("cs_qcfs", "s_weight_decay", (-1.0,)),
        ("nq", "T_val", (0,)), ("cos", "rho", (0,)), ("cos", "rounds", (0,)), ("srp", "tau", (0,)),
        ("rnl", "q_momentum", (-0.1, 1.0)), ("tcl", "lambda_init", (0.0, -1.0, NAN)),
        ("tcl", "lambda_weight_decay", (-1.0,)), ("rts", "ceiling", (0.0, -1.0, NAN, INF)),
        ("rts", "v_init", (-0.1, 0.51, NAN)), ("snnc_lp", "v_init", (-0.1, 0.51, NAN)),
        ("snnc_ap", "v_init", (-0.1, 0.51, NAN)), ("opi", "v_init", (-0.1, 1.0, NAN)),
        ("burst", "v_init", (-0.1, 1.0, NAN)), ("snm", "v_init", (-0.1, 1.0, NAN)), ("burst", "gamma", (0, -1)),
        ("robust_norm", "percentile", (0.0, -1.0, 100.1, NAN)), ("snnc_lp", "granularity", ("neuron",)),
        ("snnc_ap", "iterations", (-1,)), ("snnc_ap", "calibration_batch", (0,)),
        ("snnc_ap", "calibration_lr", (0.0, NAN)),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(method: str, option: str, values: tuple[Any, ...]) -> None:
    entry = METHODS[method]
    for value in values:
        source = None if entry.source is None else METHODS[entry.sources[0]].load()(LinearNet()).net
        with refused(option.replace("s_weight", "weight").replace("lambda_weight", "weight")):
            entry.load()(source or LinearNet(), **{option: value})


CONVERTING = [(name, METHODS[name].sources[0]) for name in METHODS if METHODS[name].source]


@pytest.mark.parametrize(("method", "source"), CONVERTING)
@pytest.mark.parametrize("other", ["relu", "tcl", "qcfs"])
def test_a_net_of_another_kind_is_refused_by_the_name_of_its_layer(method: str, source: str, other: str) -> None:
    if other == source:
        return
    found = {"relu": "a ReLU", "tcl": "a clipped ReLU", "qcfs": "a QCFS"}[other]
    with refused(f"converts a {'QCFS' if source == 'qcfs' else 'ReLU'} net, and act1 is {found} activation"):
        METHODS[method].load()(METHODS[other].load()(LinearNet()).net)


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
