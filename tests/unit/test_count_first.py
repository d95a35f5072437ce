"""Layers that count first: equal to quantised nets in double precision, and what is random has the right mean."""

from __future__ import annotations

import itertools
import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LinearNet, named_model, refused, relu_net, trained
from running import logits_of, outputs, run
from torch import Tensor, nn

from bench.errors import UserError
from bench.registry.methods import METHODS
from bench.snn.activations import Activation, QCFSActivation
from bench.snn.diagnosis import diagnose
from bench.snn.neurons import Clock, Draws, SpikingNeuron
from bench.snn.simulate import simulate
from methods.bitplane import BitPlane, BitPlaneNode
from methods.counting import CountFirst
from methods.parallel import AlignedActivation, Parallel, ParallelNode
from methods.pascal import PASCAL, CorrectedCountNode
from methods.qcfs import QCFS
from methods.relu import ReLU
from methods.tpp import TPP, ProbabilisticNode

THETA = 2.0
NETS = ["linear", "resnet20", "vgg", "preactivation"]


def theta() -> Tensor:
    return torch.tensor(THETA, dtype=torch.float64)


def send(neuron: SpikingNeuron, inputs: Tensor) -> Tensor:
    """``[T, images]`` in and out."""
    neuron.reset()
    neuron.clock = Clock(T=len(inputs), batch=inputs.shape[1])
    return neuron(inputs.double().reshape(-1, 1)).view(inputs.shape)


# --------------------------------------------------------------------------------------------------------- parallel


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("T", [1, 2, 4, 8])
def test_parallel_conversion_at_T_of_L_is_the_quantised_ann(name: str, T: int) -> None:
    model, x = named_model(name, L=T)
    snn = Parallel(model.net).convert(T, [])
    with torch.no_grad():
        assert (logits_of(snn, x, T).mean(0) - model.net(x)).abs().max() < 1e-12


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.integers(-30, 60).map(lambda k: k / 8), min_size=1, max_size=9), st.randoms())
def test_the_comparators_are_the_paper_s_and_blind_to_order(inputs: list[float], random) -> None:
    T = len(inputs)
    layer = AlignedActivation(theta(), 0.5, T)
    shuffled = random.sample(inputs, T)
    out = send(ParallelNode(layer), torch.tensor([inputs, shuffled], dtype=torch.float64).T)
    mean = sum(inputs) / T
    # Both sides times t, as multiples of 1/8 are exact and their thirds are not.
    expected = [THETA if sum(inputs) + THETA / 2 >= t * THETA else 0.0 for t in range(1, T + 1)]
    assert out[:, 0].tolist() == out[:, 1].tolist() == expected
    assert out[:, 0].sum() == min(max(math.floor(mean * T / THETA + 0.5), 0), T) * THETA


def aligned_by_hand(net: nn.Module, batches: list[Tensor], T: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Shift and gain of both layers of two convolutions, from the update rules as they are printed."""
    thetas = {name: m.threshold.detach() for name, m in net.named_modules() if isinstance(m, QCFSActivation)}
    L = net.act1.L  # type: ignore[union-attr]
    phi = {"act1": torch.zeros(4, 1, 1).double(), "act2": torch.zeros(5, 1, 1).double()}
    psi = {name: value.clone() for name, value in phi.items()}

    def layers(a: Tensor) -> list:  # type: ignore[type-arg]
        first = lambda x: net.bn1(net.conv1(x))  # type: ignore[operator,union-attr] # noqa: E731
        second = lambda x: net.bn2(net.conv2(net.pool(x)))  # type: ignore[operator,union-attr] # noqa: E731
        return [("act1", first), ("act2", second)]

    for x in batches:
        original = aligned = x
        for name, layer in layers(x):
            theta = thetas[name]
            z_of_ann, z = layer(original), layer(aligned)
            original = theta / L * torch.floor(z_of_ann * L / theta + 0.5).clamp(0, L)
            shift = (z_of_ann - z).mean((0, 2, 3))[:, None, None]
            phi[name] = 0.99 * phi[name] + 0.01 * shift
            level = (torch.floor((z + phi[name]) * T / theta + 0.5) / T).clamp(0, 1)
            aligned = level * (theta + psi[name])
            psi[name] = 0.99 * psi[name] + 0.01 * (original - aligned).mean((0, 2, 3))[:, None, None]
    return {name: (phi[name], psi[name]) for name in phi}


def test_alignment_is_the_two_moving_averages() -> None:
    model = QCFS(tiny.TwoConvolutions(), L=8, lambda_init=1.5).double().eval()
    x, T = tiny.normal(7, 3, 8, 8), 3
    rule = Parallel(model.net, iterations=5)
    snn = rule.convert(T, tiny.batches(x, (4, 3)))
    with torch.no_grad():
        expected = aligned_by_hand(model.net, [x[:4], x[4:], x[:4], x[4:], x[:4]], T)
    for name, (phi, psi) in expected.items():
        neuron = snn.neurons[name]
        assert torch.allclose(neuron.shift, phi, atol=1e-9), name  # type: ignore[arg-type]
        assert torch.allclose(neuron.gain, psi, atol=1e-9), name  # type: ignore[arg-type]
        assert psi.abs().max() > 1e-4
    with torch.no_grad():
        twin = snn.twin(T)(x)
    assert (logits_of(snn, x, T).mean(0) - twin).abs().max() < 1e-12


@pytest.mark.parametrize("source", ["qcfs", "relu"])
def test_alignment_brings_the_mean_of_each_channel_nearer_to_the_ann_s(source: str) -> None:
    x, T = tiny.normal(40, 3, 8, 8), 3
    net = relu_net() if source == "relu" else trained(tiny.TwoConvolutions(), x, L=8).net
    with outputs(net, Activation) as ann:
        net(x)
    errors = {}
    for align in ("never", "auto"):
        options = {"iterations": 200} if align == "auto" else {}
        rule = Parallel(net, source, align, **options)  # type: ignore[arg-type]
        twin = rule.convert(T, tiny.batches(x, (40,))).twin(T)
        with outputs(twin, Activation) as found:
            twin(x)
        errors[align] = [float((found[n] - ann[n]).mean((0, 2, 3)).abs().mean()) for n in ("act1", "act2")]
    assert errors["auto"][0] < errors["never"][0]
    assert errors["auto"][1] < errors["never"][1]


def test_a_channel_that_is_never_active_sends_nothing_in_parallel() -> None:
    net, x = relu_net(), tiny.normal(6, 3, 8, 8)
    net.bn1.bias.data[2] = -50.0  # type: ignore[index, union-attr]
    snn = Parallel(net, "relu", iterations=3).convert(4, tiny.batches(x, (6,)))
    with outputs(snn.net, SpikingNeuron) as sent:
        run(snn, x * 1000, 4)
    assert not sent["act1"][:, 2].any()
    assert sent["act1"].any()


@pytest.mark.parametrize("T", [1, 2])
def test_alignment_raises_no_output_above_the_ceiling_of_a_relu6(T: int) -> None:
    net, x = relu_net(), tiny.normal(40, 3, 8, 8)
    net.act1.ceiling = net.act2.ceiling = 0.4  # type: ignore[assignment, union-attr]
    snn = Parallel(net, "relu", iterations=200).convert(T, tiny.batches(x, (40,)))
    with outputs(snn.net, SpikingNeuron) as sent:
        run(snn, x, T)
    for layer in ("act1", "act2"):
        assert 0.2 < float(sent[layer].max()) < 0.4 + 1e-6


# -------------------------------------------------------------------------------------------------------- bit planes


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("T", [1, 2, 3, 4])
def test_bit_planes_are_the_quantised_ann(name: str, T: int) -> None:
    model, x = named_model(name, L=2**T - 1)
    snn = BitPlane(model.net).convert(T, [])
    with torch.no_grad():
        assert (logits_of(snn, x, T).mean(0) - model.net(x)).abs().max() < 1e-12


def test_a_net_of_another_L_is_its_own_twin() -> None:
    model, x = named_model("resnet20", L=4)
    snn = BitPlane(model.net).convert(3, [])
    with torch.no_grad():
        twin, ann = snn.twin(3)(x), model.net(x)
    assert (logits_of(snn, x, 3).mean(0) - twin).abs().max() < 1e-12
    assert (twin - ann).abs().max() > 1e-3


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.integers(-30, 60).map(lambda k: k / 8), min_size=1, max_size=6))
def test_a_word_is_compared_bit_by_bit_from_the_highest(inputs: list[float]) -> None:
    T = len(inputs)
    unit = THETA / (2**T - 1)
    left, bits = sum(inputs) / T + unit / 2, []
    for t in range(1, T + 1):
        bits.append(left >= 2 ** (T - t) * unit)
        left -= 2 ** (T - t) * unit * bits[-1]
    neuron = BitPlaneNode(theta(), T)
    out = send(neuron, torch.tensor(inputs, dtype=torch.float64)[:, None])[:, 0]
    value = sum(bit * 2 ** (T - t) * unit for t, bit in enumerate(bits, 1))
    margin = abs((sum(inputs) / T / unit + 0.5) % 1 - 0.5)
    if margin < 0.499:  # else the two round a tie
        assert float(out.mean()) == pytest.approx(value)
        assert (out > 0).tolist() == bits


def test_a_layer_that_sees_the_image_alone_multiplies_once_for_a_word_even_if_the_image_is_repeated() -> None:
    model, x = named_model("preactivation")  # its first shortcut starts before the first neuron
    snn = BitPlane(model.net).convert(3, [])
    [(_, counts)] = simulate(snn, x, 3, 10**6)
    stem = counts.macs[list(snn.analogue).index("stem")]
    assert stem[0] > 0
    assert stem[1:].tolist() == [0, 0]


def test_a_word_costs_its_bits_one_image_and_shifts() -> None:
    model, x = named_model("vgg")
    T = 3
    snn = BitPlane(model.net).convert(T, [])
    [(_, counts)] = simulate(snn, x, T, 10**6)
    first = next(iter(snn.analogue))
    row = counts.macs[list(snn.analogue).index(first)]
    assert row[0] > 0 and row[1:].tolist() == [0, 0]
    behind = counts.macs[1:]  # average pooling and linear layers multiply at each step
    assert behind[:, 1:].sum() > 0
    assert snn.shifts(T) == 2 * snn.num_neurons
    assert snn.membrane_updates(T) == 2 * T * snn.num_neurons


@pytest.mark.parametrize("T", [9, 32])
def test_more_than_8_bits_are_refused(T: int) -> None:
    model, _ = named_model("linear")
    with refused(f"T = {T}: .*at most 8 bits"):
        BitPlane(model.net).convert(T, [])


# ----------------------------------------------------------------------------------------------------------- PASCAL


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("T", [1, 2, 4, 8])
def test_corrected_counts_are_those_of_the_quantised_ann(name: str, T: int) -> None:
    model, x = named_model(name, L=T)
    snn = PASCAL(model.net).convert(T, [])
    with torch.no_grad():
        assert (logits_of(snn, x, T).mean(0) - model.net(x)).abs().max() < 1e-12
    depth = {"linear": 2, "resnet20": 19, "vgg": 9}.get(name)
    assert depth is None or snn.wait == depth * (2 * T - 1)
    assert snn.membrane_updates(T) == (3 * T - 1) * snn.num_neurons


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.integers(-30, 60).map(lambda k: k / 8), min_size=1, max_size=9))
def test_any_order_of_any_input_is_counted_right(inputs: list[float]) -> None:
    neuron, T, v, n = CorrectedCountNode(theta(), len(inputs)), len(inputs), THETA / 2, 0
    out = send(neuron, torch.tensor(inputs, dtype=torch.float64)[:, None])
    assert set(out.flatten().tolist()) <= {0.0, THETA}
    for x in inputs:
        v += x
        v, n = (v - THETA, n + 1) if v >= THETA else (v, n)
    for _ in range(T - 1):  # the paper's corrections, by one spike at each step
        if v >= THETA and n < T:
            v, n = v - THETA, n + 1
        elif v < 0 and n > 0:
            v, n = v + THETA, n - 1
    assert (out.sum(), neuron.v.item()) == (n * THETA, v)
    assert out.sum() == min(max(math.floor(sum(inputs) / THETA + 0.5), 0), len(inputs)) * THETA


# -------------------------------------------------------------------------------------------------------------- TPP


def exact_mean(v: float, T: int) -> float:
    """Mean count from a potential of ``v`` thetas, summed over all that can happen."""
    if T == 0:
        return 0.0
    p = min(max(v / T, 0.0), 1.0)
    return p * (1 + exact_mean(v - 1, T - 1)) + (1 - p) * exact_mean(v, T - 1)


@pytest.mark.parametrize("T", [1, 2, 4, 8])
def test_the_mean_count_is_that_of_the_probabilities(T: int) -> None:
    values, draws = [-0.5, 0.0, 0.4, 0.9, 1.0, 1.5, 2.3, T - 0.5, float(T), T + 2.0], 4000
    start = torch.tensor(values, dtype=torch.float64) * THETA
    x = torch.zeros(T, len(values) * draws)
    x[0] = start.repeat(draws)
    counts = (send(ProbabilisticNode(theta(), T, Draws(0, "a")), x).sum(0) / THETA).view(draws, len(values))
    assert counts.max() <= T
    assert counts.min() >= 0
    for value, mean in zip(values, counts.mean(0).tolist(), strict=True):
        expected = exact_mean(value, T)
        if 0 < value < 1:
            product = math.prod(1 - value / k for k in range(1, T + 1))
            assert expected == pytest.approx(1 - product)
        if value == int(value):
            assert mean == min(max(value, 0), T)
        assert mean == pytest.approx(expected, abs=0.05)
    assert exact_mean(0.4, 4) == pytest.approx(0.626, abs=1e-3)
    assert exact_mean(1.5, 4) == pytest.approx(1.570, abs=1e-3)


def test_each_neuron_draws_by_itself_and_each_conversion_the_same() -> None:
    model, x = named_model("resnet20")
    one, two = (TPP(model.net).convert(4, []) for _ in range(2))
    first = logits_of(one, x, 4)
    assert torch.equal(first, logits_of(two, x, 4))
    assert not torch.equal(first, logits_of(one, x, 4)), "a second run draws others"
    assert not torch.equal(first, logits_of(TPP(model.net, 1).convert(4, []), x, 4))
    neuron = ProbabilisticNode(theta(), 8, Draws(0, "a"))
    out = send(neuron, torch.full((8, 200), 1.0))
    assert len(torch.unique(out, dim=1).T) > 50
    assert (out.sum(0) == 4 * THETA).all(), "8 steps of theta / 2 are 4 spikes"


# -------------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("kind", [Parallel, BitPlane, TPP])
def test_layers_wait_for_one_another_and_nothing_is_paid_twice(kind: type[CountFirst]) -> None:
    model, x = named_model("resnet20")
    T = 3
    snn = kind(model.net, align="never").convert(T, []) if kind is Parallel else kind(model.net).convert(T, [])  # type: ignore[call-arg]
    with outputs(snn.net, SpikingNeuron) as sent:
        [(_, counts)] = simulate(snn, x, T, 10**6)
    assert snn.wait == 19 * T
    assert (snn.only_T, snn.lookahead, snn.heard) == (T, T, set())
    assert snn.paid(counts, T)[0] == counts.synops.sum()
    for (name, neuron), spikes in zip(snn.neurons.items(), counts.spikes, strict=True):
        assert neuron.alphabet == "binary"
        assert int(spikes.sum()) == int((sent[name] != 0).sum())
    assert snn.membrane_updates(T) == 2 * T * snn.num_neurons
    with pytest.raises(UserError, match="sends after 3 steps of input"):
        snn(x, 2)
    with refused("T = 4: this network was converted for T = 3"):
        next(simulate(snn, x, 4))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.exact])
def test_exact_methods_equal_their_twins(name: str) -> None:
    model, x = named_model("vgg", L=4)
    kind = METHODS[name].load()
    snn = kind(model.net, source="qcfs").convert(4, []) if name == "ttfs" else kind(model.net).convert(4, [])
    with torch.no_grad():
        assert (logits_of(snn, x, 4).mean(0) - snn.twin(4)(x)).abs().max() < 1e-12


@pytest.mark.parametrize("kind", [Parallel, BitPlane])
def test_diagnosis_finds_no_unevenness(kind: type[CountFirst]) -> None:
    model, x = named_model("vgg")
    snn = kind(model.net, align="never").convert(3, []) if kind is Parallel else kind(model.net).convert(3, [])  # type: ignore[call-arg]
    found = diagnose(model.net, snn, tiny.batches(x, (3,)), 3)
    for layer, view in itertools.product(found["layers"], ("end_to_end", "same_input")):
        assert layer[view]["unevenness"]["mean_abs"] < 1e-12
        assert layer["offset_share"] == 0


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Parallel, {"calibration_images": 0}, "--model.calibration_images 0"),
        (Parallel, {"iterations": 0}, "--model.iterations 0"),
        (Parallel, {"iterations": 9, "align": "never"}, "--model.iterations 9: has no effect"),
        (Parallel, {"calibration_images": 9, "align": "never"}, "--model.calibration_images 9: has no effect"),
        (TPP, {"draw_seed": -1}, "--model.draw_seed -1"),
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(
    kind: type[CountFirst], options: dict[str, int], words: str
) -> None:
    with refused(words):
        kind(QCFS(LinearNet()).net, **options)  # type: ignore[arg-type]


def test_alignment_needs_images_and_the_right_net() -> None:
    model, _ = named_model("linear", L=8)
    with refused("calibration images and got none"):
        Parallel(model.net).convert(4, [])
    with refused("converts a ReLU net, and act1 is a QCFS"):
        Parallel(model.net, "relu")
    with refused("converts a QCFS net, and act1 is a ReLU"):
        Parallel(ReLU(LinearNet()).net)
