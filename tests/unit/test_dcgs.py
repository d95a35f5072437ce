"""Differential coding against the recursion of the authors' code, and the thresholds against literal iterations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LinearNet, refused, relu_net
from running import logits_of, run
from torch import nn

from bench.library import convert, simulate
from bench.snn.activations import ReLUActivation
from bench.snn.diagnosis import diagnose
from bench.snn.neurons import Clock
from bench.snn.simulate import simulate as simulate_parts
from methods.dcgs import DCGS, DifferentialNode
from methods.gaussian import channel_moments, gaussian_thresholds
from methods.hmt import HMT
from methods.relu import ReLU

Array = np.ndarray


class Released:
    """A layer as the authors' code has it: a step 0 without image, inputs that come once, expected in- and outputs."""

    def __init__(self, theta: float | Array, levels: int | None) -> None:
        self.levels = [theta * 0.5**k for k in range(levels or 1)]
        self.graded = levels is not None
        self.theta = theta

    def step0(self, x: Array) -> Array:
        self.bias = self.expected_in = x
        self.v = np.zeros_like(x) if self.graded else np.zeros_like(x) + self.theta / 2
        self.expected_out, self.total, self.t = np.zeros_like(x), np.zeros_like(x), 0
        return np.zeros_like(x)

    def step(self, x: Array) -> Array:
        self.t += 1
        self.v = self.v + x - self.bias + self.expected_in - self.expected_out
        self.total = self.total + self.expected_out
        spikes, decided = np.zeros_like(x), np.zeros(x.shape, dtype=bool)
        for level in self.levels:
            up = ~decided & (self.v >= (0.75 if self.graded else 1) * level)
            low = self.v <= (-0.75 * level if self.graded else 0)
            down = ~decided & ~up & low & (self.total * (1 + 1e-6) >= level)
            spikes = np.where(up, level, np.where(down, -level, spikes))
            decided |= up | down
        self.v = self.v - spikes
        self.total = self.total + spikes
        self.expected_in = self.expected_in + (x - self.bias) / self.t
        self.expected_out = self.expected_out + spikes / self.t
        return spikes


def released(net: tiny.Layers, thetas: list[Array], levels: int | None, images: Array, T: int) -> Array:
    """The decoded output of each step."""
    layers = [Released(theta, levels) for theta in thetas]
    weights = net.arrays()
    steps = []
    for t in range(T + 1):
        x = images if t == 1 else np.zeros_like(images)
        for (weight, bias), layer in zip(weights[:-1], layers, strict=True):
            current = x @ weight.T + bias
            x = layer.step(current) if t else layer.step0(current)
        out = x @ weights[-1][0].T + weights[-1][1]
        if t == 0:
            first = expected = out
        else:
            steps.append(expected + out - first)
            expected = expected + (out - first) / t
    return np.stack(steps)


@pytest.mark.parametrize("levels", [None, 1, 4, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_released_recursion(levels: int | None, seed: int) -> None:
    net, x, T = tiny.Layers((6, 12, 10, 9, 4), seed=seed), tiny.normal(20, 6, seed=seed), 16
    kind = {"neuron": "if"} if levels is None else {"levels": levels}
    snn = DCGS(net, 20, **kind).convert(T, tiny.batches(x, (20,)))  # type: ignore[arg-type]
    thetas = [neuron.threshold.double().numpy() for neuron in snn.neurons.values()]
    logits = logits_of(snn, x, T, 10**6)
    assert np.abs(logits.numpy() - released(net, thetas, levels, x.numpy(), T)).max() < 1e-12
    assert (logits_of(snn, x, T, 1) - logits).abs().max() < 1e-12, "in several passes too"


def drive(neuron: DifferentialNode, current: list[float] | float, T: int) -> tuple[list[float], list[int]]:
    """What each step of one neuron stands for, and its events."""
    neuron.reset()
    neuron.clock = Clock(T=T, batch=1)
    inputs = torch.full((T, 1), current) if isinstance(current, float) else torch.tensor(current)[:, None]
    out = neuron(inputs.double())
    return out.flatten().tolist(), neuron.spike_counts.tolist()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.floats(-1.0, 3.0), st.integers(1, 8))
def test_a_constant_input_is_decoded_to_a_fraction_of_theta(z: float, levels: int) -> None:
    """To theta / 2^n, as a neuron that falls silent has less than 3/4 of its smallest level left to say."""
    theta, T = 1.0, 64
    neuron = DifferentialNode(torch.tensor(theta, dtype=torch.float64), levels, 0.0)
    out, events = drive(neuron, z, T)
    assert abs(sum(out) / T - max(z, 0)) <= theta / 2**levels
    # A current far below the smallest level needs many steps for its first event.
    late = 1 if 0 < z < theta / 2**levels else 0
    assert sum(events[T // 2 :]) <= sum(events[: T // 2]) + late
    assert sum(events[-8:]) <= 2 * sum(events[:8]) + late


def test_events_become_rare() -> None:
    x = torch.linspace(-0.5, 2.0, 400, dtype=torch.float64)
    neuron = DifferentialNode(torch.tensor(1.0, dtype=torch.float64), 4, 0.0)
    neuron.clock = Clock(T=64, batch=400)
    neuron(x[:, None])
    counts = neuron.spike_counts
    assert counts[:8].sum() > 20 * counts[-8:].sum()


def test_a_neuron_takes_back_no_more_than_it_has_sent() -> None:
    out, _ = drive(DifferentialNode(torch.tensor(1.0), 4, 0.0), [-3.0, -3.0, 4.0, -6.0, -6.0, -6.0], 6)
    total = np.cumsum(out)
    assert (total >= -1e-6).all()
    assert out[0] == out[1] == 0


# ------------------------------------------------------------------------------------------------------- thresholds


def iterated(mu: float, sigma: float, M: int, iterations: int, theta: float = 1.0) -> float:
    """k as printed in H-MT's appendix, one number after the other."""
    for _ in range(iterations):
        args = [((2 * i - 1) * theta / (2 * M) - mu) / (math.sqrt(2) * sigma) for i in range(1, M + 1)]
        erf, exp = [math.erf(g) for g in args], [math.exp(-(g**2)) for g in args]
        top = mu / theta * (1 - sum(erf) / M) + sigma / (theta * math.sqrt(math.pi / 2)) * sum(exp) / M
        theta *= top / (1 - sum((2 * i - 1) * e for i, e in enumerate(erf, 1)) / M**2)
    return theta


@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (0.7, 0.3), (-0.4, 1.3), (2.0, 0.5)])
@pytest.mark.parametrize("M", [15, 64])
def test_thresholds_are_literal_iterations(mu: float, sigma: float, M: int) -> None:
    mean, deviation = torch.tensor([mu], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64)
    found = gaussian_thresholds(mean, deviation, M, 100, 1.0)
    assert float(found) == pytest.approx(iterated(mu, sigma, M, 100), rel=1e-6)


def test_the_iteration_is_the_least_squares_step_of_drawn_numbers() -> None:
    z = tiny.normal(10**6).mul(0.8).add(0.3)
    theta, M = 1.0, 15
    for _ in range(5):
        n = (z * M / theta).round().clamp(0, M)
        theta = M * float((z * n).sum() / n.square().sum())
    mean, deviation = z.mean()[None], z.std()[None]
    assert float(gaussian_thresholds(mean, deviation, M, 5, 1.0)) == pytest.approx(theta, rel=2e-3)


@pytest.mark.parametrize("sigma", [1.0, 0.05, 0.01, 1e-4])
@pytest.mark.parametrize("mu", [0.0, 2.0, -1.5])
def test_a_channel_of_small_numbers_has_a_threshold_in_proportion(sigma: float, mu: float) -> None:
    """The iteration has converged; far from the start both sides of its quotient would be 0."""
    mean, deviation = (torch.tensor([value * sigma], dtype=torch.float64) for value in (mu, 1.0))
    one = gaussian_thresholds(mean / sigma, deviation / sigma, 15, 1500, 15.0)
    assert float(gaussian_thresholds(mean, deviation, 15, 1500, 15.0)) == pytest.approx(sigma * float(one), rel=1e-5)


def test_channels_without_variance_or_without_any_activity() -> None:
    mean = torch.tensor([0.5, -80.0, 0.0], dtype=torch.float64)
    found = gaussian_thresholds(mean, torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64), 64, 100, 1.0)
    assert torch.isfinite(found).all()
    assert (found >= 0).all()


def test_moments_are_those_of_all_images_whatever_their_batches() -> None:
    net, x = relu_net(), tiny.normal(9, 3, 8, 8)
    found = channel_moments(net, tiny.batches(x, (4, 5)))
    z = tiny.normalise(tiny.convolve(x.numpy(), net.conv1), net.bn1)  # type: ignore[arg-type]
    mean, deviation = found["act1"]
    assert mean.shape == (4, 1, 1)
    assert mean.flatten().tolist() == pytest.approx(z.mean((0, 2, 3)).tolist())
    assert deviation.flatten().tolist() == pytest.approx(z.std((0, 2, 3)).tolist())


def test_the_percentile_instead() -> None:
    net, x = relu_net(), tiny.normal(9, 3, 8, 8)
    snn = DCGS(net, 9, thresholds="percentile", percentile=90.0).convert(4, tiny.batches(x, (9,)))
    first, _ = tiny.activations(net, x.numpy())  # type: ignore[arg-type]
    expected = np.percentile(first.transpose(1, 0, 2, 3).reshape(4, -1), 90, axis=1)
    assert snn.neurons["act1"].threshold.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("rule", ["dcgs", "hmt q999 3", "hmt q999x2 3", "hmt q999x2 1"])
def test_a_channel_that_no_calibration_image_activates_sends_nothing(rule: str) -> None:
    """By percentile its threshold is the smallest number, which any activation would exceed."""
    net, calibration = (
        nn.Sequential(nn.Conv2d(1, 2, 1), ReLUActivation(), nn.Flatten(), nn.Linear(2, 2)),
        torch.ones(4, 1, 1, 1),
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        net[0].bias.zero_()
    model = DCGS(net, 4, thresholds="percentile") if rule == "dcgs" else HMT(net, int(rule[-1]), rule.split()[1], 4)  # type: ignore[arg-type]
    snn = model.convert(4, tiny.batches(calibration, (4,)))
    assert [run(snn, x, 4)[1].sum() > 0 for x in (calibration, -calibration)] == [True, False]


# ------------------------------------------------------------------------------------------------------- a network


def test_it_nears_the_ann_and_pays_for_differences_alone() -> None:
    net, x = relu_net(nn.AvgPool2d(2)), tiny.normal(12, 3, 8, 8)
    snn = DCGS(net, 12).convert(64, tiny.batches(x, (12,)))
    logits, spikes = run(snn, x, 64)
    with torch.no_grad():
        assert (logits.mean(0) - net(x)).abs().max() < 0.02 * net(x).abs().max()
    assert spikes[-16:].sum() < 0.2 * spikes[:16].sum()
    assert {(n.alphabet, n.levels_per_step) for n in snn.neurons.values()} == {("multi", 8)}
    assert snn.lookahead == 0
    # The image comes once; behind average pooling only what has changed is multiplied, whatever pass it is in.
    whole, parted = (
        torch.stack([counts.macs for _, counts in simulate_parts(snn, x, 16, cut)]).sum(0) for cut in (10**6, 1)
    )
    assert torch.equal(whole, parted)
    first, pooled = list(snn.analogue).index("conv1"), list(snn.analogue).index("conv2")
    assert whole[first, 0] > 0
    assert not whole[first, 1:].any()
    assert whole[pooled, 1:].sum() > 0
    assert whole[pooled, -1] < 0.1 * whole[pooled, 0]


def test_diagnosis_adds_up_and_knows_no_ceiling() -> None:
    net, x = relu_net(), tiny.normal(6, 3, 8, 8)
    snn = DCGS(net, 6).convert(8, tiny.batches(x, (6,)))
    found = diagnose(net, snn, tiny.batches(x, (6,)), 8)
    for layer in found["layers"]:
        for view in ("end_to_end", "same_input"):
            parts = sum(layer[view][kind]["mean"] for kind in ("clipping", "quantisation", "unevenness"))
            assert parts == pytest.approx(layer[view]["total"]["mean"], abs=1e-9)
            assert layer[view]["clipping"]["mean_abs"] == 0
        assert (layer["offsets"], layer["offset_share"]) == ({}, None), "events of several sizes are not counted alike"
    first = found["layers"][0]
    assert first["same_input"]["unevenness"]["mean_abs"] < 1e-12, "the first layer's current is constant"


def test_max_pooling_comes_first() -> None:
    net, x = relu_net(nn.MaxPool2d(2)), tiny.normal(12, 3, 8, 8)
    logits = logits_of(DCGS(net, 12).convert(64, tiny.batches(x, (12,))), x, 64)
    with torch.no_grad():
        assert (logits.mean(0) - net(x)).abs().max() < 0.05 * net(x).abs().max()


def test_a_net_of_timm_with_max_pooling_converts() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net, x = timm.create_model("test_resnet", num_classes=5).eval(), torch.randn(4, 3, 32, 32)
    logits = simulate(convert(net, "dcgs", x), x, 32)
    with torch.no_grad():
        expected = net(x)
    assert (logits.mean(0) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("option", "value"),
    [("calibration_images", 0), ("levels", 0), ("levels", 9), ("levels", -1), ("quantiser_levels", 0),
     ("percentile", 0.0), ("percentile", 101.0), ("percentile", math.nan)],
)  # fmt: skip
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with refused(f"--model.{option}"):
        DCGS(ReLU(LinearNet()).net, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"levels": 8, "neuron": "if"}, {"percentile": 99.0}, {"quantiser_levels": 8, "thresholds": "percentile"}],
)
def test_options_without_effect_are_refused(options: dict[str, str | float]) -> None:
    with refused(f"--model.{next(iter(options))} .*: has no effect with --model."):
        DCGS(ReLU(LinearNet()).net, **options)  # type: ignore[arg-type]


def test_images_are_needed() -> None:
    with refused("calibration images and got none"):
        DCGS(tiny.Wire(3, ReLUActivation())).convert(4, [])
