"""CS-QCFS: one softplus threshold for each channel, inside QCFS."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from reference import LinearNet, assert_lively, decayed, images_for, randomise, vgg_like, wide_resnet_like
from running import spikes_of
from torch import Tensor, nn

from bench.snn.activations import Region
from methods.cs_qcfs import CSQCFS, ChannelQCFSActivation


def linear_net() -> LinearNet:
    net = LinearNet()
    net.pretrained_cfg = {"input_size": (3, 8, 8)}  # type: ignore[assignment]
    return net


NETS = {"linear": linear_net, "vgg": vgg_like, "resnet18": wide_resnet_like}


def softplus(s: float) -> float:
    return max(s, 0.0) + math.log1p(math.exp(-abs(s)))


def activation(theta: list[float], L: int, image_dims: int = 2, region: Region = "clip_first") -> ChannelQCFSActivation:
    """In double precision, of the given thresholds."""
    act = ChannelQCFSActivation(L, torch.Size((len(theta), *[3] * image_dims)), 1.0, region).double()
    start = [math.log(math.expm1(value)) for value in theta]
    act.s.data.copy_(torch.tensor(start, dtype=torch.float64).view_as(act.s))
    return act


def model_for(name: str, L: int, images: Tensor) -> CSQCFS:
    """As if trained: each channel has a threshold of its own, at the scale of its inputs."""
    model = CSQCFS(NETS[name](), L=L).double().eval()
    randomise(model, 0)

    def scale(act: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        top = inputs[0].transpose(0, 1).flatten(1).amax(1).clamp_min(0.2) * 0.8
        act.s.data.copy_(torch.log(torch.expm1(top)).view_as(act.s))  # type: ignore[union-attr, operator]

    hooks = [m.register_forward_pre_hook(scale) for m in model.net.modules() if isinstance(m, ChannelQCFSActivation)]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return model


@pytest.mark.parametrize("L", [1, 2, 4])
@pytest.mark.parametrize("image_dims", [0, 2])
def test_values_and_gradients_by_loops(L: int, image_dims: int) -> None:
    """da/dtheta is (a - z) / theta inside, 1 above, 0 below; ds is dtheta times sigmoid(s)."""
    thetas = [0.5, 1.25, 3.0]
    act = activation(thetas, L, image_dims)
    shape = (4, 3, *[3] * image_dims)
    z = (tiny.normal(*shape, seed=L) * 1.5).requires_grad_()
    upstream = tiny.normal(*shape, seed=9)
    out = act(z)
    out.backward(upstream)
    assert act.s.grad is not None
    assert z.grad is not None
    for c, theta in enumerate(thetas):
        slope = 1 / (1 + 1 / math.expm1(theta))  # sigmoid(s) with s = ln(e^theta - 1)
        dtheta = 0.0
        channel = (part[:, c].flatten().tolist() for part in (z.detach(), out.detach(), z.grad, upstream))
        for value, a, dz, up in zip(*channel, strict=True):
            level = min(max(math.floor(value * L / theta + 0.5), 0), L)
            assert a == pytest.approx(theta * level / L, abs=1e-12)
            if value > theta:
                dtheta += up
            elif value >= 0:
                dtheta += up * (a - value) / theta
            assert dz == pytest.approx(up if 0 <= value <= theta else 0.0, abs=1e-12)
        assert act.s.grad.flatten()[c].item() == pytest.approx(dtheta * slope, rel=1e-9, abs=1e-12)


def test_the_start_is_the_inverse_of_softplus() -> None:
    for theta in (8.0, 1.0, 1e-3, 100.0):
        act = ChannelQCFSActivation(4, torch.Size((5, 2, 2)), theta, "clip_first")
        assert act.s.shape == (5, 1, 1)
        assert torch.allclose(act.threshold, torch.full((5, 1, 1), theta), rtol=2e-6)
    assert ChannelQCFSActivation(4, torch.Size((2, 2, 2)), 8.0, "clip_first").s.flatten()[0].item() == pytest.approx(
        math.log(math.exp(8.0) - 1)
    )


@pytest.mark.parametrize("name", NETS)
def test_with_one_level_and_one_step_the_snn_is_its_ann(name: str) -> None:
    images = images_for(name)
    model = model_for(name, 1, images)
    thetas = [m.threshold.flatten() for m in model.net.modules() if isinstance(m, ChannelQCFSActivation)]
    assert all(theta.std() > 1e-2 for theta in thetas), "channels of one layer differ"
    logits, spikes = spikes_of(model.convert(1, []), images, 1)
    with torch.no_grad():
        assert torch.allclose(logits[0], model(images), rtol=1e-9, atol=1e-9)
    assert_lively(logits, spikes)


@pytest.mark.parametrize("name", NETS)
def test_shapes_after_convolutions_and_after_linear_layers(name: str) -> None:
    """A channel is a feature where there is no image any more."""
    model = CSQCFS(NETS[name]())
    shapes: dict[str, torch.Size] = {}
    for layer, module in model.net.named_modules():
        if isinstance(module, ChannelQCFSActivation):
            module.register_forward_hook(lambda m, x, y, n=layer: shapes.update({n: x[0].shape[1:]}))
    model(images_for(name).float())
    assert shapes
    for layer, shape in shapes.items():
        assert model.net.get_submodule(layer).s.shape == (shape[0], *[1] * (len(shape) - 1))
    if name == "vgg":
        assert {len(shape) for shape in shapes.values()} == {1, 3}


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("s", [-20.0, -50.0, -80.0])
def test_thresholds_stay_positive_for_very_negative_s(s: float, precision: torch.dtype) -> None:
    act = activation([1.0, 1.0], 4).to(precision)
    act.s.data[1] = s
    theta = act.threshold.flatten()
    assert theta[1].item() == pytest.approx(math.exp(s), rel=1e-5)
    z = torch.tensor([-1.0, 0.0, 1e-3, 2.0], dtype=precision).view(4, 1, 1, 1).repeat(1, 2, 3, 3).requires_grad_()
    out = act(z)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(act.s.grad).all()  # type: ignore[arg-type]
    assert (out[:, 1] <= theta[1]).all()


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 0.0), ({"s_weight_decay": None}, 0.1), ({"s_weight_decay": 0.4}, 0.4)]
)
def test_weight_decay_leaves_s_alone_unless_told(options: dict[str, float | None], expected: float) -> None:
    lost = decayed(CSQCFS(linear_net(), lr=0.5, weight_decay=0.1, **options).double())  # type: ignore[arg-type]
    for name in ("net.act1.s", "net.act2.s"):
        assert lost.pop(name) == pytest.approx(0.5 * expected, abs=1e-12)
    assert len(lost) >= 6
    assert all(value == pytest.approx(0.05) for value in lost.values())
