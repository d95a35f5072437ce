"""The registry of data sets: one line each, imported only when used."""

from bench.registry.entries import Entry

DATA: dict[str, Entry] = {
    "digits": Entry("datamodules.digits:DigitsDataModule", "scikit-learn's handwritten digits as 3x32x32, embedded"),
    "cifar10": Entry("datamodules.cifar:CIFAR10DataModule", "50,000 + 10,000 images, 32x32, 10 classes"),
    "cifar100": Entry("datamodules.cifar:CIFAR100DataModule", "50,000 + 10,000 images, 32x32, 100 classes"),
    "imagenet": Entry("datamodules.imagenet:ImageNetDataModule", "1,281,167 + 50,000 images, 224x224, 1,000 classes"),
}
