"""Thresholds read from activations: percentiles against numpy, what is refused, and what a dead channel does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import refused, relu_net
from running import logits_of, outputs
from torch import Tensor, nn

from bench.snn.activations import ReLUActivation
from bench.snn.calibration import activation_percentiles, set_thresholds
from bench.snn.neurons import IFNode
from methods.burst import Burst
from methods.max_norm import MaxNorm
from methods.opi import OPI
from methods.robust_norm import RobustNorm
from methods.snm import SNM
from methods.snnc_ap import SNNCAdvanced
from methods.snnc_lp import SNNCLight

PERCENTILES = (100.0, 99.9, 97.3, 90.0, 50.0, 12.5, 1e-6)
AXES = {"layer": (0, 1, 2, 3), "channel": (0, 2, 3), "neuron": (0,)}


# ------------------------------------------------------------------------------------------------- percentiles


@pytest.mark.parametrize("granularity", list(AXES))
@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("sizes", [(15,), (5, 1, 7, 2), (1, 14), (13, 1, 1)])
@pytest.mark.parametrize("features", [False, True], ids=["images", "features"])
def test_percentiles_are_numpy_s(granularity: str, percentile: float, sizes: tuple[int, ...], features: bool) -> None:
    """After a linear layer a channel is a feature, and a neuron as well."""
    images = (tiny.normal(15, 5) if features else tiny.normal(15, 3, 4, 2)) + 2
    found = activation_percentiles(
        nn.Sequential(ReLUActivation()), tiny.batches(images, sizes), percentile, granularity
    )  # type: ignore[arg-type]
    axes = tuple(axis for axis in AXES[granularity] if axis < images.ndim)
    expected = np.percentile(np.maximum(images.numpy(), 0), percentile, axis=axes)
    shape = {"layer": (), "channel": (3, 1, 1), "neuron": (3, 4, 2)}[granularity]
    shape = (5,) if features and shape else shape
    assert found["0"].shape == shape
    np.testing.assert_allclose(found["0"].double().numpy().reshape(expected.shape), expected, rtol=2e-7, atol=1e-37)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    percentile=st.floats(0.01, 100),
    values=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_any_batches_and_any_percentile(sizes: list[int], percentile: float, values: int, seed: int) -> None:
    """Ties included: activations are whole numbers."""
    images = torch.randint(1, values + 2, (sum(sizes), 3), generator=torch.Generator().manual_seed(seed)).double()
    for granularity, axis in (("layer", None), ("neuron", 0)):
        net = nn.Sequential(ReLUActivation())
        found = activation_percentiles(net, tiny.batches(images, sizes), percentile, granularity)  # type: ignore[arg-type]
        np.testing.assert_allclose(found["0"].numpy(), np.percentile(images.numpy(), percentile, axis=axis), rtol=1e-6)


def test_the_net_is_left_as_it_was() -> None:
    net = relu_net().train()
    net.bn2.eval()
    before = copy.deepcopy(net.state_dict())
    modes = {name: module.training for name, module in net.named_modules()}
    images = tiny.normal(6, 3, 8, 8)
    found = activation_percentiles(net, tiny.batches(images, (4, 2)), 99.0)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    again = activation_percentiles(net.eval(), tiny.batches(images, (4, 2)), 99.0)
    assert all(torch.equal(found[name], again[name]) for name in found), "BN in evaluation mode"
    assert modes["bn1"] is True and modes["bn2"] is False


# ------------------------------------------------------------------------------------------ max_norm, robust_norm


@pytest.mark.parametrize(
    ("make", "percentile", "axis"),
    [
        (MaxNorm, 100.0, (0, 1, 2, 3)),
        (RobustNorm, 99.9, (0, 1, 2, 3)),
        (lambda net: RobustNorm(net, percentile=95.0), 95.0, (0, 1, 2, 3)),
        (lambda net: RobustNorm(net, granularity="channel"), 99.9, (0, 2, 3)),
    ],
)
def test_thresholds_of_a_net_computed_by_hand(make, percentile: float, axis: tuple[int, ...]) -> None:
    """Convolution, BN, ReLU and pooling in numpy; conversion folds BN, and no threshold may notice."""
    net, images = relu_net(), tiny.normal(11, 3, 8, 8)
    snn = make(net).convert(8, tiny.batches(images, (4, 4, 3)))
    for name, a in zip(("act1", "act2"), tiny.activations(net, images.numpy()), strict=True):
        expected = np.percentile(a, percentile, axis=axis)
        assert a.max() > 1.05 * np.percentile(a, 99.0), "an outlier, or all percentiles were alike"
        np.testing.assert_allclose(snn.neurons[name].threshold.double().numpy().ravel(), expected.ravel(), rtol=1e-6)
        assert snn.neurons[name].v_init == 0.0


def test_max_norm_is_diehl_s_rescaling_of_the_weights() -> None:
    """Weights times lambda_(l-1) / lambda_l, biases over lambda_l, thresholds 1: the same spikes at every step."""
    net, T = tiny.Layers(), 12
    x = tiny.normal(9, 6)
    snn = MaxNorm(net).convert(T, tiny.batches(x, (5, 4)))
    with outputs(snn.net, IFNode) as sent:
        logits = snn(x, T)
    a, scales = x.numpy(), [1.0]
    rates = tiny.constant(a, T)
    for index, (weight, bias) in enumerate(net.arrays()[:-1], 1):
        a = np.maximum(a @ weight.T + bias, 0)
        # In single precision as thresholds are kept, so that a rounding does not decide a spike.
        scales.append(float(np.float32(a.max())))
        scaled = weight * scales[-2] / scales[-1]
        rates = tiny.spike_train(rates @ scaled.T + bias / scales[-1], 1.0, 0.0)
        np.testing.assert_array_equal(sent[f"act{index}"].unflatten(0, (T, 9)).numpy() > 0, rates > 0)
        assert 0.02 < rates.mean() < 0.9
    weight, bias = net.arrays()[-1]
    np.testing.assert_allclose(logits.numpy(), rates @ (weight * scales[-1]).T + bias, rtol=1e-6, atol=1e-6)


def test_under_max_norm_the_first_layer_keeps_up() -> None:
    """No neuron is asked for more than one spike a step, so the rate is less than theta / T below the activation."""
    net, images, T = relu_net(), tiny.normal(6, 3, 8, 8), 16
    snn = MaxNorm(net).convert(T, tiny.batches(images, (6,)))
    with outputs(snn.net, IFNode) as sent:
        snn(images, T)
    first = sent["act1"].unflatten(0, (T, 6)).mean(0)
    lacking = tiny.activations(net, images.numpy())[0] - first.numpy()
    step = snn.neurons["act1"].threshold.item() / T
    assert lacking.max() < step * (1 + 1e-6)
    assert lacking.min() > -1e-6 * step
    assert lacking.max() > 0.9 * step, "v_0 = 0 rounds down"


# ------------------------------------------------------------------------------------------------ dead channels


def dead_net() -> tiny.TwoConvolutions:
    """Channel 2 of the first layer is active where a pixel is above 5; channel 3 was pruned and gets 0."""
    net = relu_net()
    with torch.no_grad():
        net.conv1.weight[2], net.conv1.bias[2] = 0.0, -5.0
        net.conv1.weight[2, 0, 1, 1] = 1.0
        net.bn1.running_mean[2], net.bn1.running_var[2], net.bn1.weight[2], net.bn1.bias[2] = 0.0, 1.0, 1.0, 0.0
        net.conv1.weight[3], net.conv1.bias[3] = 0.0, 0.0
        net.bn1.running_mean[3], net.bn1.bias[3] = 0.0, 0.0
    return net


RULES = {
    "max_norm": lambda net: MaxNorm(net),
    "robust_norm": lambda net: RobustNorm(net, granularity="channel"),
    "opi": lambda net: OPI(net, granularity="neuron"),
    "snm": lambda net: SNM(net),
    "burst": lambda net: Burst(net),
    "snnc_lp": lambda net: SNNCLight(net, granularity="channel"),
    "snnc_ap": lambda net: SNNCAdvanced(net, granularity="channel", iterations=0),
}


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", RULES)
def test_a_channel_that_was_never_active_is_silent(name: str, precision: torch.dtype) -> None:
    """Its threshold is positive, it adds nothing to the sum, and neither SNN nor twin make a NaN of it."""
    net, images = dead_net().to(precision), tiny.normal(8, 3, 8, 8).to(precision)
    snn = RULES[name](net).convert(8, tiny.batches(images, (5, 3)))
    sent: list[Tensor] = []
    snn.neurons["act1"].register_forward_hook(lambda _, __, out: sent.append(out[:, 2:4].abs().max()))
    with torch.no_grad():
        logits = logits_of(snn, images, 8).mean(0)
        twin = snn.twin(8)(images)
    assert (snn.neurons["act1"].threshold > 0).all()
    assert max(sent) < 1e-30 if name != "max_norm" else max(sent) == 0
    assert torch.isfinite(logits).all()
    assert torch.isfinite(twin).all(), "the quantised twin"
    assert (logits - net(images)).abs().max() < 1.5


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("max_norm", "burst")])
def test_a_unit_that_only_the_test_activates_adds_nothing(name: str) -> None:
    """It fires at every step from then on, and what it sends is too small to change a sum."""
    net, images = dead_net(), tiny.normal(8, 3, 8, 8)
    assert images.max() < 5
    snn = RULES[name](net).convert(8, tiny.batches(images, (5, 3)))
    sent: list[Tensor] = []
    snn.neurons["act1"].register_forward_hook(lambda _, __, out: sent.append(out[:, 2, 3, 3]))
    bright = images.clone()
    bright[:, 0, 3, 3] = 8.0
    logits = logits_of(snn, bright, 8).mean(0)
    assert (torch.cat(sent)[-8:] != 0).all() and torch.cat(sent).abs().max() < 1e-30
    with torch.no_grad():
        snn.net.conv2.weight[:, 2] = 0.0
    assert torch.equal(logits, logits_of(snn, bright, 8).mean(0))


def test_a_layer_that_was_never_active_converts() -> None:
    net, images = relu_net(), tiny.normal(6, 3, 8, 8)
    with torch.no_grad():
        net.bn1.bias.fill_(-100.0)
        net.bn1.weight.fill_(1e-3)
    snn = MaxNorm(net).convert(4, tiny.batches(images, (6,)))
    assert torch.isfinite(logits_of(snn, images, 4).mean(0)).all()
    assert torch.isfinite(snn.twin(4)(images)).all()


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("rule", [MaxNorm, SNM, SNNCLight])
def test_an_empty_calibration_set_is_refused(rule) -> None:
    with refused("calibration images"):
        rule(relu_net()).convert(4, [])


@pytest.mark.parametrize("theta", [float("nan"), -0.5])
def test_the_layer_of_a_bad_threshold_is_named(theta: float) -> None:
    net = relu_net()
    rule = MaxNorm(net)
    rule.calibrate = lambda converted, *_: set_thresholds(  # type: ignore[method-assign]
        converted, {"act1": torch.tensor(1.0), "act2": torch.tensor(theta)}
    )
    with refused("act2"):
        rule.convert(4, [])


@pytest.mark.parametrize("name", RULES)
def test_a_net_of_broken_weights_is_refused_by_layer(name: str) -> None:
    """A NaN in the first convolution makes thresholds NaN."""
    net = relu_net()
    net.conv1.weight.data[1, 0, 1, 1] = float("nan")
    with refused("act1"):
        RULES[name](net).convert(4, tiny.batches(tiny.normal(4, 3, 8, 8), (4,)))
