"""One neuron: the law of its spike count, its dynamics step by step, its state, its refusals."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.neurons import Clock, IFNode

# Multiples of 1/32 below 2^10: every sum and product of the dynamics is exact, so equality with theta really occurs.
THETA = st.integers(1, 96).map(lambda n: n / 32)
CURRENTS = st.lists(st.integers(-96, 320).map(lambda n: n / 32), min_size=1, max_size=24)
V_INIT = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 0.875])


def node(theta: float | Tensor, T: int, batch: int, v_init: float = 0.5) -> IFNode:
    neuron = IFNode(torch.as_tensor(theta, dtype=torch.float64), v_init)
    neuron.clock = Clock(T, batch)
    return neuron


def law(z: float, theta: float, T: int, v_init: float) -> int:
    """clip(floor(z T / theta + v_init), 0, T), in rational arithmetic."""
    return min(max(math.floor(Fraction(z) * T / Fraction(theta) + Fraction(v_init)), 0), T)


@given(z=CURRENTS, theta=THETA, T=st.integers(1, 40), v_init=st.just(0.5) | V_INIT)
@settings(deadline=None, max_examples=250, derandomize=True)
def test_constant_current_gives_exactly_the_quantised_count(
    z: list[float], theta: float, T: int, v_init: float
) -> None:
    """After every number of steps up to T, ties included, without one mismatch."""
    current = torch.tensor([z], dtype=torch.float64)
    spikes_TN = node(theta, T, 1, v_init)(current) / theta
    assert spikes_TN.shape == (T, len(z))
    assert ((spikes_TN == 0) | (spikes_TN == 1)).all()
    for step, counts in enumerate(spikes_TN.cumsum(0).tolist(), start=1):
        assert counts == [law(value, theta, step, v_init) for value in z]


def test_the_examples_above_really_contain_ties() -> None:
    """u == theta at every fourth step: the quarter current started at a half of theta."""
    spikes = node(1.0, 8, 1)(torch.tensor([[0.25]], dtype=torch.float64))
    assert spikes[:, 0].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]


@given(
    z=st.lists(st.floats(-3, 6), min_size=1, max_size=24),
    theta=st.floats(0.05, 4),
    T=st.integers(1, 64),
)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_the_law_holds_for_currents_that_are_not_dyadic(z: list[float], theta: float, T: int) -> None:
    counts = (node(theta, T, 1)(torch.tensor([z], dtype=torch.float64)) / theta).sum(0).round().tolist()
    for value, count in zip(z, counts, strict=True):
        position = Fraction(value) * T / Fraction(theta) + Fraction(1, 2)
        if abs(position - round(position)) > 1e-9:  # rounding decides closer ties
            assert count == law(value, theta, T, 0.5)


def test_soft_reset_and_firing_at_equality_step_by_step() -> None:
    """Hand-computed: theta 1, v_0 1/2; the rest over theta is kept, and nothing stops v from going negative."""
    currents = torch.tensor([[0.5], [1.75], [0.0], [-2.0], [0.5], [2.25]], dtype=torch.float64)
    neuron = node(1.0, 6, 1)
    out = neuron(currents)
    # u:     1.0    1.75    0.75   -1.25   -0.75    1.5
    assert out[:, 0].tolist() == [1, 1, 0, 0, 0, 1]
    assert neuron.v.item() == 0.5


def test_the_output_is_theta_and_unit_spikes_are_one() -> None:
    current = torch.tensor([[0.1, 0.9, 5.0]], dtype=torch.float64)
    neuron = node(0.7, 5, 1)
    weighted = neuron(current)
    assert set(weighted.unique().tolist()) == {0.0, 0.7}
    neuron.reset()
    neuron.unit_spikes = True
    unit = neuron(current)
    assert set(unit.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(unit * neuron.threshold, weighted)


def test_each_channel_has_its_own_threshold() -> None:
    theta = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).view(3, 1, 1)
    T, batch = 6, 2
    currents = torch.randn(T * batch, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.4
    together = node(theta, T, batch)(currents)
    for channel in range(3):
        alone = node(theta[channel, 0, 0], T, batch)(currents[:, channel : channel + 1])
        assert torch.equal(together[:, channel : channel + 1], alone)
    assert (together > 0).any()


def test_time_is_the_outer_part_of_the_batch() -> None:
    """Row t * B + b is image b at step t, and images never mix."""
    T, batch = 5, 3
    x_TBX = torch.randn(T, batch, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.3
    together = node(1.0, T, batch)(x_TBX.flatten(0, 1)).unflatten(0, (T, batch))
    for b in range(batch):
        assert torch.equal(together[:, b], node(1.0, T, 1)(x_TBX[:, b]))
    assert together.count_nonzero() > 5


def test_a_constant_input_equals_the_same_input_repeated() -> None:
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for layout in (torch.contiguous_format, torch.channels_last):
        constant = node(0.8, 7, 3)(images.to(memory_format=layout))
        repeated = node(0.8, 7, 3)(images.repeat(7, 1, 1, 1).to(memory_format=layout))
        assert constant.shape == (21, 2, 4, 4)
        assert torch.equal(constant, repeated)


def test_the_input_is_left_as_it_was() -> None:
    current = torch.rand(4, 3, dtype=torch.float64)
    before = current.clone()
    node(0.5, 2, 2)(current)
    assert torch.equal(current, before)


@pytest.mark.parametrize("cuts", [[6], [1] * 6, [2, 4], [5, 1]])
def test_the_state_is_carried_over_a_cut_in_time(cuts: list[int]) -> None:
    x_TBX = torch.randn(6, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.3
    whole = node(1.0, 6, 2)(x_TBX.flatten(0, 1))
    neuron = node(1.0, 6, 2)
    parts = []
    for part in x_TBX.split(cuts):
        neuron.clock.T = len(part)
        parts.append(neuron(part.flatten(0, 1)))
    assert torch.equal(torch.cat(parts), whole)


def test_reset_forgets_and_only_reset_does() -> None:
    neuron = node(1.0, 3, 1)
    current = torch.tensor([[0.25, 0.375]], dtype=torch.float64)
    first = neuron(current).clone()
    second = neuron(current).clone()
    assert not torch.equal(first, second)
    neuron.reset()
    assert torch.equal(neuron(current), first)


def test_spike_counts_are_per_step_and_size_is_per_image() -> None:
    T, batch = 4, 3
    x = torch.randn(T * batch, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for unit in (False, True):
        neuron = node(0.5, T, batch)
        neuron.unit_spikes = unit
        out = neuron(x)
        assert neuron.spike_counts.tolist() == (out.unflatten(0, (T, batch)) > 0).sum((1, 2, 3, 4)).tolist()
        assert neuron.spike_counts.sum() > 0
        assert neuron.size == 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_neuron_answers_in_the_type_of_its_input(dtype: torch.dtype) -> None:
    neuron = IFNode(torch.tensor(0.5, dtype=dtype))
    neuron.clock = Clock(4, 2)
    out = neuron(torch.tensor([[-1.0, 0.0, 0.125], [0.25, 0.375, 1.0]], dtype=dtype))
    assert out.dtype == dtype
    assert set(out.unique().tolist()) == {0.0, 0.5}


@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf, -math.inf])
def test_a_threshold_that_is_not_positive_and_finite_is_refused(bad: float) -> None:
    with pytest.raises(UserError, match=r"threshold .*must be positive and finite"):
        IFNode(torch.tensor(bad))
    with pytest.raises(UserError, match="threshold"):
        IFNode(torch.tensor([1.0, bad, 2.0]).view(3, 1, 1))


def test_the_threshold_is_a_copy_and_a_buffer() -> None:
    source = nn.Parameter(torch.tensor(1.5))
    neuron = IFNode(source)
    source.data.fill_(9.0)
    assert neuron.threshold == 1.5
    assert not list(neuron.parameters())
    assert set(neuron.state_dict()) == {"threshold"}


@pytest.mark.parametrize("rows", [1, 5, 7, 12])
def test_a_batch_that_fits_neither_reading_is_refused(rows: int) -> None:
    """A neuron called by hand would otherwise take images for steps."""
    neuron = node(1.0, 3, 2)
    with pytest.raises(UserError, match=r"batch of \d+ in a pass of 3 steps and 2 images; .*simulate"):
        neuron(torch.zeros(rows, 4, dtype=torch.float64))


@pytest.mark.parametrize("v_init", [0.0, 0.25, 0.5])
def test_the_twin_is_the_activation_that_the_neuron_equals_under_constant_current(v_init: float) -> None:
    z = torch.arange(-32, 96, dtype=torch.float64).div(16)[None]
    for T in (1, 2, 8):
        neuron = node(2.0, T, 1, v_init)
        assert torch.equal(neuron(z).mean(0, keepdim=True), neuron.twin(T)(z))


def test_copies_do_not_share_state() -> None:
    neuron = node(1.0, 2, 1)
    neuron(torch.full((1, 2), 0.3, dtype=torch.float64))
    assert neuron.v is not None
    before = neuron.v.clone()
    other = copy.deepcopy(neuron)
    other(torch.full((1, 2), 0.4, dtype=torch.float64))
    assert torch.equal(neuron.v, before) and not torch.equal(other.v, before)
