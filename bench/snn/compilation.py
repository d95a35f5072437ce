"""Decides whether ``torch.compile`` pays off, and whether it works on this machine."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from bench.errors import first_line

P = ParamSpec("P")
R = TypeVar("R")

# Compiling a network takes 10 to 60 seconds; it pays off from this many image-steps on.
WORTH = 100_000


# Compiling training steps pays off from this many images on, over all epochs: ResNet-20 takes a minute to compile, and
# more than half an hour for so many images on a core with AVX2.
WORTH_IN_TRAINING = 500_000


@functools.cache
def can_compile() -> bool:
    """Whether ``torch.compile`` works, tried with a small function; says so, once, if it does not."""
    compiler = os.environ.get("CXX", "g++")
    if not torch.cuda.is_available() and not shutil.which(compiler):
        print(f"note: {compiler} not found, so nothing is compiled; this is slower, with the same results")
        return False
    try:
        torch.compile(lambda x: x.mul(2).relu())(torch.ones(64))
    except Exception as error:  # headers may be missing: whatever compiler, linker or file system raise
        print(f"note: the compiler does not work, so nothing is compiled ({first_line(error)})")
        return False
    return True


def worth_compiling(image_steps: int) -> bool:
    """Whether compilation is possible and pays off for a run of this size."""
    return image_steps >= WORTH and can_compile()


def worth_compiling_training(images: int) -> bool:
    """Whether compilation is possible and pays off for a training on this many images, over all epochs."""
    return images >= WORTH_IN_TRAINING and can_compile()


def compiled_for_shapes(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles a function that only ever sees a few shapes, separately for each of them."""
    # A network has a first and a later pass, and layers of a few shapes; a run may convert a network for each T.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
    return torch.compile(function, dynamic=False)


def compiled_for_training(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compiles a network; its random numbers are those of eager mode, which are faster on a CPU.

    Each batch size is compiled separately. Otherwise torch would switch to code for any size after the last batch of
    the first epoch, which is smaller. A resumed training would switch at another step and round differently.
    """
    return torch.compile(net, dynamic=False, options={"fallback_random": True})
