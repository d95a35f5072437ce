"""Makes the table of ``docs/networks.md``: ``python docs/networks.py`` (``--check`` writes nothing; minutes).

Each network is built with random weights and converted with one method that refuses max-pooling and with one that
accepts it. ``dcgs``, ``hmt`` and ``ltb`` accept it too, but their calibration takes minutes.
``tests/unit/test_popular_nets.py`` checks that the conversion equals a step-by-step simulation.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import pages
import timm
import torch
import torchvision
from torch import nn

from bench import convert
from bench.errors import UserError

TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vgg16", "vgg16_bn", "vit_b_32",
    "wide_resnet50_2",
)  # fmt: skip
TIMM = (
    "darknet53", "densenet121", "dla34", "efficientnet_lite0", "ghostnet_100", "hrnet_w18_small", "mobilenetv1_100",
    "regnetx_002", "repvgg_a0", "res2net50_14w_8s", "resnet26d", "resnetblur18", "selecsls42b", "skresnet18",
    "tf_mobilenetv3_small_minimal_100", "vgg11_bn", "xception41",
)  # fmt: skip
METHODS = ("opi", "burst")
# Nets that need a certain image size.
SIZES = {"inception_v3": 128, "swin_t": 224, "vit_b_32": 224}


def build(library: str, name: str) -> nn.Module:
    """A net with random weights."""
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name, num_classes=10)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=10, **options)


def verdict(net: nn.Module, method: str, side: int) -> str:
    """``yes``, or why not."""
    try:
        convert(net, method, torch.randn(2, 3, side, side))
    except UserError as error:
        return str(error).removeprefix(f"{type(net).__name__} cannot be converted: ").split(";")[0]
    return "yes"


def verdicts() -> Iterator[str]:
    """A line for each net."""
    yield from pages.table(["network", *(f"`{method}`" for method in METHODS), "why not"])
    for library, names in (("torchvision", TORCHVISION), ("timm", TIMM)):
        for name in names:
            net = build(library, name).eval()
            found = [verdict(net, method, SIZES.get(name, 64)) for method in METHODS]
            reasons = dict.fromkeys(reason for reason in found if reason != "yes")
            marks = ["yes" if reason == "yes" else "no" for reason in found]
            yield pages.line([f"{library} `{name}`", *marks, "; ".join(reasons)])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    page = pages.HERE / "networks.md"
    sys.exit(pages.main(__doc__ or "", {page: lambda text: pages.filled(text, "networks.py", verdicts())}))
