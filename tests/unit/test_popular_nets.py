"""Popular nets of torchvision and timm with random weights: each the same as its own step loop, and alive."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from steps import steps_of
from torch import nn

from bench import convert, simulate
from bench.snn.layerwise import execution_order

T, SIDE = 32, 64
TORCHVISION = (
    "mobilenet_v2", "densenet121", "googlenet", "squeezenet1_1", "resnet50", "vgg16_bn", "regnet_x_400mf", "mnasnet0_5",
    "shufflenet_v2_x0_5",
)  # fmt: skip
TIMM = (
    "resnet18", "resnet26d", "dla34", "hrnet_w18_small", "res2net50_14w_8s", "tf_mobilenetv3_small_minimal_100",
    "regnetx_002", "vgg11_bn", "densenet121", "repvgg_a0", "resnetblur18", "selecsls42b",
)  # fmt: skip


def alive(name: str, library: str) -> nn.Module:
    """A net in which every layer has something to send: BN has seen images of the size it gets."""
    torch.manual_seed(0)
    if library == "timm":
        net = timm.create_model(name, num_classes=10)
    else:
        odd = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
        net = torchvision.models.get_model(name, weights=None, num_classes=10, **odd)
    net.train()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for _ in range(6):
            net(torch.randn(8, 3, SIDE, SIDE))
    return net.eval()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "library"), [*((name, "torchvision") for name in TORCHVISION), *((name, "timm") for name in TIMM)]
)
def test_a_popular_net_is_its_own_step_loop(name: str, library: str) -> None:
    net = alive(name, library).double()
    calibration, images = (torch.randn(n, 3, SIDE, SIDE, dtype=torch.float64) for n in (8, 2))
    pools = any("MaxPool" in type(module).__name__ for module in net.modules())
    method, levels = ("burst", 5) if pools else ("opi", 1)
    snn = convert(net, method, calibration, v_init=0.413, percentile=99.9)
    thresholds = [snn.net.get_submodule(layer).threshold for layer in execution_order(snn.net)]
    expected, rates = steps_of(net, images, T, thresholds, 0.413, levels)
    score, wanted = simulate(snn, images, T).sum(0), expected.sum(0)
    assert (score - wanted).abs().max() < 1e-3 * wanted.abs().max()
    assert min(rates) > 0.01, f"a layer sends nothing: {min(rates)}"
    assert wanted.std(0).max() > 1e-6
