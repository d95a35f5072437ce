"""The compiled neuron loop gives what the plain one gives, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.snn import fused
from bench.snn.neurons import Clock, IFNode


def currents(T: int, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    x = torch.randn(T * 2, *shape, generator=torch.Generator().manual_seed(0))
    return x.to(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("threshold", ["scalar", "channel"])
def test_fused_equals_plain(channels_last: bool, threshold: str) -> None:
    T, shape = 11, (4, 5, 5)  # not a multiple of the steps of one kernel
    theta = torch.tensor(0.7) if threshold == "scalar" else torch.linspace(0.3, 1.2, 4).view(4, 1, 1)
    x = currents(T, shape, channels_last)
    results = []
    for is_fused in (False, True):
        neuron = IFNode(theta, v_init=0.5, bias=theta / 22)
        neuron.clock = Clock(T, 2, is_fused)
        first = neuron(x)
        counts = neuron.spike_counts
        results.append((first, counts, neuron(x), neuron.v))
    for plain, compiled in zip(*results, strict=True):
        assert torch.equal(plain, compiled)
    assert results[0][1].tolist() == [int((step != 0).sum()) for step in results[0][0].view(T, 2, *shape)]
    assert 0 < results[0][1].sum() < x.numel()


def test_a_constant_current_needs_no_copy_for_each_step() -> None:
    x = torch.rand(2, 3, 4, 4)
    plain, compiled = (IFNode(torch.tensor(0.6)) for _ in range(2))
    plain.clock, compiled.clock = Clock(9, 2), Clock(9, 2, fused=True)
    assert torch.equal(plain(x), compiled(x))


def test_small_runs_are_not_compiled_and_without_a_compiler_none(monkeypatch, capsys) -> None:
    assert not fused.worth_fusing(1000)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fused.can_compile.cache_clear()
    assert not fused.worth_fusing(10**9)
    assert not fused.worth_fusing(10**9)
    fused.can_compile.cache_clear()
    assert capsys.readouterr().out.count("nothing is compiled") == 1
