"""When compilation pays, and whether it can be done."""

from __future__ import annotations

import functools
import os
import shutil
from typing import Any

import torch
from torch import nn

# Image-steps from which the compilation of a network, 10 to 60 seconds, pays.
WORTH = 100_000


@functools.cache
def can_compile() -> bool:
    """Whether ``torch.compile`` finds a C++ compiler or a GPU; says so, once, where there is neither."""
    compiler = os.environ.get("CXX", "g++")
    if torch.cuda.is_available() or shutil.which(compiler):
        return True
    print(f"note: there is no {compiler}, so nothing is compiled; it takes longer and gives the same")
    return False


def worth_compiling(image_steps: int) -> bool:
    """Whether a run of this size gains by compilation, and can be compiled."""
    return image_steps >= WORTH and can_compile()


def compiled_for_training(net: nn.Module) -> Any:
    """The network as compiled code; random numbers in it are those of eager mode, which are faster on a CPU."""
    return torch.compile(net, options={"fallback_random": True})
