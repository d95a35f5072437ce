"""What a spike costs: synaptic operations, multiply-accumulates, membrane updates and energy.

The rules, which are NeuroBench's where it has one (https://arxiv.org/abs/2304.04640):

- A spike costs one accumulate (AC, here "synaptic operation") for each weight that it meets: its fan-out, which is
  smaller at the border of an image. A burst of k spikes costs k times that, a negative spike what a positive one does.
- A layer whose input is not spikes costs one multiply-accumulate (MAC) for each weight that meets an input other than
  0, at every step: the first layer, which gets the image at every step, and layers behind average or max-pooling or
  behind a sum of spike trains. Spikes that are only moved, padded with zeros or put beside others remain spikes.
- Biases, residual additions and pooling cost nothing; thresholds are taken as folded into the weights.
- Where neurons send differences (DCGS), the same holds of these: an input that is what it was on average so far costs
  nothing, as its receivers add up what came. Where they send the bits of a number, what is constant in time comes once.
- Steps before the first counted one cost as much as any. Where a neuron first looks at its input for some steps and
  then begins anew (COS), the layers before it send those steps twice, and both are paid; and it updates its potential
  at each of them, in each round of its calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.snn.neurons import Clock, connected, step_totals


@dataclass(frozen=True)
class EnergyModel:
    """Energy of arithmetic alone, without memory.

    Attributes:
        name: as the record names it.
        mac: joules for one multiply-accumulate.
        ac: joules for one accumulate.
    """

    name: str
    mac: float
    ac: float

    def joules(self, macs: float, synops: float) -> float:
        """Energy of one image."""
        return macs * self.mac + synops * self.ac


# 32-bit floating point at 0.9 V (Horowitz, ISSCC 2014, https://doi.org/10.1109/ISSCC.2014.6757323): a multiplication
# 3.7 pJ, an addition 0.9 pJ.
ENERGY_MODEL = EnergyModel("45nm-fp32", mac=4.6e-12, ac=0.9e-12)
# Of the mean of some steps, relative to it, in single precision and generously.
_ROUNDING = 1e-5


class Counts(NamedTuple):
    """Sums over the images of one part, as integers; the steps are all that were run, the first ones included.

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
        clock: of the network.
        fan_outs: of each input of each call, as :class:`bench.snn.graph.wiring.Wiring` has them; ``None`` for a call
            that gets spikes.
    """

    def __init__(self, clock: Clock, fan_outs: Sequence[Tensor | None]) -> None:
        self.clock, self.fan_outs = clock, fan_outs
        self.reset()
        self.begin()

    def reset(self) -> None:
        """Before each run."""
        self.seen: dict[int, tuple[Tensor, int]] = {}

    def begin(self) -> None:
        """Before each pass."""
        self.calls, self.counts = 0, torch.zeros(0)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        """Adds to :attr:`counts`, ``[T]``."""
        call, fan_out = self.calls, self.fan_outs[self.calls]
        self.calls += 1
        if fan_out is None:
            return
        x = args[0] if args else kwargs["input"]
        x_TBX, coding = self.clock.unfold(x), self.clock.coding
        active_TBX = self._changes(x_TBX, call) if coding == "differential" else x_TBX != 0
        constant = len(x) == self.clock.batch and coding != "differential"
        if constant:
            # The same at every step.
            active_TBX = active_TBX[:1]
        counts = step_totals(connected(active_TBX.to(torch.float32), fan_out)).expand(self.clock.T)
        if constant and coding == "word":
            counts = torch.cat([counts[:1], torch.zeros_like(counts[1:])])
        self.counts = self.counts + counts if len(self.counts) else counts

    def _changes(self, x_TBX: Tensor, call: int) -> Tensor:
        """Where a step differs from the mean of those before it."""
        sums, steps = self.seen.get(call, (torch.zeros_like(x_TBX[0]), 0))
        changed = []
        for x in x_TBX:
            mean = sums / max(1, steps)
            changed.append((x - mean).abs() > _ROUNDING * (x.abs() + mean.abs()))
            sums, steps = sums + x, steps + 1
        self.seen[call] = (sums, steps)
        return torch.stack(changed)
