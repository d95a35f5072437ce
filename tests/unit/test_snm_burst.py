"""Signed neurons, burst neurons and pooling by lateral inhibition, against scalar versions written from the papers."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import randomise, refused, relu_net
from running import logits_of
from steps import steps_of
from torch import Tensor, nn

from bench.errors import UserError
from bench.registry.methods import METHODS
from bench.snn.neurons import Clock, IFNode, Timed
from bench.snn.pooling import LateralInhibitionPool
from bench.snn.simulate import simulate
from methods.burst import Burst, BurstIFNode
from methods.max_norm import MaxNorm
from methods.opi import OPI
from methods.relu import ReLU
from methods.robust_norm import RobustNorm
from methods.snm import SNM, SignedIFNode
from methods.snnc_lp import SNNCLight

THETA = 2.0
# Multiples of 1/8 keep sums exact, so that equality with a threshold really happens.
currents = st.lists(st.integers(-40, 120).map(lambda k: k / 8), min_size=2, max_size=14)
checked = settings(deadline=None, max_examples=150, derandomize=True)


def theta() -> Tensor:
    return torch.tensor(THETA, dtype=torch.float64)


def run(module: Timed, inputs: list[float], continued: bool = False) -> list[float]:
    """One neuron, one image."""
    if not continued:
        module.reset()
    module.clock = Clock(T=len(inputs), batch=1)
    return module(torch.tensor(inputs, dtype=torch.float64).view(-1, 1, 1)).flatten().tolist()


def signed_by_hand(inputs: list[float], start: float = 0.0) -> list[int]:
    """Spikes of +1 and -1; one is taken back only where one was sent."""
    u, memory, spikes = start * THETA, 0, []
    for current in inputs:
        u += current
        spike = 0
        if u >= THETA:
            spike = 1
        elif u <= -THETA and memory > 0:
            spike = -1
        u -= THETA * spike
        memory += spike
        spikes.append(spike)
    return spikes


def burst_by_hand(inputs: list[float], gamma: int) -> tuple[list[int], float]:
    """Counts in each step, and what remains."""
    u, counts = 0.0, []
    for current in inputs:
        u += current
        count = 0
        while count < gamma and u >= THETA:
            u -= THETA
            count += 1
        counts.append(count)
    return counts, u


# ----------------------------------------------------------------------------------------------------------- SNM


@checked
@given(currents, st.sampled_from([0.0, 0.5]))
def test_a_signed_neuron_is_the_paper_s(inputs: list[float], start: float) -> None:
    spikes = [out / THETA for out in run(SignedIFNode(theta(), start), inputs)]
    assert spikes == signed_by_hand(inputs, start)


@checked
@given(currents)
def test_what_was_sent_never_sums_to_less_than_nothing(inputs: list[float]) -> None:
    total, first = 0.0, None
    for out in run(SignedIFNode(theta()), inputs):
        first = first or out
        total += out
        assert total >= 0
    assert not first or first > 0, "no negative spike comes first"


def test_a_signed_neuron_takes_back_at_equality_and_only_what_it_sent() -> None:
    inputs = [2.0, 2.0, -2.0, -2.0, -2.0, -2.0, 6.0]
    assert run(SignedIFNode(theta()), inputs) == [2.0, 2.0, -2.0, -2.0, 0.0, 0.0, 2.0]
    assert run(SignedIFNode(theta()), [-2.0, -2.0, 4.0, 2.0]) == [0.0, 0.0, 0.0, 2.0]


def test_the_memory_is_forgotten_between_images() -> None:
    neuron = SignedIFNode(theta())
    assert run(neuron, [2.0, 2.0, 2.0]) == [2.0, 2.0, 2.0]
    assert run(neuron, [-2.0, -2.0]) == [0.0, 0.0]


def test_neurons_and_images_do_not_mix() -> None:
    """Thresholds of their own for each neuron; [T, B, C, H, W] against one scalar run each."""
    T, B = 9, 3
    thresholds = torch.tensor([[[0.5, 1.0]], [[2.0, 0.75]]], dtype=torch.float64)
    x = torch.randint(-16, 32, (T, B, 2, 1, 2), generator=torch.Generator().manual_seed(0)) / 8
    neuron = SignedIFNode(thresholds)
    neuron.clock = Clock(T, B)
    out = neuron(x.double().flatten(0, 1)).unflatten(0, (T, B)) / thresholds
    for b in range(B):
        for c in range(2):
            for w in range(2):
                scale = THETA / thresholds[c, 0, w].item()
                expected = signed_by_hand([value * scale for value in x[:, b, c, 0, w].tolist()])
                assert out[:, b, c, 0, w].tolist() == expected


def test_snm_has_one_threshold_for_each_neuron() -> None:
    net = ReLU(tiny.TwoConvolutions()).double()
    randomise(net, 0)
    x = tiny.normal(7, 3, 8, 8)
    snn = SNM(net.net).convert(4, tiny.batches(x, (4, 3)))
    for name, a in zip(("act1", "act2"), tiny.activations(net.net, x.numpy()), strict=True):
        neuron = snn.neurons[name]
        assert neuron.alphabet == "ternary"
        assert neuron.v_init == 0.0
        expected = torch.from_numpy(a.max(0)).clamp_min(1e-37)
        assert torch.allclose(neuron.threshold.double(), expected, rtol=1e-6, atol=1e-36)


# --------------------------------------------------------------------------------------------------------- burst


@checked
@given(currents, st.integers(1, 6))
def test_a_burst_neuron_is_the_paper_s(inputs: list[float], gamma: int) -> None:
    neuron = BurstIFNode(theta(), gamma)
    out = run(neuron, inputs)
    counts, rest = burst_by_hand(inputs, gamma)
    assert [value / THETA for value in out] == counts
    assert max(counts) <= gamma
    assert neuron.spike_counts.tolist() == counts, "a burst of k is k spikes"
    assert neuron.v is not None
    assert neuron.v.item() == rest
    assert sum(inputs) == sum(out) + rest, "no charge is lost"


@checked
@given(st.lists(st.floats(-3, 9, width=32), min_size=1, max_size=14), st.floats(0.0625, 3, width=32))
def test_bursts_of_one_are_plain_spikes_for_any_numbers(inputs: list[float], threshold: float) -> None:
    """floor(v / theta) must not round up to a spike that ``v >= theta`` does not send."""
    value = torch.tensor(threshold, dtype=torch.float64)
    assert run(BurstIFNode(value, 1), inputs) == run(IFNode(value, 0.0), inputs)


def test_a_burst_net_counts_every_spike() -> None:
    net, x = relu_net(nn.AvgPool2d(2)), tiny.normal(3, 3, 8, 8) * 4
    snn = Burst(net, percentile=60.0).convert(6, tiny.batches(x, (3,)))
    sent: dict[str, Tensor] = {}
    for name, neuron in snn.neurons.items():
        neuron.register_forward_hook(lambda n, _, out, name=name: sent.update({name: out / n.threshold}))
    [(_, found)] = simulate(snn, x, 6, 10**6)
    counts = [out.round().unflatten(0, (6, 3)).flatten(1).sum(1) for out in sent.values()]
    assert found.spikes.sum(0).tolist() == torch.stack(counts).sum(0).tolist()
    assert max(out.max() for out in sent.values()) > 1.5
    assert all((out - out.round()).abs().max() < 1e-6 for out in sent.values())
    assert all(n.levels_per_step == 5 and n.alphabet == "multi" for n in snn.neurons.values())


@pytest.mark.parametrize("v_init", [0.0, 0.25, 0.5])
def test_the_initial_potential_of_a_burst_is_the_option(v_init: float) -> None:
    """One layer on constant currents: floor(z T / theta + v_0 / theta) spikes where a step's gamma can carry them."""
    net, x, T = relu_net(nn.AvgPool2d(2)), tiny.normal(3, 3, 8, 8), 4
    snn = Burst(net, percentile=100.0, v_init=v_init).convert(T, tiny.batches(x, (3,)))
    neuron, sent, z = snn.neurons["act1"], list[Tensor](), list[Tensor]()

    def see(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        z.append(inputs[0])
        sent.append(out / neuron.threshold)

    neuron.register_forward_hook(see)
    list(simulate(snn, x, T, 10**6))
    total = sent[0].unflatten(0, (T, 3)).sum(0)
    exact = z[0][:3].double() * T / neuron.threshold.double() + v_init
    settled = (exact - exact.round()).abs() > 1e-4
    assert settled.double().mean() > 0.95
    assert torch.equal(total[settled].round().double(), exact.floor().clamp(min=0)[settled])


# ------------------------------------------------------------------------------------- lateral inhibition pooling


def windows(side: int, kernel: int, stride: int, padding: int) -> list[list[int]]:
    """The rows (or columns) that each output looks at."""
    number = (side + 2 * padding - kernel) // stride + 1
    starts = [index * stride - padding for index in range(number)]
    return [[row for row in range(start, start + kernel) if 0 <= row < side] for start in starts]


POOLS = [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0), (3, 3, 0)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), POOLS)
def test_the_sum_sent_is_the_largest_sum_received(kernel: int, stride: int, padding: int) -> None:
    """At every step, for every window, by plain loops; spikes of both signs, as signed neurons send them."""
    T, B, C, side = 6, 2, 2, 6
    x = torch.randint(-1, 3, (T, B, C, side, side), generator=torch.Generator().manual_seed(1)).double() / 4
    pool = LateralInhibitionPool(nn.MaxPool2d(kernel, stride, padding))
    pool.clock = Clock(T, B)
    out = pool(x.flatten(0, 1)).unflatten(0, (T, B))
    rows = windows(side, kernel, stride, padding)
    assert out.shape == (T, B, C, len(rows), len(rows))
    for b in range(B):
        for c in range(C):
            for i, up in enumerate(rows):
                for j, across in enumerate(rows):
                    sums = {(r, s): 0.0 for r in up for s in across}
                    sent = 0.0
                    for t in range(T):
                        for r, s in sums:
                            sums[r, s] += x[t, b, c, r, s].item()
                        sent += out[t, b, c, i, j].item()
                        assert sent == max(sums.values())


@pytest.mark.parametrize("levels", [1, 5], ids=["spikes", "bursts"])
def test_inputs_that_have_sent_as_much_stay_tied(levels: int) -> None:
    """A threshold whose multiples are not exact; every cut sends the same, bit for bit, and nothing below one spike."""
    T, theta = 16, torch.tensor(0.3)
    counts = torch.randint(0, levels + 1, (T, 4, 8, 8, 8), generator=torch.Generator().manual_seed(3))
    x = counts * theta
    whole = None
    for cuts in ((16,), (5, 5, 6), (1,) * 16):
        pool, parts = LateralInhibitionPool(nn.MaxPool2d(2)), []
        for part in torch.split(x, list(cuts)):
            pool.clock = Clock(len(part), 4)
            parts.append(pool(part.flatten(0, 1)))
        sent = torch.cat(parts)
        whole = sent if whole is None else whole
        assert torch.equal(sent, whole)
    pools = nn.functional.max_pool2d(counts.cumsum(0).flatten(0, 1).float(), 2).unflatten(0, (T, 4))
    expected = torch.diff(pools, dim=0, prepend=torch.zeros_like(pools[:1])).flatten(0, 1)
    assert whole is not None and torch.equal((whole / theta).round(), expected)
    assert torch.equal(whole != 0, expected != 0)


def test_the_pool_forgets_between_images() -> None:
    pool = LateralInhibitionPool(nn.MaxPool2d(2))
    pool.clock = Clock(2, 1)
    x = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[0.0, 1.0], [0.0, 0.0]]]])
    first = pool(x)
    pool.reset()
    assert torch.equal(pool(x), first)
    assert first.flatten().tolist() == [1.0, 0.0], "the second input is inhibited until it has caught up"


def test_a_constant_image_is_pooled_at_every_step() -> None:
    """A pool before the first neuron sees a batch that is not yet repeated."""
    pool = LateralInhibitionPool(nn.MaxPool2d(2))
    pool.clock = Clock(3, 2)
    x = tiny.normal(2, 1, 4, 4)
    out = pool(x).unflatten(0, (3, 2))
    for step in out:
        assert torch.allclose(step, nn.functional.max_pool2d(x, 2), rtol=1e-12)


# ---------------------------------------------------------------------------------------- nets that keep max-pooling


def test_a_net_with_max_pooling_equals_a_step_by_step_simulation() -> None:
    net, x, T = relu_net(nn.MaxPool2d(2)), tiny.normal(4, 3, 8, 8), 9
    snn = Burst(net, percentile=80.0, gamma=3).convert(T, tiny.batches(x, (4,)))
    expected, _ = steps_of(net, x, T, [neuron.threshold.double() for neuron in snn.neurons.values()], 0.0, levels=3)
    for limit in (10**6, 5, 20):
        logits = logits_of(snn, x, T, limit)
        assert torch.allclose(logits, expected, rtol=1e-6, atol=1e-6)
    assert expected.std(1).min() > 1e-3


def test_a_net_with_max_pooling_comes_to_its_ann() -> None:
    net, x = relu_net(nn.MaxPool2d(2)), tiny.normal(4, 3, 8, 8)
    snn = Burst(net, percentile=100.0).convert(128, tiny.batches(x, (4,)))
    assert any(isinstance(module, LateralInhibitionPool) for module in snn.net.modules())
    sums = logits_of(snn, x, 128).cumsum(0)
    with torch.no_grad():
        ann = net(x)
        twin = snn.twin(4096)(x)
    wrong = [(sums[T - 1] / T - ann).norm().item() for T in (4, 16, 128)]
    assert wrong[0] > 2 * wrong[1] > 6 * wrong[2]
    assert wrong[2] < 0.02 * ann.norm().item()
    assert torch.allclose(twin, ann, atol=0.01), "the twin pools as the ANN does"


@pytest.mark.parametrize("rule", [MaxNorm, RobustNorm, OPI, SNM, SNNCLight])
def test_the_others_refuse_max_pooling_by_name(rule) -> None:
    net, x = relu_net(nn.MaxPool2d(2)), tiny.normal(2, 3, 8, 8)
    with refused(rf"^pool\b.*max-pooling, which {rule.__name__}"):
        rule(net).convert(4, tiny.batches(x, (2,)))


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.source is None and name != "relu"])
def test_those_that_train_refuse_it_before_they_do(method: str) -> None:
    kind = METHODS[method].load()
    with pytest.raises(UserError, match=rf"^pool\b.*max-pooling, which {kind.__name__}"):
        kind(tiny.TwoConvolutions(nn.MaxPool2d(2)), max_pool="keep")
    kind(tiny.TwoConvolutions(nn.AvgPool2d(2)), max_pool="keep")


def test_a_relu_net_that_kept_its_max_pooling_is_converted_with_inhibition() -> None:
    """Plain spikes: what the pool sends is binary, and the network comes to its ANN."""
    net, x = ReLU(tiny.TwoConvolutions(nn.MaxPool2d(2)), max_pool="keep").double().eval(), tiny.normal(4, 3, 8, 8)
    randomise(net, 0)
    snn = net.convert(256, tiny.batches(x, (4,)))
    sent: list[Tensor] = []
    snn.net.pool.register_forward_hook(lambda _, __, out: sent.append(out))
    logits = logits_of(snn, x, 256).mean(0)
    spikes = torch.cat(sent) / snn.neurons["act1"].threshold
    assert torch.allclose(spikes, spikes.round(), atol=1e-4) and set(spikes.round().unique().tolist()) == {0.0, 1.0}
    with torch.no_grad():
        ann = net(x)
    assert (logits - ann).norm() < 0.05 * ann.norm()


def test_the_twin_of_a_burst_neuron_is_the_count_it_would_send() -> None:
    """Constant currents, below and above what gamma spikes a step can carry."""
    T, gamma = 4, 3
    z = torch.arange(-8, 64, dtype=torch.float64)[None] / 8
    neuron = BurstIFNode(theta(), gamma)
    neuron.clock = Clock(T, 1)
    sent = neuron(z).sum(0) / T
    twin = neuron.twin(T)(z)[0]
    expected = [THETA * min(max(math.floor(value * T / THETA), 0), gamma * T) / T for value in z[0].tolist()]
    assert twin.tolist() == pytest.approx(expected)
    assert sent.tolist() == pytest.approx(expected)
