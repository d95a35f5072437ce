"""The quantised activations: values, gradients, and the function they are the rate of."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.snn.activations import QCFSActivation, QuantisedReLU, Region, clip_floor_shift

REGIONS: tuple[Region, ...] = ("clip_first", "floor_first")
LEVELS = (1, 2, 4, 8)
THRESHOLDS = {
    "scalar": torch.tensor(1.5, dtype=torch.float64),
    "per_channel": torch.tensor([0.5, 1.0, 3.25], dtype=torch.float64).view(3, 1, 1),
    "per_feature": torch.tensor([0.5, 1.0, 2.0, 3.25], dtype=torch.float64),
}


def exact(z: float, theta: float, L: int) -> Fraction:
    """The paper's formula in rational arithmetic."""
    level = math.floor(Fraction(z) * L / Fraction(theta) + Fraction(1, 2))
    return Fraction(theta) * min(max(level, 0), L) / L


def independent(z: Tensor, threshold: Tensor, L: int, region: Region) -> Tensor:
    """The same function for autograd: straight-through floor, clips by torch.where."""

    def floor(x: Tensor) -> Tensor:
        return x + (torch.floor(x) - x).detach()

    if region == "clip_first":
        clipped = torch.where(z < 0, torch.zeros_like(z), torch.where(z > threshold, threshold.expand_as(z), z))
        return threshold * floor(clipped * L / threshold + 0.5) / L
    y = floor(z * L / threshold + 0.5) / L
    return threshold * torch.where(y < 0, torch.zeros_like(y), torch.where(y > 1, torch.ones_like(y), y))


def gradients(function, z: Tensor, threshold: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    z, threshold = z.clone().requires_grad_(), threshold.clone().requires_grad_()
    return torch.autograd.grad(function(z, threshold), (z, threshold), upstream)


@given(
    L=st.integers(1, 40),
    theta=st.integers(1, 64).map(lambda n: n / 8),
    z=st.lists(st.integers(-256, 1024).map(lambda n: n / 32), min_size=1, max_size=30),
)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_the_value_is_the_papers_formula(L: int, theta: float, z: list[float]) -> None:
    """On a step, a quotient by theta that is not exact may come out on either side."""
    got = clip_floor_shift(torch.tensor(z, dtype=torch.float64), torch.tensor(theta, dtype=torch.float64), L)
    for value, activation in zip(z, got.tolist(), strict=True):
        position = Fraction(value) * L / Fraction(theta) + Fraction(1, 2)
        on_a_step = position.denominator == 1
        rounding_is_exact = math.log2(theta).is_integer()
        if on_a_step and not rounding_is_exact:
            neighbours = (exact(value, theta, L), exact(math.nextafter(value, -math.inf), theta, L))
            assert min(abs(activation - float(n)) for n in neighbours) < 1e-12
        else:
            assert activation == pytest.approx(float(exact(value, theta, L)), abs=1e-12)


@pytest.mark.parametrize("L", LEVELS)
def test_values_are_levels_and_the_region_does_not_change_them(L: int) -> None:
    z = torch.linspace(-2, 4, 301, dtype=torch.float64)
    theta = torch.tensor(1.5, dtype=torch.float64)
    one, other = (clip_floor_shift(z, theta, L, region) for region in REGIONS)
    assert torch.equal(one, other)
    assert torch.allclose(one.unique(), torch.linspace(0, 1.5, L + 1, dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("L", LEVELS)
def test_gradients_at_the_bounds(L: int, region: Region) -> None:
    """Inside is [0, lambda], both ends included, or [-lambda/2L, lambda + lambda/2L): closed below, open above."""
    theta, tiny = torch.tensor(2.0, dtype=torch.float64), 2.0**-40
    margin, closed = (0.0, 1) if region == "clip_first" else (1 / L, 0)
    low, high = -margin, 2 + margin
    z = torch.tensor(
        [low - 1, low - tiny, low, low + tiny, high - tiny, high, high + tiny, high + 1], dtype=torch.float64
    )
    a = clip_floor_shift(z, theta, L)
    inside = torch.tensor([0, 0, 1, 1, 1, closed, 0, 0], dtype=torch.float64)
    above = torch.tensor([0, 0, 0, 0, 0, 1 - closed, 1, 1], dtype=torch.float64)
    for row in range(len(z)):
        upstream = torch.zeros_like(z).index_fill(0, torch.tensor(row), 3.0)
        dz, dtheta = gradients(lambda z, t: clip_floor_shift(z, t, L, region), z, theta, upstream)
        assert torch.equal(dz, upstream * inside)
        assert dtheta.item() == pytest.approx((3 * (above + inside * (a - z) / theta))[row].item(), abs=1e-14)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("kind", THRESHOLDS)
@pytest.mark.parametrize("L", LEVELS)
def test_gradients_equal_autograd_of_an_independent_implementation(L: int, kind: str, region: Region) -> None:
    threshold = THRESHOLDS[kind]
    generator = torch.Generator().manual_seed(L)
    shape = (5, 7, 4) if kind == "per_feature" else (5, 3, 4, 6)
    z = torch.randn(shape, dtype=torch.float64, generator=generator) * 2 * threshold
    upstream = torch.randn(shape, dtype=torch.float64, generator=generator)
    ours = gradients(lambda z, t: clip_floor_shift(z, t, L, region), z, threshold, upstream)
    theirs = gradients(lambda z, t: independent(z, t, L, region), z, threshold, upstream)
    assert torch.allclose(clip_floor_shift(z, threshold, L, region), independent(z, threshold, L, region), atol=1e-12)
    assert torch.equal(ours[0], upstream * (theirs[0] != 0))
    assert torch.allclose(ours[0], theirs[0], atol=1e-12)
    assert ours[1].shape == threshold.shape
    assert torch.allclose(ours[1], theirs[1], atol=1e-11)
    assert ours[1].abs().min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_with_a_single_precision_threshold(dtype: torch.dtype) -> None:
    """The arithmetic and the gradient of lambda are those of float32; only what leaves is rounded."""
    generator = torch.Generator().manual_seed(1)
    z = (torch.randn(64, 33, generator=generator) * 3).to(dtype).requires_grad_()
    threshold = torch.tensor(2.5, requires_grad=True)
    a = clip_floor_shift(z, threshold, 4)
    assert a.dtype == dtype
    wide = clip_floor_shift(z.detach().float(), threshold.detach(), 4)
    assert torch.equal(a.detach(), wide.to(dtype))
    upstream = torch.randn(64, 33, generator=generator).to(dtype)
    dz, dthreshold = torch.autograd.grad(a, (z, threshold), upstream)
    assert (dz.dtype, dthreshold.dtype) == (dtype, torch.float32)
    dz32, dthreshold32 = gradients(
        lambda z, t: clip_floor_shift(z, t, 4), z.detach().float(), threshold.detach(), upstream.float()
    )
    assert torch.equal(dz.float(), dz32)
    assert torch.allclose(dthreshold, dthreshold32, rtol=1e-6)


def test_under_autocast_the_threshold_still_learns_in_single_precision() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), QCFSActivation(4, 1.0))
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.randn(32, 6))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert net[1].threshold.grad.dtype == torch.float32
    assert net[1].threshold.grad != 0


def test_the_module_holds_one_trainable_scalar_and_passes_its_settings_on() -> None:
    for region in REGIONS:
        module = QCFSActivation(3, 0.75, region)
        assert [(name, p.shape, p.item()) for name, p in module.named_parameters()] == [("threshold", (), 0.75)]
        z = torch.tensor([[-0.05, 0.3], [0.8, 2.0]], requires_grad=True)
        module(z).sum().backward()
        dz, dthreshold = gradients(
            lambda z, t, region=region: clip_floor_shift(z, t, 3, region),
            z.detach(),
            torch.tensor(0.75),
            torch.ones(2, 2),
        )
        assert torch.equal(z.grad, dz)
        assert module.threshold.grad == dthreshold
    assert "L=3" in repr(module)
    assert "floor_first" in repr(module)


def test_extreme_inputs_saturate_without_nan() -> None:
    z = torch.tensor([-math.inf, -1e38, 1e38, math.inf])
    assert torch.equal(clip_floor_shift(z, torch.tensor(2.0), 4), torch.tensor([0.0, 0.0, 2.0, 2.0]))
    dz, dthreshold = gradients(lambda z, t: clip_floor_shift(z, t, 4), z, torch.tensor(2.0), torch.ones(4))
    assert torch.equal(dz, torch.zeros(4))
    assert dthreshold == 2


def test_memory_format_is_kept() -> None:
    """The nets run channels-last; an activation that changed the layout would cost a copy per layer."""
    z = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    a = QCFSActivation(4)(z)
    assert a.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("T", [1, 3, 16])
@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5])
def test_quantised_relu_is_the_same_function_with_T_for_L_and_the_shift_of_v_init(T: int, shift: float) -> None:
    theta = torch.tensor([0.5, 2.0], dtype=torch.float64).view(2, 1, 1)
    module = QuantisedReLU(theta, T, shift)
    z = torch.arange(-40, 140, dtype=torch.float64).div(32).expand(2, 1, 180)
    expected = theta * torch.floor(z * T / theta + shift).clamp(0, T) / T
    assert torch.allclose(module(z), expected, atol=1e-14)
    assert not list(module.parameters())
    assert "threshold" in module.state_dict()


def test_quantised_relu_does_not_share_its_threshold_with_the_source() -> None:
    source = nn.Parameter(torch.tensor(1.0))
    module = QuantisedReLU(source, 4)
    source.data.fill_(7.0)
    assert module.threshold == 1
    assert not module.threshold.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile_changes_neither_values_nor_gradients(backend: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), QCFSActivation(4, 1.0), nn.Linear(8, 3))
    x = torch.randn(16, 6)
    expected = net(x)
    expected.square().sum().backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    got = torch.compile(net, backend=backend, fullgraph=True)(x)
    got.square().sum().backward()
    assert torch.allclose(got, expected, atol=1e-6)
    for p, gradient in zip(net.parameters(), wanted, strict=True):
        assert torch.allclose(p.grad, gradient, atol=1e-5)
