"""The registry of data sets: one entry each; a class is imported when it is used."""

from bench.registry.entries import DataEntry

DATA: dict[str, DataEntry] = {
    "digits": DataEntry(
        "datamodules.digits:DigitsDataModule",
        "scikit-learn's handwritten digits as 3x32x32, embedded",
        title="digits",
        num_classes=10,
        num_test=360,
    ),
    "cifar10": DataEntry(
        "datamodules.cifar:CIFAR10DataModule",
        "50,000 + 10,000 images, 32x32, 10 classes",
        title="CIFAR-10",
        num_classes=10,
        num_test=10_000,
    ),
    "cifar100": DataEntry(
        "datamodules.cifar:CIFAR100DataModule",
        "50,000 + 10,000 images, 32x32, 100 classes",
        title="CIFAR-100",
        num_classes=100,
        num_test=10_000,
    ),
    "imagenet": DataEntry(
        "datamodules.imagenet:ImageNetDataModule",
        "1,281,167 + 50,000 images, 224x224, 1,000 classes",
        title="ImageNet",
        num_classes=1_000,
        num_test=50_000,
    ),
}
