"""All bits of single precision, however PyTorch was told to compute with fewer, and the user's settings afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from bench.snn.precision import _KINDS, full_precision

SETTINGS: dict[str, Callable[[], object]] = {
    "default": lambda: None,
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "newer": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "newer of cuDNN": lambda: setattr(torch.backends.cudnn, "fp32_precision", "tf32"),
    "newer of all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}
OLDER = (
    torch.get_float32_matmul_precision,
    lambda: torch.backends.cudnn.allow_tf32,
    lambda: torch.backends.cuda.matmul.allow_tf32,
)


def state() -> list[object]:
    found: list[object] = [kind.fp32_precision for kind in _KINDS]
    for read in OLDER:
        try:
            found.append(read())
        except RuntimeError:
            found.append("contradicts")
    return found


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = [kind.fp32_precision for kind in _KINDS]
    convolutions = torch.backends.cudnn.allow_tf32
    # A test that set the older option has left "ieee" here, over which the settings for all of cuDNN have no power.
    torch.backends.cuda.matmul.fp32_precision = "none"
    yield
    torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = convolutions
    for kind, precision in zip(_KINDS, before, strict=True):
        if kind.fp32_precision != precision:
            kind.fp32_precision = precision


def test_an_autocast_around_it_is_switched_off() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision():
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


@pytest.mark.parametrize("name", SETTINGS)
def test_all_bits_are_used_and_the_settings_come_back(name: str) -> None:
    untouched = state()
    SETTINGS[name]()
    before = state()
    assert (before == untouched) == (name == "default")
    with full_precision():
        assert state() == ["ieee"] * len(_KINDS) + ["highest", False, False], "the older options agree"
    assert state() == before
