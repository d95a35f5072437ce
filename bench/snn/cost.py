"""What a spike costs: synaptic operations, multiply-accumulates and membrane updates.

The rules are those of NeuroBench (https://arxiv.org/abs/2304.04640), if it has one:

- A spike costs one accumulate (AC, here "synaptic operation") for each weight that it meets: its fan-out, which is
  smaller at the border of an image. A burst of k spikes costs k times as much; if k is sent as binary digits (H-MT,
  bit-plane), each digit 1 costs as much as one spike. A negative spike costs as much as a positive one.
- A layer whose input is not spikes costs one multiply-accumulate (MAC) at every step for each weight that meets an
  input other than 0. Such layers are the first one, which gets the image at every step, and those after average or
  max-pooling or after a sum of spike trains. Spikes that are only moved, padded with zeros or concatenated remain
  spikes.
- Biases, residual additions and pooling cost nothing; thresholds count as folded into the weights.
- If neurons send differences (DCGS), the same rules apply to these: an input that equals its mean so far costs nothing,
  because the receivers add up what they get. If neurons send the bits of a number, an input that is constant in time
  is paid once.
- Steps before the first counted one cost as much as any other. If a neuron first looks at its input for some steps and
  then starts again (COS), the layers before it send those steps twice, and both are paid. The neuron also updates its
  potential at each of these steps, in each round of its calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.snn.graph.wiring import Call
from bench.snn.neurons import Clock, connected, step_totals

# A generous bound on the rounding error of a mean over steps, relative to it, in single precision.
_ROUNDING = 1e-5


class Counts(NamedTuple):
    """Sums over the images of one part, as integers, for all steps that were run, counted or not.

    Attributes:
        spikes: ``[neuron layers, steps]``.
        synops: ``[neuron layers, steps]``.
        macs: ``[analogue layers, steps]``.
    """

    spikes: Tensor
    synops: Tensor
    macs: Tensor


class AnalogueCounter:
    """Forward pre-hook (with keywords) on a layer whose input is not spikes: counts its multiply-accumulates.

    Args:
        clock: the network's.
        wired: the layer's calls, as in :class:`bench.snn.graph.wiring.Wiring`.
    """

    def __init__(self, clock: Clock, wired: Sequence[Call | None]) -> None:
        self.clock, self.wired = clock, wired
        self.reset()
        self.begin()

    def reset(self) -> None:
        """Prepares for a run."""
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self) -> None:
        """Prepares for a pass."""
        self.calls, self.counts = 0, torch.zeros(0)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        """Adds the multiply-accumulates of one call to :attr:`counts`, ``[T]``."""
        call, wired = self.calls, self.wired[self.calls]
        self.calls += 1
        if wired is None:
            return
        x = args[0] if args else kwargs["input"]
        x_TBX, coding = self.clock.unfold(x), self.clock.coding
        active_TBX = self._changes(x_TBX, call) if coding == "differential" else x_TBX != 0
        constant = wired.constant and coding != "differential"
        if constant:
            # The same at every step.
            active_TBX = active_TBX[:1]
        counts = step_totals(connected(active_TBX.to(torch.float32), wired.fan_out)).expand(self.clock.T)
        if constant and coding == "word":
            counts = torch.cat([counts[:1], torch.zeros_like(counts[1:])])
        self.counts = self.counts + counts if len(self.counts) else counts

    def _changes(self, x_TBX: Tensor, call: int) -> Tensor:
        """Marks the inputs of each step that differ from their mean over the steps before."""
        # Steps as a tensor: with a Python number, compiled code would be recompiled for each pass.
        sums, steps = self.seen.get(call, (torch.zeros_like(x_TBX[0]), x_TBX.new_zeros(())))
        changed = []
        for x in x_TBX:
            mean = sums / steps.clamp_min(1)
            changed.append((x - mean).abs() > _ROUNDING * (x.abs() + mean.abs()))
            sums, steps = sums + x, steps + 1
        self.seen[call] = (sums, steps)
        return torch.stack(changed)
