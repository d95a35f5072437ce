"""AutoAugment against the papers' code: its operations on PIL images, written here from what that code does."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Generator, Tensor

from datamodules.autoaugment import BatchedAutoAugment

# Table 7 of the AutoAugment paper as the papers' code has it: probability, operation, level, twice.
POLICY = [
    (0.1, "Invert", None, 0.2, "Contrast", 6),
    (0.7, "Rotate", 2, 0.3, "TranslateX", 9),
    (0.8, "Sharpness", 1, 0.9, "Sharpness", 3),
    (0.5, "ShearY", 8, 0.7, "TranslateY", 9),
    (0.5, "AutoContrast", None, 0.9, "Equalize", None),
    (0.2, "ShearY", 7, 0.3, "Posterize", 7),
    (0.4, "Color", 3, 0.6, "Brightness", 7),
    (0.3, "Sharpness", 9, 0.7, "Brightness", 9),
    (0.6, "Equalize", None, 0.5, "Equalize", None),
    (0.6, "Contrast", 7, 0.6, "Sharpness", 5),
    (0.7, "Color", 7, 0.5, "TranslateX", 8),
    (0.3, "Equalize", None, 0.4, "AutoContrast", None),
    (0.4, "TranslateY", 3, 0.2, "Sharpness", 6),
    (0.9, "Brightness", 6, 0.2, "Color", 8),
    (0.5, "Solarize", 2, 0.0, "Invert", None),
    (0.2, "Equalize", None, 0.6, "AutoContrast", None),
    (0.2, "Equalize", None, 0.8, "Equalize", None),
    (0.9, "Color", 9, 0.6, "Equalize", None),
    (0.8, "AutoContrast", None, 0.2, "Solarize", 8),
    (0.1, "Brightness", 3, 0.7, "Color", 0),
    (0.4, "Solarize", 5, 0.9, "AutoContrast", None),
    (0.9, "TranslateY", 9, 0.7, "TranslateY", 9),
    (0.9, "AutoContrast", None, 0.8, "Solarize", 3),
    (0.8, "Equalize", None, 0.1, "Invert", None),
    (0.7, "TranslateY", 9, 0.9, "AutoContrast", None),
]
USED = sorted({(name, level) for row in POLICY for _, name, level in (row[:3], row[3:])}, key=str)
# Magnitudes at the levels 0 to 9; a coin decides the sign of those of the first line.
SIGNED = {
    **dict.fromkeys(("ShearX", "ShearY"), np.linspace(0, 0.3, 10)),
    **dict.fromkeys(("TranslateX", "TranslateY"), np.linspace(0, 150 / 331, 10)),
    **dict.fromkeys(("Color", "Contrast", "Sharpness", "Brightness"), np.linspace(0, 0.9, 10)),
}
UNSIGNED = {
    "Rotate": np.linspace(0, 30, 10),
    "Posterize": np.round(np.linspace(8, 4, 10)),
    "Solarize": np.linspace(256, 0, 10),
}


def moved(image: Image.Image, matrix: tuple[float, ...], filtering: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, filtering, fillcolor=(128, 128, 128))


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """Corners without a pixel are transparent and become grey."""
    clear = image.convert("RGBA").rotate(degrees)
    return Image.composite(clear, Image.new("RGBA", clear.size, (128, 128, 128, 128)), clear).convert("RGB")


NEAREST, BICUBIC = Image.Resampling.NEAREST, Image.Resampling.BICUBIC
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "ShearX": lambda image, m: moved(image, (1, m, 0, 0, 1, 0), BICUBIC),
    "ShearY": lambda image, m: moved(image, (1, 0, 0, m, 1, 0), BICUBIC),
    "TranslateX": lambda image, m: moved(image, (1, 0, m * image.size[0], 0, 1, 0), NEAREST),
    "TranslateY": lambda image, m: moved(image, (1, 0, 0, 0, 1, m * image.size[1]), NEAREST),
    "Rotate": turned,
    "Color": lambda image, m: ImageEnhance.Color(image).enhance(1 + m),
    "Contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(1 + m),
    "Sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + m),
    "Brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(1 + m),
    "Posterize": lambda image, m: ImageOps.posterize(image, int(m)),
    "Solarize": lambda image, m: ImageOps.solarize(image, m),
    "AutoContrast": lambda image, m: ImageOps.autocontrast(image),
    "Equalize": lambda image, m: ImageOps.equalize(image),
    "Invert": lambda image, m: ImageOps.invert(image),
}


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def photographs(count: int) -> Tensor:
    """Smooth colour gradients with noise: neither flat nor white noise, so that every operation shows."""
    generator = seeded(11)
    grid = torch.linspace(0, 1, 32)
    colours = torch.rand(count, 3, 2, generator=generator)
    smooth = colours[..., :1, None] * grid[:, None] + colours[..., 1:, None] * grid
    noise = 0.1 * torch.rand(count, 3, 32, 32, generator=generator)
    return ((smooth / 2 + noise).clamp(0, 1) * 255).to(torch.uint8)


@pytest.mark.parametrize(("name", "level"), [*USED, ("ShearX", 5)])
@pytest.mark.parametrize("negative", [False, True])
def test_every_operation_is_that_of_the_papers_code(name: str, level: int | None, negative: bool) -> None:
    """Images of one batch do not influence each other."""
    images = photographs(4)
    magnitude = 0.0 if level is None else float((SIGNED | UNSIGNED)[name][level])
    if negative and name in SIGNED:
        magnitude = -magnitude
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    expected = np.stack([np.array(OPERATIONS[name](picture, magnitude)) for picture in pictures])
    out = BatchedAutoAugment()._operate(images, name, level, negative)
    assert out.dtype == torch.uint8
    off = np.abs(out.permute(0, 2, 3, 1).numpy().astype(int) - expected)
    # Colours are torchvision's, which rounds where PIL cuts off; geometry is PIL's but for sums in another order.
    colours = name in ("Color", "Contrast", "Brightness", "AutoContrast")
    assert off.max() <= 1
    assert (off > 0).mean() < (0.5 if colours else 0.002)


def test_what_comes_in_from_outside_is_grey() -> None:
    images = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    for name, level, grey in (("TranslateX", 9, 15 * 32), ("TranslateY", 3, 5 * 32), ("Invert", None, 0)):
        out = BatchedAutoAugment()._operate(images, name, level, negative=False)
        assert int((out[0, 0] == 128).sum()) == grey


def test_every_image_becomes_one_outcome_of_the_policy() -> None:
    """Two operations in their order, each done or not, each with its sign: nothing else may come out."""
    ours = BatchedAutoAugment()

    def operate(image: Tensor, name: str, level: int | None, negative: bool) -> Tensor:
        return ours._operate(image[None], name, level, negative)[0]

    images = photographs(3)
    outcomes = []
    for image in images:
        possible = set()
        for _, first, first_level, _, second, second_level in POLICY:
            for do_first, do_second in itertools.product((False, True), repeat=2):
                for signs in itertools.product((False, True), repeat=2):
                    out = operate(image, first, first_level, signs[0]) if do_first else image
                    out = operate(out, second, second_level, signs[1]) if do_second else out
                    possible.add(out.numpy().tobytes())
        outcomes.append(possible)
    repeated = images.repeat(60, 1, 1, 1)
    out = ours.apply(repeated, seeded())
    assert torch.equal(repeated, images.repeat(60, 1, 1, 1))
    strangers = [n for n, image in enumerate(out) if image.contiguous().numpy().tobytes() not in outcomes[n % 3]]
    assert strangers == []
    assert len({image.contiguous().numpy().tobytes() for image in out}) > 80


def test_operations_come_as_often_as_the_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the 25 sub-policies for 1/25 of the images, each operation with its probability, each sign by half."""
    calls: Counter[tuple[str, int | None, bool]] = Counter()

    def count(_: BatchedAutoAugment, images: Tensor, name: str, level: int | None, negative: bool) -> Tensor:
        calls[name, level, negative] += len(images)
        return images

    monkeypatch.setattr(BatchedAutoAugment, "_operate", count)
    n = 40_000
    BatchedAutoAugment().apply(torch.zeros(n, 3, 1, 1, dtype=torch.uint8), seeded())
    expected: Counter[tuple[str, int | None]] = Counter()
    for row in POLICY:
        for probability, name, level in (row[:3], row[3:]):
            expected[name, level] += n * probability / 25  # type: ignore[assignment]
    assert {key[:2] for key in calls} == set(expected)
    for (name, level), mean in expected.items():
        # Where an operation has no sign, all its images are done at once.
        shares = {False: mean / 2, True: mean / 2} if name in SIGNED else {False: mean, True: 0}
        for negative, share in shares.items():
            assert abs(calls[name, level, negative] - share) <= 4.5 * share**0.5, (name, level, negative)


def test_the_two_operations_of_a_policy_are_drawn_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one sub-policy of probabilities .7 and .4: 28 % get both, in order, 18 % get none."""
    pair = (("Invert", 0.7, None), ("Posterize", 0.4, 2))
    monkeypatch.setattr(BatchedAutoAugment, "_get_policies", lambda *_: [pair])
    ours = BatchedAutoAugment()

    def stamp(images: Tensor, name: str, level: int | None, negative: bool) -> Tensor:
        return images * 4 + {"Invert": 1, "Posterize": 2}[name]

    monkeypatch.setattr(ours, "_operate", stamp)
    out = ours.apply(torch.zeros(10_000, 3, 1, 1, dtype=torch.uint8), seeded())
    share = {int(k): v / 10_000 for k, v in Counter(out[:, 0, 0, 0].tolist()).items()}
    assert share == pytest.approx({0: 0.3 * 0.6, 1: 0.7 * 0.6, 2: 0.3 * 0.4, 6: 0.7 * 0.4}, abs=0.02)
