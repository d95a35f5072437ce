"""The defining properties of COS and SRP, against scalar versions written from the papers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from running import logits_of
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import QCFSActivation
from bench.snn.neurons import Clock, IFNode
from bench.snn.readout import Readout
from bench.snn.simulate import SpikingNetwork
from methods.cos import COS, COSNode
from methods.srp import SRP, SRPNode

THETA = 2.0
# Multiples of 1/8 keep sums exact, so that equality with the threshold really happens.
currents = st.lists(st.integers(-24, 40).map(lambda k: k / 8), min_size=4, max_size=9)


def run(neuron: IFNode, inputs: list[float]) -> list[float]:
    """One neuron, one image."""
    neuron.reset()
    neuron.clock = Clock(T=len(inputs), batch=1)
    return neuron(torch.tensor(inputs, dtype=torch.float64).view(-1, 1, 1)).flatten().tolist()


def fire(inputs: list[float], v: float) -> tuple[list[float], list[float], float]:
    """Spikes, potentials before reset and residual of a soft-reset IF neuron with threshold 1."""
    spikes, potentials = [], []
    for current in inputs:
        v += current
        potentials.append(v)
        spikes.append(1.0 if v >= 1 else 0.0)
        v -= spikes[-1]
    return spikes, potentials, v


def theta() -> Tensor:
    return torch.tensor(THETA, dtype=torch.float64)


def cos_by_hand(inputs: list[float], rho: int, saturated: str, rounds: int = 1) -> list[float]:
    x = [value / THETA for value in inputs]
    first, _, residual = fire(x[:rho], 0.5)
    start = 0.5
    for offset in range(rounds):
        spikes, potentials, _ = fire(x[:rho], start)
        fired = [u for u, s in zip(potentials, spikes, strict=True) if s]
        silent = [u for u, s in zip(potentials, spikes, strict=True) if not s]
        if residual < -offset and sum(first) > offset:
            start -= max(1, min(fired, default=1000.0) - 1 + 1e-3)
        elif residual >= offset + 1 and not (saturated == "keep" and not silent):
            start += max(1, 1 + 1e-3 - max(silent, default=-1000.0))
    return [THETA * s for s in fire(x, start)[0]]


# Two spikes too many and -2.5 left; two too few and 3.75 left; fired at every step, with 8.5 left.
SURPLUS, DEFICIT, SATURATED = [4.0, 2.0, -4.0, -4.0], [-6.0, 0.5, 6.0, 8.0], [6.0, 6.0, 6.0, 6.0]


@settings(deadline=None)
@given(st.lists(st.integers(-64, 80).map(lambda k: k / 8), min_size=4, max_size=9), st.integers(1, 4),
       st.integers(1, 4), st.sampled_from(["release", "keep"]))  # fmt: skip
@example(SURPLUS, 4, 3, "release")
@example(DEFICIT, 4, 3, "release")
@example(DEFICIT, 4, 4, "keep")
@example(SATURATED, 4, 3, "release")
@example(SATURATED, 4, 3, "keep")
def test_each_round_moves_one_spike(inputs: list[float], rho: int, rounds: int, saturated: str) -> None:
    """The spikes of a scalar version, and as many as the first residual says: one fewer or one more in each round."""
    found = run(COSNode(theta(), rho, rounds, saturated, 1e-3), inputs)  # type: ignore[arg-type]
    assert found == pytest.approx(cos_by_hand(inputs, rho, saturated, rounds))
    spikes, _, residual = fire([value / THETA for value in inputs[:rho]], 0.5)
    number = int(sum(spikes))
    surplus = sum(residual < 1 - k and number >= k for k in range(1, rounds + 1))
    deficit = sum(residual >= k for k in range(1, rounds + 1))
    assert sum(found[:rho]) / THETA == min(number - surplus + deficit, rho)


def test_rounds_stop_where_no_spike_is_left_to_move() -> None:
    def counts(inputs: list[float], saturated: str) -> list[float]:
        neurons = [COSNode(theta(), 4, rounds, saturated, 1e-3) for rounds in (1, 2, 3, 4)]  # type: ignore[arg-type]
        return [sum(run(neuron, [*inputs, *[0.0] * 20])) / THETA for neuron in neurons]

    assert counts(SURPLUS, "release") == [1, 0, 0, 0]
    assert counts(SATURATED, "release") == [24] * 4, "it fires for ever"
    assert counts(SATURATED, "keep") == [4 + 8] * 4, "it sends what it has, and no more"


class Chain(nn.Module):
    """Two neurons in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act1 = nn.Linear(3, 6), QCFSActivation(4, 1.0)
        self.second, self.act2 = nn.Linear(6, 5), QCFSActivation(4, 0.5)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act2(self.second(self.act1(self.first(x)))))


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(3)
    return Chain().double()


def test_the_replay_and_the_next_layer_see_calibrated_spikes(chain: Chain) -> None:
    x = torch.randn(7, 3, dtype=torch.float64) * 2
    snn = COS(chain, rho=4).convert(6, [])
    seen: dict[str, Tensor] = {}
    for name in ("act1", "act2"):
        getattr(snn.net, name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({f"{name}.in": inputs[0], name: output})
        )
    logits = logits_of(snn, x, 6)
    constant = chain.first(x)
    for image in range(7):
        for unit in range(6):
            expected = [s / 2 for s in cos_by_hand([2 * constant[image, unit].item()] * 6, 4, "release")]
            assert seen["act1"].view(6, 7, 6)[:, image, unit].tolist() == pytest.approx(expected)
        for unit in range(5):
            current = (seen["act2.in"].view(6, 7, 5)[:, image, unit] * 4).tolist()
            expected = [s / 4 for s in cos_by_hand(current, 4, "release")]
            assert seen["act2"].view(6, 7, 5)[:, image, unit].tolist() == pytest.approx(expected)
    assert torch.allclose(seen["act2.in"], chain.second(seen["act1"]))
    assert torch.allclose(logits, chain.fc(seen["act2"]).view(6, 7, 4))


@pytest.mark.parametrize("T", [1, 2, 3])
def test_cos_at_small_T_is_the_start_of_a_longer_run(chain: Chain, T: int) -> None:
    """Even T = 1 is calibrated on rho steps, also where no longer run was asked for."""
    x = torch.randn(5, 3, dtype=torch.float64)
    snn = COS(chain, rho=4).convert(8, [])
    short = logits_of(COS(chain, rho=4).convert(T, []), x, T)
    long = logits_of(snn, x, 8)
    assert len(short) == T
    assert torch.equal(short, long[:T])
    assert snn.warmup == 4
    snn.reset()
    with pytest.raises(UserError, match=rf"calibrates on 4 steps and got {T}"):
        snn(x, T)


@pytest.mark.parametrize("rounds", [1, 2])
def test_every_layer_waits_and_the_first_one_s_wait_is_the_warm_up(chain: Chain, rounds: int) -> None:
    model = COS(chain, rho=4, rounds=rounds)
    model.use(Readout(delay=1))
    snn = model.convert(6, [])
    logits_of(snn, torch.randn(2, 3, dtype=torch.float64), 6)
    assert (snn.warmup, snn.wait, snn.delay) == (4 * rounds, 4 * rounds, 1)


def srp_by_hand(inputs: list[float], tau: int) -> list[float]:
    x = [value / THETA for value in inputs]
    before, _, residual = fire(x[:tau], 0.5)
    after = fire(x[tau:], 0.5)[0]
    return [THETA * s for s in before] + [THETA * s if residual > 1e-3 else 0.0 for s in after]


@settings(deadline=None)
@given(currents, st.integers(1, 4))
def test_srp_is_the_paper_s_rule(inputs: list[float], tau: int) -> None:
    assert run(SRPNode(theta(), tau, 1e-3), inputs) == srp_by_hand(inputs, tau)


def test_srp_leaves_the_first_steps_out_of_the_read_out(chain: Chain) -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    snn = SRP(chain, tau=4).convert(3, [])
    counted = logits_of(snn, x, 3)
    everything = logits_of(SpikingNetwork(snn.net), x, 7)
    assert torch.equal(counted, everything[4:])
    assert snn.warmup == 4
