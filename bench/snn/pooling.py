"""Max-pooling of spikes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.snn.neurons import Timed, stack_steps

# Far above the rounding error of a sum in single precision, far below one spike in a sum of ten thousand.
_TIE = 1e-6


class LateralInhibitionPool(Timed):
    """Max-pooling of rates: after every step its output sums to the largest sum of its inputs.

    With ``S_t`` the sum of the inputs up to step t, it sends ``maxpool(S_t) - maxpool(S_{t-1})``: the leading input
    passes, and the others are inhibited until they have caught up (LIPooling; Li and Zeng, IJCAI 2022,
    https://arxiv.org/abs/2204.13271). A change below a millionth of the sum waits for a later step. Otherwise inputs
    with equal sums would differ by rounding errors, and each difference would be sent as an event.

    Args:
        pool: the max-pooling that it replaces.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.reset()

    def reset(self) -> None:
        """Clears the sums of its input and output."""
        self.sums: Tensor | None = None
        self.sent: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` or ``[T*B, C, H, W]`` in, ``[T*B, C, H', W']`` out."""
        x_TBX = self.clock.unfold(x).to(torch.promote_types(x.dtype, torch.float32))
        sums = torch.zeros_like(x_TBX[0]) if self.sums is None else self.sums
        received = []
        # Step by step, so that the sums do not depend on where a run is cut into passes.
        for step in x_TBX:
            sums = sums + step
            received.append(sums)
        highest_TBX = self.clock.unfold(self.pool(stack_steps(received, x_TBX).flatten(0, 1)))
        sent = torch.zeros_like(highest_TBX[0]) if self.sent is None else self.sent
        outputs = []
        for highest in highest_TBX:
            gain = highest - sent
            outputs.append(torch.where(gain.abs() > _TIE * highest.abs(), gain, 0.0))
            sent = sent + outputs[-1]
        self.sums, self.sent = sums, sent
        return stack_steps(outputs, highest_TBX).flatten(0, 1)
