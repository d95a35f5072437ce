"""Thresholds read from activations: percentiles against numpy, what is refused, and what a dead channel does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LinearNet, named_model, randomise
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import ReLUActivation
from bench.snn.calibration import activation_percentiles, set_thresholds
from bench.snn.neurons import IFNode
from bench.snn.simulate import simulate
from methods.burst import Burst
from methods.cos import COS
from methods.max_norm import MaxNorm
from methods.opi import OPI
from methods.relu import ReLU
from methods.robust_norm import RobustNorm
from methods.rts import RTS
from methods.snm import SNM
from methods.snnc_ap import SNNCAdvanced
from methods.snnc_lp import SNNCLight
from methods.srp import SRP
from methods.tcl import TCL

PERCENTILES = (100.0, 99.9, 97.3, 90.0, 50.0, 12.5, 1e-6)
AXES = {"layer": (0, 1, 2, 3), "channel": (0, 2, 3), "neuron": (0,)}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def relu_net(seed: int = 0) -> tiny.TwoConvolutions:
    """In double precision, with BN statistics and biases as of a trained net."""
    model = ReLU(tiny.TwoConvolutions()).double().eval()
    randomise(model, seed)
    return model.net  # type: ignore[return-value]


def mean_logits(snn: nn.Module, x: Tensor, T: int) -> Tensor:
    return torch.cat([logits for logits, _ in simulate(snn, x, T)], 1).mean(0)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- percentiles


@pytest.mark.parametrize("granularity", list(AXES))
@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("sizes", [(15,), (5, 1, 7, 2), (1, 14), (13, 1, 1)])
def test_percentiles_of_images_are_numpy_s(granularity: str, percentile: float, sizes: tuple[int, ...]) -> None:
    images = tiny.normal(15, 3, 4, 2) + 2
    found = activation_percentiles(
        nn.Sequential(ReLUActivation()), tiny.batches(images, sizes), percentile, granularity
    )  # type: ignore[arg-type]
    expected = np.percentile(np.maximum(images.numpy(), 0), percentile, axis=AXES[granularity])
    shape = {"layer": (), "channel": (3, 1, 1), "neuron": (3, 4, 2)}[granularity]
    assert found["0"].shape == shape
    np.testing.assert_allclose(found["0"].double().numpy().reshape(expected.shape), expected, rtol=2e-7, atol=1e-37)


@pytest.mark.parametrize("granularity", list(AXES))
def test_percentiles_of_features(granularity: str) -> None:
    """After a linear layer a channel is a feature, and a neuron as well."""
    images = tiny.normal(23, 5)
    net = nn.Sequential(ReLUActivation())
    found = activation_percentiles(net, tiny.batches(images, (9, 9, 5)), 93.0, granularity)  # type: ignore[arg-type]
    axis = None if granularity == "layer" else 0
    expected = np.percentile(np.maximum(images.numpy(), 0), 93.0, axis=axis)
    assert found["0"].shape == (() if granularity == "layer" else (5,))
    np.testing.assert_allclose(found["0"].numpy(), expected, rtol=2e-7)


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
    seen: dict[str, Tensor] = {}
    for name, neuron in snn.neurons.items():
        neuron.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.unflatten(0, (T, 9)) > 0}))
    logits = snn(x, T)
    a, scales = x.numpy(), [1.0]
    rates = tiny.constant(a, T)
    for index, (weight, bias) in enumerate(net.arrays()[:-1], 1):
        a = np.maximum(a @ weight.T + bias, 0)
        # In single precision as thresholds are kept, so that a rounding does not decide a spike.
        scales.append(float(np.float32(a.max())))
        scaled = weight * scales[-2] / scales[-1]
        rates = tiny.spike_train(rates @ scaled.T + bias / scales[-1], 1.0, 0.0)
        np.testing.assert_array_equal(seen[f"act{index}"].numpy(), rates > 0)
        assert 0.02 < rates.mean() < 0.9
    weight, bias = net.arrays()[-1]
    np.testing.assert_allclose(logits.numpy(), rates @ (weight * scales[-1]).T + bias, rtol=1e-6, atol=1e-6)


def test_under_max_norm_the_first_layer_keeps_up() -> None:
    """No neuron is asked for more than one spike a step, so the rate is less than theta / T below the activation."""
    net, images, T = relu_net(), tiny.normal(6, 3, 8, 8), 16
    snn = MaxNorm(net).convert(T, tiny.batches(images, (6,)))
    first: list[Tensor] = []
    snn.neurons["act1"].register_forward_hook(lambda _, __, out: first.append(out.unflatten(0, (T, 6)).mean(0)))
    snn(images, T)
    lacking = tiny.activations(net, images.numpy())[0] - first[0].numpy()
    step = snn.neurons["act1"].threshold.item() / T
    assert lacking.max() < step * (1 + 1e-6)
    assert lacking.min() > -1e-6 * step
    assert lacking.max() > 0.9 * step, "v_0 = 0 rounds down"


def test_more_steps_come_closer_to_the_ann() -> None:
    net, images = relu_net(), tiny.normal(8, 3, 8, 8)
    snn = MaxNorm(net).convert(8, tiny.batches(images, (8,)))
    with torch.no_grad():
        ann = net(images)
    errors = [(mean_logits(snn, images, T) - ann).norm().item() for T in (8, 32, 256)]
    assert errors[0] > 1.5 * errors[1] > 6 * errors[2]
    assert errors[2] < 0.03 * ann.norm().item()


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
        logits = mean_logits(snn, images, 8)
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
    logits = mean_logits(snn, bright, 8)
    assert (torch.cat(sent)[-8:] != 0).all() and torch.cat(sent).abs().max() < 1e-30
    with torch.no_grad():
        snn.net.conv2.weight[:, 2] = 0.0
    assert torch.equal(logits, mean_logits(snn, bright, 8))


def test_a_layer_that_was_never_active_converts() -> None:
    net, images = relu_net(), tiny.normal(6, 3, 8, 8)
    with torch.no_grad():
        net.bn1.bias.fill_(-100.0)
        net.bn1.weight.fill_(1e-3)
    snn = MaxNorm(net).convert(4, tiny.batches(images, (6,)))
    assert torch.isfinite(mean_logits(snn, images, 4)).all()
    assert torch.isfinite(snn.twin(4)(images)).all()


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("number", [0, -3])
@pytest.mark.parametrize("rule", [MaxNorm, RobustNorm, OPI, SNM, Burst, SNNCLight, SNNCAdvanced])
def test_conversion_without_calibration_images_is_refused(rule, number: int) -> None:
    with pytest.raises(UserError, match="calibration_images") as error:
        rule(relu_net(), calibration_images=number)
    assert str(number) in one_line(error)


@pytest.mark.parametrize("method", [ReLU, RTS])
def test_training_for_a_conversion_without_images_is_refused(method) -> None:
    with pytest.raises(UserError, match="calibration_images 0") as error:
        method(tiny.TwoConvolutions(), calibration_images=0)
    one_line(error)


@pytest.mark.parametrize("rule", [MaxNorm, SNM, SNNCLight])
def test_an_empty_calibration_set_is_refused(rule) -> None:
    with pytest.raises(UserError, match="calibration images") as error:
        rule(relu_net()).convert(4, [])
    one_line(error)


@pytest.mark.parametrize("rule", [MaxNorm, RobustNorm, OPI, SNM, Burst, SNNCLight, SNNCAdvanced])
def test_a_qcfs_net_is_refused_where_a_relu_net_is_wanted(rule) -> None:
    net = named_model("linear")[0].net
    with pytest.raises(UserError, match=r"act1.*QCFS") as error:
        rule(net)
    one_line(error)


@pytest.mark.parametrize("rule", [COS, SRP])
@pytest.mark.parametrize("source", [ReLU, TCL])
def test_another_net_is_refused_where_a_qcfs_net_is_wanted(rule, source) -> None:
    net = source(LinearNet()).net
    with pytest.raises(UserError, match=r"act1") as error:
        rule(net).convert(4, [])
    assert "QCFS" in one_line(error)


def test_a_clipped_net_is_no_relu_net_and_the_other_way_round() -> None:
    with pytest.raises(UserError, match="act1") as error:
        MaxNorm(TCL(LinearNet()).net)
    one_line(error)
    with pytest.raises(UserError, match="act1") as error:
        OPI(ReLU(LinearNet()).net, source="clip")
    one_line(error)


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, float("nan")])
def test_a_percentile_that_is_none_is_refused(percentile: float) -> None:
    with pytest.raises(UserError, match="percentile") as error:
        RobustNorm(relu_net(), percentile=percentile)
    one_line(error)


@pytest.mark.parametrize("theta", [float("nan"), -0.5, 0.0, float("inf"), [1.0, float("nan")], [2.0, -1e-9]])
def test_a_threshold_that_is_none_is_refused(theta: float | list[float]) -> None:
    with pytest.raises(UserError, match="threshold") as error:
        IFNode(torch.tensor(theta))
    one_line(error)


@pytest.mark.parametrize("theta", [float("nan"), -0.5])
def test_the_layer_of_a_bad_threshold_is_named(theta: float) -> None:
    net = relu_net()
    rule = MaxNorm(net)
    rule.calibrate = lambda converted, *_: set_thresholds(  # type: ignore[method-assign]
        converted, {"act1": torch.tensor(1.0), "act2": torch.tensor(theta)}
    )
    with pytest.raises(UserError, match="act2") as error:
        rule.convert(4, [])
    one_line(error)
    model = TCL(tiny.TwoConvolutions())
    model.net.act2.threshold.data.fill_(theta)
    with pytest.raises(UserError, match="act2") as error:
        model.convert(4, [])
    one_line(error)


@pytest.mark.parametrize("name", RULES)
def test_a_net_of_broken_weights_is_refused_by_layer(name: str) -> None:
    """A NaN in the first convolution makes thresholds NaN."""
    net = relu_net()
    net.conv1.weight.data[1, 0, 1, 1] = float("nan")
    with pytest.raises(UserError, match="act1") as error:
        RULES[name](net).convert(4, tiny.batches(tiny.normal(4, 3, 8, 8), (4,)))
    one_line(error)
