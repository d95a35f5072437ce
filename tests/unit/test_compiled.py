"""A compiled pass gives what the plain one gives, for every kind of neuron, and is taken where it pays."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from reference import named_model
from torch import Tensor

from bench.snn import compilation
from bench.snn.neurons import IFNode
from bench.snn.simulate import SpikingNetwork, images_of_a_pass, simulate, steps_of_a_pass
from methods.base import ConversionModule
from methods.bitplane import BitPlane
from methods.burst import BurstIFNode
from methods.cos import COSNode
from methods.dcgs import DifferentialActivation, DifferentialNode
from methods.ftbc import FTBC
from methods.group import Group
from methods.parallel import Parallel
from methods.pascal import PASCAL
from methods.snm import SignedIFNode
from methods.srp import SRPNode
from methods.ttfs import TTFS

THETA = torch.linspace(0.3, 1.2, 4).view(4, 1, 1)
NEURONS = {
    "scalar": lambda: IFNode(torch.tensor(0.7)),
    "channel": lambda: IFNode(THETA, v_init=0.3, bias=THETA / 22),
    "signed": lambda: SignedIFNode(THETA),
    "burst": lambda: BurstIFNode(THETA, 3),
    "srp": lambda: SRPNode(THETA, tau=4, epsilon=1e-3),
    "cos": lambda: COSNode(THETA, rho=4, rounds=1, saturated="release", epsilon=1e-3),
}


def small(kind: str) -> SpikingNetwork:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), NEURONS[kind](), torch.nn.Conv2d(4, 4, 3, stride=2), NEURONS[kind]()
    )
    return SpikingNetwork(net)


def curve(snn: SpikingNetwork, x: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Logits, and spikes, synaptic operations and multiply-accumulates of each layer and step."""
    parts = [(logits, torch.cat(counts)) for logits, counts in simulate(snn, x, T, image_steps=16)]
    return torch.cat([logits for logits, _ in parts], 1), torch.stack([counts for _, counts in parts]).sum(0)


# Compilation takes 5 to 20 seconds; the commonest neuron stands for all in the fast suite.
@pytest.mark.parametrize(
    "kind", [kind if kind == "scalar" else pytest.param(kind, marks=pytest.mark.slow) for kind in NEURONS]
)
def test_compiled_equals_plain(kind: str) -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    snn = small(kind)
    # Two passes of five or six steps, of which the second overshoots.
    plain, counts = curve(snn, x, 11)
    snn.compiled = True
    logits, compiled_counts = curve(snn, x, 11)
    assert torch.equal(compiled_counts, counts)
    assert torch.equal(curve(snn, x, 11)[1], counts), "a second run counts like the first"
    assert counts.shape == (2 + 2 + 1, 11)
    assert 0 < counts[:2].sum() < 11 * x.shape[0] * snn.num_neurons * 3
    assert counts[0].sum() < counts[2].sum() <= 16 * counts[0].sum()
    assert counts[3].sum() == 0, "nothing reads the last layer"
    assert counts[4].sum() > 0
    assert len(logits) == 11
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("method", [Group, FTBC, Parallel, PASCAL, TTFS, BitPlane])
def test_a_compiled_conversion_of_a_qcfs_net_equals_the_plain_one(method: type[ConversionModule]) -> None:
    """In double precision, because a rounding at the edge of a level moves a spike in single precision."""
    model, x = named_model("vgg", L=4)
    options = {TTFS: {"source": "qcfs"}, FTBC: {"calibration_images": 3, "batch": 3}}.get(method, {})
    snn = method(model.net, **options).convert(4, tiny.batches(x, (3,)))
    plain, counts = curve(snn, x, 4)
    snn.compiled = True
    logits, compiled_counts = curve(snn, x, 4)
    assert torch.equal(compiled_counts, counts) and counts.sum() > 0
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-9)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_twin_equals_the_plain_one() -> None:
    """DCGS's runs step by step, and alone is compiled."""
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    snn = SpikingNetwork(torch.nn.Sequential(conv, DifferentialNode(THETA, 4, 0.0), torch.nn.Conv2d(4, 4, 3)))
    plain = snn.twin(11)(x)
    snn.compiled = True
    twin = snn.twin(11)
    layer = twin.get_submodule("1")
    assert isinstance(layer, DifferentialActivation) and layer.step is not DifferentialNode.step, "compiled"
    torch.testing.assert_close(twin(x), plain, rtol=0, atol=1e-6)
    other = copy.deepcopy(layer)
    other.neuron.threshold.mul_(3)
    z = conv(x)
    assert not torch.equal(other(z), layer(z)), "a copy has its own neuron"


@pytest.mark.parametrize("cuts", [(4, 1, 6), (5, 6), (4,) + (1,) * 7])
@pytest.mark.parametrize("kind", NEURONS)
def test_a_run_may_be_cut_in_time(kind: str, cuts: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    snn = small(kind)
    whole = snn(x, 11)
    snn.reset()
    # The first part is long enough for every kind to look ahead.
    parts = [snn(x, steps) for steps in cuts]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("steps", range(1, 140))
def test_passes_hardly_overshoot(steps: int) -> None:
    n = steps_of_a_pass(steps)
    assert 1 <= n <= 10
    assert 0 <= -steps % n <= 4 and -steps % n <= steps / 8
    assert n == steps or n >= 5


@pytest.mark.parametrize(
    ("batch", "most", "expected"), [(100, 8, 10), (100, 16, 20), (97, 8, 8), (3, 8, 3), (64, 8, 8)]
)
def test_passes_are_alike(batch: int, most: int, expected: int) -> None:
    assert images_of_a_pass(batch, most) == expected


def without_headers(_: object) -> object:
    def fails(_: Tensor) -> None:
        raise RuntimeError("Python.h: No such file or directory\ncompilation terminated")

    return fails


@pytest.mark.parametrize(("compiler", "reason"), [("no-such-compiler", "not found"), ("sh", "Python.h: No such")])
def test_small_runs_are_not_compiled_and_without_a_compiler_none(monkeypatch, capsys, compiler, reason) -> None:
    assert not compilation.worth_compiling(1000)
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "compile", without_headers)
    compilation.can_compile.cache_clear()
    assert not compilation.worth_compiling(10**9)
    assert not compilation.worth_compiling_training(10**9)
    compilation.can_compile.cache_clear()
    [line] = capsys.readouterr().out.splitlines()
    assert reason in line and "nothing is compiled" in line
