"""The clipped activations of TCL and RTS, their gradients, and the shift that is good for one T."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LinearNet, decayed, randomise, refused
from torch import Tensor, nn

from bench.snn.activations import ClippedReLU, clip
from bench.snn.neurons import Clock, IFNode
from bench.snn.simulate import simulate
from methods.rts import RTS
from methods.tcl import TCL


def by_torch_where(z: Tensor, ceiling: Tensor) -> Tensor:
    """The same function for autograd, whose gradient is undisputed away from the two corners."""
    return torch.where(z <= 0, torch.zeros_like(z), torch.where(z >= ceiling, ceiling.expand_as(z), z))


def gradients(function, z: Tensor, ceiling: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z, ceiling = z.clone().requires_grad_(), ceiling.clone().requires_grad_()
    value = function(z, ceiling)
    return value.detach(), *torch.autograd.grad(value, (z, ceiling), upstream)


@pytest.mark.parametrize("shape", [(), (3, 1, 1), (3, 4, 5)])
def test_value_and_gradients_are_those_of_autograd_away_from_the_corners(shape: tuple[int, ...]) -> None:
    z, upstream = tiny.normal(6, 3, 4, 5, seed=1) * 2, tiny.normal(6, 3, 4, 5, seed=2)
    ceiling = tiny.normal(*shape, seed=3).abs() + 0.5
    assert ((z != 0) & (z != ceiling)).all()
    found, expected = (gradients(function, z, ceiling, upstream) for function in (clip, by_torch_where))
    for mine, reference in zip(found, expected, strict=True):
        assert mine.shape == reference.shape
        assert torch.allclose(mine, reference, rtol=1e-12, atol=1e-12)


def test_values_at_the_corners() -> None:
    """The bounds belong to the inside, whatever torch.clamp makes of them in this release."""
    z = torch.tensor([-0.5, -(2.0**-60), 0.0, 0.75, 1.5, 1.5 + 2.0**-40, 9.0], dtype=torch.float64)
    upstream = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], dtype=torch.float64)
    value, dz, dceiling = gradients(clip, z, torch.tensor(1.5, dtype=torch.float64), upstream)
    assert value.tolist() == [0, 0, 0, 0.75, 1.5, 1.5, 1.5]
    assert dz.tolist() == [0, 0, 4, 8, 16, 0, 0]
    assert dceiling.item() == 32 + 64


def test_half_precision_goes_in_and_comes_out() -> None:
    z = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.bfloat16, requires_grad=True)
    ceiling = torch.tensor(1.1, requires_grad=True)
    out = clip(z, ceiling)
    out.sum().backward()
    assert out.dtype == z.grad.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert ceiling.grad is not None
    assert ceiling.grad.dtype == torch.float32
    assert ceiling.grad.item() == 1


# ----------------------------------------------------------------------------------------------------------- TCL


@pytest.mark.parametrize(("given_decay", "expected"), [(0.25, 0.25), (0.0, 0.0), (None, 0.125)])
def test_the_penalty_on_lambda_is_its_own(given_decay: float | None, expected: float) -> None:
    model = TCL(LinearNet(), lambda_weight_decay=given_decay, lr=0.5, weight_decay=0.125).double()
    factors = decayed(model)
    assert factors.pop("net.act1.threshold") == pytest.approx(0.5 * expected, abs=1e-12)
    assert factors.pop("net.act2.threshold") == pytest.approx(0.5 * expected, abs=1e-12)
    assert len(factors) >= 6
    assert all(factor == pytest.approx(0.5 * 0.125) for factor in factors.values())
    grouped = [id(p) for group in model.parameter_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters()), "every parameter once"


def test_tcl_starts_at_four_and_learns_lambda() -> None:
    model = TCL(LinearNet())
    assert [p.item() for name, p in model.named_parameters() if name.endswith("threshold")] == [4.0, 4.0]
    model(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 50).sum().backward()
    assert model.net.act1.threshold.grad.abs() > 0


def test_tcl_converts_to_neurons_that_start_empty() -> None:
    model = TCL(LinearNet()).double().eval()
    randomise(model, 0)
    model.net.act1.threshold.data.fill_(0.75)
    snn = model.convert(4, [])
    assert {name: n.threshold.item() for name, n in snn.neurons.items()} == {"act1": 0.75, "act2": 4.0}
    assert all(type(n) is IFNode and n.v_init == 0 and n.bias is None for n in snn.neurons.values())
    snn.neurons["act1"].threshold.fill_(9.0)
    assert model.net.act1.threshold.item() == 0.75, "conversion works on a copy"
    x = tiny.normal(5, 3, 8, 8)
    ann = model(x).detach()
    outputs = [next(simulate(model.convert(T, []), x, T, 10**6))[0].mean(0) for T in (4, 256)]
    errors = [(out - ann).norm() for out in outputs]
    assert errors[1] < 0.05 * errors[0]


# ----------------------------------------------------------------------------------------------------------- RTS


def shifted(theta: float, T: int, v_init: float = 0.0) -> IFNode:
    """The neuron that RTS makes for T."""
    model = RTS(LinearNet(), ceiling=theta, v_init=v_init)
    neuron = model.neuron("act1", ClippedReLU(theta, trainable=False).double(), T)
    assert isinstance(neuron, IFNode)
    return neuron


def counts(neuron: IFNode, z: list[float], T: int) -> list[list[int]]:
    """Spikes up to each step, ``[T][currents]``, of one neuron for each constant current."""
    neuron.reset()
    neuron.clock = Clock(T, 1)
    out = neuron(torch.tensor([z], dtype=torch.float64)) / neuron.threshold
    return out.cumsum(0).long().tolist()


@given(
    z=st.lists(st.integers(-64, 192).map(lambda n: n / 64), min_size=1, max_size=20),
    theta=st.sampled_from([0.5, 1.0, 2.0]),
    T=st.sampled_from([1, 2, 4, 8, 16]),
    v_init=st.sampled_from([0.0, 0.125, 0.5]),
)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_after_T_steps_the_count_is_that_of_a_half_charged_neuron(
    z: list[float], theta: float, T: int, v_init: float
) -> None:
    """Powers of two keep the shift exact, so that ties count."""
    half = IFNode(torch.tensor(theta, dtype=torch.float64), 0.5)
    total = counts(shifted(theta, T, v_init), z, T)[-1]
    assert total == counts(half, z, T)[-1]
    law = [math.floor(Fraction(value) * T / Fraction(theta) + Fraction(1, 2)) for value in z]
    assert total == [min(max(count, 0), T) for count in law]


@pytest.mark.parametrize("T", [3, 5, 6, 7, 12])
def test_the_same_for_other_T_away_from_ties(T: int) -> None:
    z = [(k + 0.25) / (8 * T) for k in range(-8, 12 * T)]
    half = IFNode(torch.tensor(1.0, dtype=torch.float64), 0.5)
    assert counts(shifted(1.0, T), z, T)[-1] == counts(half, z, T)[-1]


def test_before_T_it_is_not_a_half_charged_neuron() -> None:
    z = [0.5, 0.3, 0.2]
    early = counts(shifted(1.0, 8), z, 8)
    half = counts(IFNode(torch.tensor(1.0, dtype=torch.float64), 0.5), z, 8)
    assert early[0][0] == 0
    assert half[0][0] == 1
    assert early != half
    assert all(a <= b for mine, other in zip(early, half, strict=True) for a, b in zip(mine, other, strict=True))


def test_with_half_a_threshold_at_the_start_nothing_is_left_to_shift() -> None:
    """RTS + OPI: the half-charged neuron at every step, not at T alone."""
    z = [k / 16 for k in range(-4, 24)]
    half = counts(IFNode(torch.tensor(1.0, dtype=torch.float64), 0.5), z, 8)
    assert counts(shifted(1.0, 8, 0.5), z, 8) == half
    assert counts(shifted(1.0, 8, 0.25), z, 8) != half


def rts(ceiling: float) -> RTS:
    model = RTS(tiny.TwoConvolutions(), ceiling=ceiling).double().eval()
    randomise(model, 0)
    return model


def test_theta_is_the_layer_s_maximum_and_at_most_the_ceiling() -> None:
    x = tiny.normal(9, 3, 8, 8)
    data = tiny.batches(x, (4, 4, 1))
    low = rts(0.5).convert(4, data)
    assert [n.threshold.item() for n in low.neurons.values()] == [0.5, 0.5]
    high = rts(1e3)
    for name, a in zip(("act1", "act2"), tiny.activations(high.net, x.numpy()), strict=True):  # type: ignore[arg-type]
        neuron = high.convert(4, data).neurons[name]
        assert neuron.threshold.item() == pytest.approx(a.max(), rel=1e-6)
        assert neuron.bias.item() == pytest.approx(a.max() / 8, rel=1e-6)  # type: ignore[union-attr, operator]
    middle = rts(2.0).convert(4, data)
    assert all(n.threshold.item() <= 2.0 for n in middle.neurons.values())


def test_the_ceiling_is_clipped_in_training_and_no_parameter() -> None:
    model = rts(0.5)
    assert not [name for name, _ in model.named_parameters() if "act" in name]
    seen: list[Tensor] = []
    model.net.act1.register_forward_hook(lambda _, __, out: seen.append(out))  # type: ignore[union-attr]
    model(tiny.normal(3, 3, 8, 8))
    assert seen[0].max() == 0.5
    assert seen[0].min() == 0.0
    assert model.net.act1.threshold.item() == 0.5  # type: ignore[union-attr]
    model.convert(4, tiny.batches(tiny.normal(3, 3, 8, 8) / 100, (3,)))
    assert model.net.act1.threshold.item() == 0.5, "conversion works on a copy"  # type: ignore[union-attr]


@pytest.mark.parametrize("other", [1, 3, 8])
def test_another_T_is_refused_in_one_line(other: int) -> None:
    x = tiny.normal(3, 3, 8, 8)
    snn = rts(1.0).convert(4, tiny.batches(x, (3,)))
    assert sum(part.shape[1] for part, _ in simulate(snn, x, 4)) == 3
    with refused(f"T = {other}.*T = 4"):
        list(simulate(snn, x, other))


def test_every_conversion_is_for_the_T_it_was_asked_for() -> None:
    """One model, converted for one T after the other; the first conversions must not change."""
    x, model = tiny.normal(3, 3, 8, 8), rts(1.0)
    data = tiny.batches(x, (3,))
    networks = {T: model.convert(T, data) for T in (2, 4, 8)}
    with torch.no_grad():
        ann = model(x)
    for T, snn in networks.items():
        theta = snn.neurons["act1"].threshold.item()
        assert snn.neurons["act1"].bias.item() == pytest.approx(theta / (2 * T))  # type: ignore[union-attr, operator]
        (logits, _), *_ = simulate(snn, x, T, 10**6)
        assert (logits.mean(0) - ann).abs().max() < 3 / T


def test_the_twin_of_rts_is_its_snn_for_one_layer() -> None:
    model = RTS(tiny.Wire(32, nn.ReLU()), ceiling=2.0).double()
    x = tiny.normal(4, 32)
    for T in (1, 3, 8):
        snn = model.convert(T, tiny.batches(x, (4,)))
        (logits, _), *_ = simulate(snn, x, T, 10**6)
        assert torch.allclose(logits.mean(0), snn.twin(T)(x), rtol=1e-6, atol=1e-6)
