"""The registry of nets: those of the conversion papers; every other net is timm's."""

from collections.abc import Mapping

ARCHITECTURES: Mapping[str, str] = {
    "cifar_resnet18": "3x3 stem, widths 64-512, 17 activations, 11.2 M weights",
    "cifar_resnet20": "3x3 stem, widths 16-64, 1x1 shortcuts, 19 activations, 0.27 M weights",
    "cifar_resnet34": "3x3 stem, widths 64-512, 33 activations; on ImageNet the papers' net, without max-pool",
    "cifar_vgg16": "13 convolutions, average pooling, 2 hidden linear layers of 4096, 33.6 M weights",
}
