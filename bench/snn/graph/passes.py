"""How a run is cut into passes."""

from __future__ import annotations

import torch

# Bytes of the largest layer's output in one pass: enough to keep the convolutions busy, few enough for a CPU's cache
# and far below the memory of an ordinary evaluation batch.
WORKING_SET = {"cpu": 4 << 20, "cuda": 512 << 20}
# Steps in one pass, about: a neuron's loop over them is one kernel of a compiled network, which gains little by more.
STEPS = 8


def image_steps_of_a_pass(largest: int, device: torch.device) -> int:
    """Images times steps of one pass, where one image at one step takes ``largest`` bytes in the largest layer."""
    return max(1, WORKING_SET.get(device.type, WORKING_SET["cuda"]) // largest)


def steps_of_a_pass(steps: int) -> int:
    """Steps of one pass, so that equal passes overshoot ``steps`` by as few as possible."""
    if steps <= STEPS:
        return steps
    candidates = range(STEPS - 3, STEPS + 3)
    return min(candidates, key=lambda n: (-steps % n, abs(n - STEPS)))


def images_of_a_pass(batch: int, most: int) -> int:
    """Images of one pass: a divisor of the batch, where one is near ``most``, so that all passes are alike."""
    near = [n for n in range((2 * most + 2) // 3, 3 * most // 2 + 1) if batch % n == 0]
    return min(near, key=lambda n: abs(n - most)) if near else min(most, batch)
