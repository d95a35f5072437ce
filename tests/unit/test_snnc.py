"""SNNC: thresholds of least error, corrections in the order of the spikes, initial potentials, refitted weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from reference import PreActivationNet, randomise, refused, relu_net
from running import logits_of
from tiny import Array
from torch import Tensor

from bench.snn.activations import QuantisedReLU
from bench.snn.graph.trace import segment
from bench.snn.layerwise import mse_thresholds
from bench.snn.neurons import IFNode
from bench.snn.simulate import SpikingNetwork, simulate
from methods.relu import ReLU
from methods.snnc_ap import SNNCAdvanced
from methods.snnc_lp import SNNCLight, Work

# Means are kept in single precision.
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def clip_floor(a: Array, T: int, theta: float) -> Array:
    return theta / T * np.clip(np.floor(a * T / theta), 0, T)


def least_error(a: Array, T: int) -> float:
    """Of the largest activation, 100, 99, .. 6 per cent: which quantises best."""
    thetas = [a.max() * (1 - 0.01 * i) for i in range(95)]
    errors = [((clip_floor(a, T, theta) - a) ** 2).mean() for theta in thetas]
    return thetas[int(np.argmin(errors))]


def averaged(parts: list[float]) -> float:
    value = parts[0]
    for part in parts[1:]:
        value = 0.9 * value + 0.1 * part
    return value


# ------------------------------------------------------------------------------------------------------ thresholds


@pytest.mark.parametrize("T", [1, 2, 4, 16])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_thresholds_are_those_of_a_search_by_brute_force(T: int, granularity: str) -> None:
    """Over three uneven batches, whose optima differ."""
    net, x, sizes = relu_net(), tiny.normal(12, 3, 8, 8), (5, 6, 1)
    found = mse_thresholds(net, tiny.batches(x, sizes), T, granularity)  # type: ignore[arg-type]
    for name, a in zip(("act1", "act2"), tiny.activations(net, x.numpy()), strict=True):
        parts = np.split(a, np.cumsum(sizes)[:-1])
        if granularity == "layer":
            optima = [least_error(part, T) for part in parts]
            assert found[name].shape == ()
            assert len(set(optima)) == 3
            np.testing.assert_allclose(found[name].item(), averaged(optima), rtol=1e-9)
            continue
        assert found[name].shape == (a.shape[1], 1, 1)
        for c in range(a.shape[1]):
            expected = averaged([least_error(part[:, c], T) for part in parts])
            np.testing.assert_allclose(found[name][c].item(), expected, rtol=1e-9)


# ------------------------------------------------------------------------- the whole pipeline, by numpy, on two layers


class ByHand:
    """The pipeline on linear layers: everything that it sets, and the logits that come out."""

    def __init__(self, net: tiny.Layers, x: Array, sizes: tuple[int, ...], T: int, potentials: bool, v: float) -> None:
        self.thetas: list[float] = []
        self.biases: list[Array] = []
        self.starts: list[Array] = []
        self.gains: list[Array] = []
        arrays, arriving, a = net.arrays(), tiny.constant(x, T), x
        for weight, bias in arrays[:-1]:
            a = np.maximum(a @ weight.T + bias, 0)
            theta = averaged([least_error(part, T) for part in np.split(a, np.cumsum(sizes)[:-1])])
            current = arriving @ weight.T + bias
            shift: Array | float = (theta / 2 - v * theta) / T
            sent = tiny.spike_train(current, theta, v * theta, shift).mean((0, 1))
            shift = shift - (sent - a.mean(0))
            start: Array = np.full(len(bias), v * theta)
            corrected = tiny.spike_train(current, theta, start, shift).mean((0, 1))
            if potentials:
                start = start + T * (a.mean(0) - corrected)
            arriving = tiny.spike_train(current, theta, start, shift)
            self.thetas.append(theta)
            self.biases.append(np.asarray(shift))
            self.starts.append(start)
            self.gains.append(np.abs(sent - a.mean(0)))
        weight, bias = arrays[-1]
        self.logits = arriving @ weight.T + bias


@pytest.mark.parametrize("T", [2, 5, 8])
@pytest.mark.parametrize("advanced", [False, True])
@pytest.mark.parametrize("widths", [(6, 8, 4), (6, 8, 7, 4)])
@pytest.mark.parametrize("v_init", [0.0, 0.125, 0.5])
def test_corrections_are_made_in_order_on_the_spikes_that_arrive(
    T: int, advanced: bool, widths: tuple[int, ...], v_init: float
) -> None:
    """A second layer corrected on the ANN's activations, or before the first, would come out otherwise."""
    net, x, sizes = tiny.Layers(widths), tiny.normal(20, 6, seed=5), (9, 8, 3)
    model = SNNCAdvanced(net, iterations=0, v_init=v_init) if advanced else SNNCLight(net, v_init=v_init)
    snn = model.convert(T, tiny.batches(x, sizes))
    expected = ByHand(net, x.numpy(), sizes, T, potentials=advanced, v=v_init)
    for index, neuron in enumerate(snn.neurons.values()):
        assert isinstance(neuron, IFNode)
        assert neuron.bias is not None
        np.testing.assert_allclose(neuron.threshold.item(), expected.thetas[index], rtol=1e-6)
        np.testing.assert_allclose(neuron.bias.numpy(), expected.biases[index], **CLOSE)
        start = torch.as_tensor(neuron.v_init) * neuron.threshold
        np.testing.assert_allclose(start.expand(len(neuron.bias)).numpy(), expected.starts[index], rtol=1e-5, atol=1e-5)
        assert expected.gains[index].max() > 1e-3, "there was something to correct"
    if advanced:
        assert all(np.abs(start).max() > 1e-3 for start in expected.starts)
    fresh = tiny.normal(7, 6, seed=6)
    (logits, _), *_ = simulate(snn, x, T, 10**6)
    np.testing.assert_allclose(logits.numpy(), expected.logits, **CLOSE)
    assert torch.isfinite(next(simulate(snn, fresh, T))[0]).all()


DAMAGE = torch.tensor([-0.3, -0.25, -0.2, -0.1, 0.0], dtype=torch.float64)


class Damaged(SNNCLight):
    """Its second layer's biases go wrong before the correction; notes what is lacking before and after."""

    def before(self, work: Work, name: str, threshold: Tensor) -> None:
        if name == "act2":
            work.net.get_submodule("fc2").bias.data.add_(DAMAGE)

    def correct(self, work: Work, name: str, node: IFNode) -> None:
        first = work.mean_rate(name) - work.means[name]
        super().correct(work, name, node)
        self.__dict__["errors"] = (first, work.mean_rate(name) - work.means[name])


def test_the_correction_removes_the_mean_error_where_neurons_are_linear() -> None:
    """Positive pre-activations below the threshold, spread over many steps: what is added to a bias is taken away."""
    net, T = tiny.Layers((6, 40, 5, 4)), 32
    with torch.no_grad():
        net.get_submodule("fc2").weight.mul_(0.2)
        net.get_submodule("fc2").bias.fill_(3.0)
    x = tiny.normal(400, 6)
    pre: list[Tensor] = []
    net.act2.register_forward_hook(lambda _, inputs, __: pre.append(inputs[0]))  # type: ignore[union-attr]
    net(x)
    assert pre[0].min() > 0.3
    model = Damaged(net)
    snn = model.convert(T, tiny.batches(x, (200, 200)))
    first, after = model.errors
    assert torch.allclose(first.double(), DAMAGE, atol=0.03)
    assert after.abs().max() < 0.03
    neuron = snn.neurons["act2"]
    assert torch.allclose(neuron.bias, neuron.threshold / (2 * T) - first, atol=1e-6)  # type: ignore[arg-type]


def test_channels_are_corrected_over_images_and_positions() -> None:
    """One number for each channel: the mean of the first layer's lack, by numpy."""
    net, x, T = relu_net(), tiny.normal(10, 3, 8, 8), 4
    snn = SNNCLight(net).convert(T, tiny.batches(x, (6, 4)))
    a, _ = tiny.activations(net, x.numpy())
    z = tiny.normalise(tiny.convolve(x.numpy(), net.conv1), net.bn1)
    theta = averaged([least_error(part, T) for part in (a[:6], a[6:])])
    sent = tiny.spike_train(tiny.constant(z, T), theta, 0.0, theta / (2 * T))
    bias = snn.neurons["act1"].bias
    assert isinstance(bias, Tensor)
    assert bias.shape == (4, 1, 1)
    expected = theta / (2 * T) - (sent.mean((0, 1, 3, 4)) - a.mean((0, 2, 3)))
    np.testing.assert_allclose(bias.flatten().numpy(), expected, **CLOSE)
    assert np.abs(expected - theta / (2 * T)).max() > 1e-3


def test_potentials_are_for_each_neuron() -> None:
    """T times what the ANN's mean has more than the SNN's, after the bias correction."""
    net, x, T = relu_net(), tiny.normal(10, 3, 8, 8), 4
    snn = SNNCAdvanced(net, iterations=0, granularity="channel").convert(T, tiny.batches(x, (6, 4)))
    neuron = snn.neurons["act1"]
    a, _ = tiny.activations(net, x.numpy())
    z = tiny.normalise(tiny.convolve(x.numpy(), net.conv1), net.bn1)
    theta, bias = neuron.threshold.double().numpy(), neuron.bias.double().numpy()  # type: ignore[union-attr, operator]
    sent = tiny.spike_train(tiny.constant(z, T), theta, 0.0, bias).mean((0, 1))
    start = neuron.v_init * neuron.threshold
    assert start.shape == (4, 8, 8)
    np.testing.assert_allclose(start.double().numpy(), T * (a.mean(0) - sent), rtol=1e-4, atol=1e-5)
    assert start.flatten(1).std(1).min() > 1e-3


# ----------------------------------------------------------------------------------------------------- the weight refit


def quantised_error(weight: Array, bias: Array, x: Array, target: Array, theta: float, T: int) -> float:
    counts = np.clip(np.floor((x @ weight.T + bias) * T / theta + 0.5), 0, T)
    return float(((counts * theta / T - target) ** 2).mean())


def mean_spikes(snn: SpikingNetwork, name: str, x: Tensor, T: int) -> Array:
    sent: list[Tensor] = []
    hook = snn.neurons[name].register_forward_hook(lambda _, __, out: sent.append(out))
    list(simulate(snn, x, T, 10**6))
    hook.remove()
    return sent[0].unflatten(0, (T, len(x))).mean(0).numpy()


def test_the_refit_lowers_the_error_of_each_segment() -> None:
    """Against the ANN's activation, on the mean spikes that arrive, with the weights of before and of after.

    The first layer sees what it saw in training, so its weights cannot gain much; the others see spikes.
    """
    net, x, T = tiny.Layers((6, 8, 7, 6, 4), seed=2), tiny.normal(64, 6, seed=5), 4
    model = SNNCAdvanced(net, iterations=250, calibration_lr=2e-3)
    snn = model.convert(T, tiny.batches(x, (32, 32)))
    a = incoming = x.numpy()
    for index, (weight, bias) in enumerate(net.arrays()[:-1], 1):
        a = np.maximum(a @ weight.T + bias, 0)
        layer, theta = snn.net.get_submodule(f"fc{index}"), snn.neurons[f"act{index}"].threshold.item()
        before = quantised_error(weight, bias, incoming, a, theta, T)
        after = quantised_error(tiny.numpy(layer.weight), tiny.numpy(layer.bias), incoming, a, theta, T)
        assert after < (1.1, 0.95, 0.85)[index - 1] * before, index
        incoming = mean_spikes(snn, f"act{index}", x, T)
    head = snn.net.get_submodule("fc4")
    assert torch.equal(head.weight, net.get_submodule("fc4").weight), "the last layer stays as it is"


def test_no_iterations_leave_the_weights() -> None:
    net, x = relu_net(), tiny.normal(6, 3, 8, 8)
    light = SNNCLight(net).convert(4, tiny.batches(x, (6,)))
    advanced = SNNCAdvanced(net, iterations=0).convert(4, tiny.batches(x, (6,)))
    for name, value in light.net.named_parameters():
        assert torch.equal(value, advanced.net.get_parameter(name))


class Watched(SNNCAdvanced):
    """Remembers the weights behind each layer as they were when it was corrected."""

    def correct(self, work: Work, name: str, node: IFNode) -> None:
        super().correct(work, name, node)
        done = self.__dict__.setdefault("done", {})
        done[name] = [parameter.detach().clone() for parameter in segment(work.net, name)[0].parameters()]


@pytest.mark.parametrize("net", ["preactivation", "convolutions"])
def test_what_was_corrected_is_not_refitted_afterwards(net: str) -> None:
    """In a pre-activation net the stem feeds every later sum; a later refit must not move what it has fed before."""
    model = ReLU(PreActivationNet() if net == "preactivation" else tiny.TwoConvolutions()).double().eval()
    randomise(model, 0)
    ours = Watched(model.net, iterations=5, calibration_lr=1e-3, calibration_batch=4)
    snn = ours.convert(4, tiny.batches(tiny.normal(6, 3, 8, 8), (6,)))
    for name, weights in ours.done.items():
        for before, after in zip(weights, segment(snn.net, name)[0].parameters(), strict=True):
            assert torch.equal(before, after), name


def test_a_channel_that_is_silent_in_calibration_leaves_no_nan_in_the_weights() -> None:
    """Its theta is the smallest positive number; a current of exactly 0 times levels / theta must stay 0."""
    net, x = relu_net(), tiny.normal(8, 3, 8, 8)
    for convolution, norm in ((net.conv1, net.bn1), (net.conv2, net.bn2)):
        convolution.weight.data[1] = 0.0  # type: ignore[index, union-attr]
        norm.weight.data[1] = norm.bias.data[1] = 0.0  # type: ignore[index, union-attr]
    rule = SNNCAdvanced(net, granularity="channel", iterations=3, calibration_batch=4)
    snn = rule.convert(4, tiny.batches(x, (8,)))
    assert all(bool(value.isfinite().all()) for value in snn.state_dict().values())


# ------------------------------------------------------------------------------------------------------------ the rest


METHODS = {
    "light": lambda net: SNNCLight(net),
    "channel": lambda net: SNNCLight(net, granularity="channel"),
    "advanced": lambda net: SNNCAdvanced(net, iterations=8, calibration_lr=1e-3, calibration_batch=4),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_trained_net_stays_as_it_is(name: str) -> None:
    net, x = relu_net(), tiny.normal(6, 3, 8, 8)
    state, kinds = copy.deepcopy(net.state_dict()), [type(module) for module in net.modules()]
    model = METHODS[name](net)
    own = set(model.state_dict()), set(vars(model))
    model.convert(4, tiny.batches(x, (4, 2)))
    assert [type(module) for module in net.modules()] == kinds
    assert (set(model.state_dict()), set(vars(model))) == own, "nothing stays behind"
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("name", METHODS)
def test_a_conversion_depends_on_nothing_that_ran_before(name: str) -> None:
    net, x = relu_net(), tiny.normal(6, 3, 8, 8)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        snn = METHODS[name](net).convert(4, tiny.batches(x, (4, 2)))
        results.append(snn.state_dict())
        METHODS[name](net).convert(3, tiny.batches(x, (6,)))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_a_conversion_leaves_the_global_generator_alone() -> None:
    model = METHODS["advanced"](relu_net())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model.convert(4, tiny.batches(tiny.normal(6, 3, 8, 8), (6,)))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("other", [2, 8])
def test_another_T_is_refused_in_one_line(name: str, other: int) -> None:
    x = tiny.normal(6, 3, 8, 8)
    snn = METHODS[name](relu_net()).convert(4, tiny.batches(x, (6,)))
    assert sum(part.shape[1] for part, _ in simulate(snn, x, 4)) == 6
    with refused(f"T = {other}.*T = 4"):
        list(simulate(snn, x, other))


def test_calibration_beats_the_largest_activation_at_few_steps() -> None:
    """What the method is for: logits of T = 4 nearer to the ANN's, on images that it has not seen."""
    from methods.max_norm import MaxNorm

    net, data, x = relu_net(), tiny.batches(tiny.normal(40, 3, 8, 8), (20, 20)), tiny.normal(40, 3, 8, 8, seed=1)
    with torch.no_grad():
        ann = net(x)
    errors = {}
    for method in (MaxNorm(net), SNNCLight(net), SNNCAdvanced(net, iterations=0)):
        logits = logits_of(method.convert(4, data), x, 4).mean(0)
        errors[type(method)] = (logits - ann).square().mean().item()
    assert errors[SNNCLight] < 0.3 * errors[MaxNorm]
    assert errors[SNNCAdvanced] < 0.3 * errors[MaxNorm]


def test_the_twin_takes_shift_and_potential_along() -> None:
    """First layer, constant current: the quantised twin is what the neurons send."""
    net, x, T = tiny.Layers((6, 8, 4)), tiny.normal(9, 6), 5
    for model in (SNNCLight(net), SNNCAdvanced(net, iterations=0)):
        snn = model.convert(T, tiny.batches(x, (9,)))
        (logits, _), *_ = simulate(snn, x, T, 10**6)
        with torch.no_grad():
            twin = copy.deepcopy(snn.net)
            twin.act1 = snn.neurons["act1"].twin(T)
            assert torch.allclose(logits.mean(0), twin(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [SNNCLight, SNNCAdvanced])
def test_the_twin_is_the_ann_quantised_without_the_corrections_for_uneven_spikes(kind: type[SNNCLight]) -> None:
    net, x, T = relu_net(), tiny.normal(12, 3, 8, 8), 4
    options = {"iterations": 3} if kind is SNNCAdvanced else {}
    snn = kind(net, calibration_images=12, **options).convert(T, tiny.batches(x, (12,)))
    expected = copy.deepcopy(net).eval()
    for name, neuron in snn.neurons.items():
        expected.set_submodule(name, QuantisedReLU(neuron.threshold, T))
    assert torch.allclose(snn.twin(T)(x), expected(x), rtol=1e-5, atol=1e-6)
    assert not any("quantised" in name for name in kind(net).state_dict())
