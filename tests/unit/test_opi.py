"""OPI: what the initial potential does to the conversion error, and the draws of its ablations."""

from __future__ import annotations

import pytest
import tiny
import torch
from running import logits_of
from torch import Tensor, nn

from bench.snn.activations import ClippedReLU, ReLUActivation
from methods.max_norm import MaxNorm
from methods.opi import OPI
from methods.relu import ReLU
from methods.tcl import TCL

PER_STEP = 16  # currents between two counts
STARTS = [k / PER_STEP for k in range(PER_STEP)]
STEPS = (1, 2, 3, 4, 8)


def currents(T: int) -> Tensor:
    """Uniform over (0, theta = 1): the middles of ``PER_STEP`` parts of each of the T intervals between counts."""
    return (torch.arange(T * PER_STEP, dtype=torch.float64) + 0.5) / (T * PER_STEP)


def errors(v_init: float, T: int) -> Tensor:
    """SNN minus ANN, one neuron for each current."""
    z = currents(T)[None]
    net = tiny.Wire(z.shape[1], ReLUActivation()).double()
    snn = OPI(net, v_init=v_init).convert(T, tiny.batches(torch.ones_like(z), (1,)))
    assert snn.neurons["act"].threshold.item() == 1
    return (logits_of(snn, z, T).mean(0) - net(z)).flatten().detach()


@pytest.mark.parametrize("T", STEPS)
def test_half_a_threshold_makes_the_mean_error_zero(T: int) -> None:
    """For z uniform over the T intervals; the default start."""
    z = currents(T)[None]
    net = tiny.Wire(z.shape[1], ReLUActivation()).double()
    snn = OPI(net).convert(T, tiny.batches(torch.ones_like(z), (1,)))
    error = logits_of(snn, z, T).mean(0) - net(z)
    assert abs(error.mean().item()) < 1e-12
    assert error.abs().max().item() == pytest.approx((0.5 - 0.5 / PER_STEP) / T), "rounding to nearest"


@pytest.mark.parametrize("T", STEPS)
def test_the_mean_error_is_linear_in_the_start(T: int) -> None:
    for v_init in STARTS:
        assert errors(v_init, T).mean().item() == pytest.approx((v_init - 0.5) / T, abs=1e-12)


@pytest.mark.parametrize("T", STEPS)
def test_the_mean_square_is_least_at_half_a_threshold(T: int) -> None:
    squares = {v_init: errors(v_init, T).square().mean().item() for v_init in STARTS}
    assert min(squares, key=squares.__getitem__) == 0.5
    # The variance of a uniform grid of 16 points, and the square of the mean.
    for v_init, square in squares.items():
        assert square == pytest.approx(((1 - PER_STEP**-2) / 12 + (v_init - 0.5) ** 2) / T**2, rel=1e-9)


# --------------------------------------------------------------------------------------------------------- draws


def starts_of(draw: str, draw_seed: int = 0, features: int = 4000) -> Tensor:
    """Initial potentials as fractions of theta = 2, read off the potential after one step without current."""
    net = nn.Sequential(ReLUActivation(), nn.Linear(features, 1)).double()
    model = OPI(net, v_init=draw, draw_seed=draw_seed)  # type: ignore[arg-type]
    snn = model.convert(4, tiny.batches(torch.full((3, features), 2.0).double(), (3,)))
    neuron = snn.neurons["0"]
    assert neuron.threshold.item() == 2
    sent: list[Tensor] = []
    neuron.register_forward_hook(lambda _, __, out: sent.append(out))
    snn(torch.zeros(2, features, dtype=torch.float64), 1)
    assert neuron.v is not None
    total = (neuron.v + sent[0]) / 2
    assert torch.equal(total[0], total[1]), "the same for all images"
    return total[0]


@pytest.mark.parametrize("draw", ["uniform", "gaussian"])
def test_draws_are_repeatable_and_of_their_own_seed(draw: str) -> None:
    torch.manual_seed(1)
    first = starts_of(draw)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = starts_of(draw)
    assert torch.equal(first, again)
    assert not torch.equal(first, starts_of(draw, draw_seed=1))
    torch.set_rng_state(state)
    drawn = torch.rand(3)
    model = OPI(ReLU(tiny.TwoConvolutions()).net, v_init=draw)  # type: ignore[arg-type]
    torch.set_rng_state(state)
    model.convert(4, tiny.batches(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), (2,)))
    assert torch.equal(torch.rand(3), drawn), "a conversion leaves the global generator alone"


@pytest.mark.parametrize("draw", ["uniform", "gaussian"])
def test_moments_of_the_draws(draw: str) -> None:
    """Both of mean 1/2 and variance 1/12, within five standard errors; the fourth moment tells them apart."""
    v = starts_of(draw)
    assert len(v.unique()) > 3900, "one draw for each neuron"
    assert v.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 4000) ** 0.5)
    assert v.var().item() == pytest.approx(1 / 12, rel=5 * (2 / 4000) ** 0.5)
    kurtosis = ((v - v.mean()) ** 4).mean().item() / v.var().item() ** 2
    assert kurtosis == pytest.approx(1.8 if draw == "uniform" else 3.0, abs=0.4)
    if draw == "uniform":
        assert 0 <= v.min() < 0.01
        assert 0.99 < v.max() < 1


def test_layers_and_neurons_have_draws_of_their_own() -> None:
    net = ReLU(tiny.TwoConvolutions()).double().net
    snn = OPI(net, v_init="uniform").convert(4, tiny.batches(tiny.normal(2, 3, 8, 8), (2,)))
    first, second = (snn.neurons[name].v_init for name in ("act1", "act2"))
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert first.shape == (4, 8, 8)
    assert second.shape == (5, 4, 4)
    assert len(first.unique()) == first.numel()
    assert not torch.equal(first.flatten()[: second.numel()], second.flatten())


@pytest.mark.parametrize("draw", [0.5, "uniform", "gaussian"])
def test_neither_parts_of_time_nor_of_the_batch_change_anything(draw: float | str) -> None:
    torch.manual_seed(0)
    net = ReLU(tiny.TwoConvolutions()).double().eval().net
    x = tiny.normal(5, 3, 8, 8)
    snn = OPI(net, v_init=draw).convert(6, tiny.batches(x, (5,)))  # type: ignore[arg-type]
    whole = logits_of(snn, x, 6, 10**6)
    for limit in (1, 4, 12, 17):
        assert torch.allclose(logits_of(snn, x, 6, limit), whole, rtol=1e-12, atol=1e-12)
    assert torch.allclose(logits_of(snn, x.flip(0), 6), whole.flip(1), rtol=1e-12, atol=1e-12)
    assert torch.allclose(logits_of(snn, x[2:3], 6), whole[:, 2:3], rtol=1e-12, atol=1e-12)
    assert whole.std(1).min() > 0


# ------------------------------------------------------------------------------------------------------- sources


def clip_net(features: int = 6, ceiling: float = 1.25) -> nn.Module:
    return tiny.Wire(features, ClippedReLU(ceiling, trainable=True)).double()


def test_the_threshold_is_the_layer_s_maximum_or_the_trained_ceiling() -> None:
    x = tiny.normal(9, 6) * 3
    relu = OPI(tiny.Wire(6, ReLUActivation()).double()).convert(4, tiny.batches(x, (5, 4)))
    clipped = OPI(clip_net(), source="clip").convert(4, tiny.batches(x, (5, 4)))
    assert relu.neurons["act"].threshold.item() == pytest.approx(x.max().item(), rel=1e-7)
    assert clipped.neurons["act"].threshold.item() == 1.25
    for snn in (relu, clipped):
        neuron = snn.neurons["act"]
        neuron.clock.T, neuron.clock.batch = 1, 1
        sent = neuron(torch.zeros(1, 6, dtype=torch.float64))
        assert not sent.any()
        assert torch.allclose(neuron.v, neuron.threshold.double() / 2)


def test_a_clipped_source_without_a_start_is_tcl_and_a_relu_source_max_norm() -> None:
    x = tiny.normal(7, 3, 8, 8)
    clipped, relu = TCL(tiny.TwoConvolutions(), lambda_init=0.7).double(), ReLU(tiny.TwoConvolutions()).double()
    data = tiny.batches(x, (4, 3))
    pairs = [
        (clipped.convert(5, data), OPI(clipped.net, source="clip", v_init=0.0).convert(5, data)),
        (MaxNorm(relu.net).convert(5, data), OPI(relu.net, v_init=0.0).convert(5, data)),
    ]
    for one, other in pairs:
        assert torch.equal(logits_of(one, x, 5), logits_of(other, x, 5))
