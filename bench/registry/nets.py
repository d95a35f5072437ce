"""The registry of nets from the conversion papers; all other nets are timm's."""

from collections.abc import Mapping

from bench.registry.entries import NetEntry

ARCHITECTURES: Mapping[str, NetEntry] = {
    "cifar_resnet18": NetEntry(shape="3x3 stem, widths 64-512", title="ResNet-18", activations=17, weights=11.2),
    "cifar_resnet20": NetEntry(
        shape="3x3 stem, widths 16-64, 1x1 shortcuts", title="ResNet-20", activations=19, weights=0.27
    ),
    "cifar_resnet32": NetEntry(
        shape="3x3 stem, widths 16-64, 1x1 shortcuts", title="ResNet-32", activations=31, weights=0.47
    ),
    "cifar_resnet34": NetEntry(
        shape="3x3 stem, widths 64-512, no max-pooling; also the papers' net for ImageNet",
        title="ResNet-34",
        activations=33,
        weights=21.3,
        imagenet=True,
    ),
    "cifar_resnet44": NetEntry(
        shape="3x3 stem, widths 16-64, 1x1 shortcuts", title="ResNet-44", activations=43, weights=0.66
    ),
    "cifar_resnet56": NetEntry(
        shape="3x3 stem, widths 16-64, 1x1 shortcuts", title="ResNet-56", activations=55, weights=0.86
    ),
    "cifar_resnet20a": NetEntry(
        shape="3x3 stem, widths 16-64, padded shortcuts", title="ResNet-20 (option A)", activations=19, weights=0.27
    ),
    "cifar_resnet32a": NetEntry(
        shape="3x3 stem, widths 16-64, padded shortcuts", title="ResNet-32 (option A)", activations=31, weights=0.46
    ),
    "cifar_resnet44a": NetEntry(
        shape="3x3 stem, widths 16-64, padded shortcuts", title="ResNet-44 (option A)", activations=43, weights=0.66
    ),
    "cifar_resnet56a": NetEntry(
        shape="3x3 stem, widths 16-64, padded shortcuts", title="ResNet-56 (option A)", activations=55, weights=0.85
    ),
    "cifar_resnet20_snnc": NetEntry(
        shape="3x3 stem, widths 64-256, 1x1 shortcuts",
        title="ResNet-20 (SNNC variant)",
        activations=19,
        weights=4.33,
    ),
    "cifar_vgg16": NetEntry(
        shape="13 convolutions, average pooling, 2 hidden linear layers of 4096",
        title="VGG-16",
        activations=15,
        weights=33.6,
    ),
}
