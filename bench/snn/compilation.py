"""When compilation pays, and whether it can be done."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.errors import first_line

# Image-steps from which the compilation of a network, 10 to 60 seconds, pays.
WORTH = 100_000


# Images, over all epochs, from which the compilation of training steps pays: ResNet-20 takes a minute to compile, and
# on a core with AVX2 more than half an hour for so many images.
WORTH_IN_TRAINING = 500_000


@functools.cache
def can_compile() -> bool:
    """Whether ``torch.compile`` finds a C++ compiler or a GPU; says so, once, if it finds neither."""
    compiler = os.environ.get("CXX", "g++")
    if torch.cuda.is_available() or shutil.which(compiler):
        return True
    print(f"note: no {compiler} found, so nothing is compiled; it takes longer and gives the same")
    return False


@functools.cache
def compiler_works() -> bool:
    """Tries a small function: a compiler may be there without the headers it needs. Says so, once, if it fails."""
    if not can_compile():
        return False
    try:
        torch.compile(lambda x: x.mul(2).relu())(torch.ones(64))
    except Exception as error:  # whatever compiler, linker or file system raise
        print(f"note: the compiler does not work, so nothing is compiled ({first_line(error)})")
        return False
    return True


def worth_compiling(image_steps: int) -> bool:
    """Whether a run of this size gains by compilation, and can be compiled."""
    return image_steps >= WORTH and can_compile()


def worth_compiling_training(images: int) -> bool:
    """Whether a training on so many images, all epochs together, gains by compilation, and can be compiled."""
    return images >= WORTH_IN_TRAINING and compiler_works()


def compiled_for_training(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network as compiled code; random numbers in it are those of eager mode, which are faster on a CPU.

    Each size of batch is compiled by itself. Code for any size would take over once an epoch's last batch has shown
    that sizes differ, so that a resumed training, whose first epoch has not seen one, would round otherwise.
    """
    return torch.compile(net, dynamic=False, options={"fallback_random": True})
