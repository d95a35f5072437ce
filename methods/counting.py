"""Neurons that count first and send afterwards: the base of parallel conversion, bit planes, TPP and PASCAL.

Such a layer waits until its predecessor has sent all T steps. Each layer adds T steps to the latency, and a conversion
holds for one T only. The order in which spikes arrive does not matter, so there is no unevenness error.
"""

from __future__ import annotations

from torch import Tensor

from bench.errors import UserError
from bench.snn.neurons import SpikingNeuron
from methods.base import ConversionModule


class CountFirstNode(SpikingNeuron):
    """Adds up T steps of input, then sends T steps of output.

    Args:
        threshold: theta.
        T: steps of input and of output.
        v_init: initial membrane potential as a fraction of theta.
    """

    needs = "this neuron sends after {} steps of input"

    def __init__(self, threshold: Tensor, T: int, v_init: float | Tensor) -> None:
        super().__init__(threshold, v_init)
        self.lookahead = self.probing = T

    def run(self, x_TBX: Tensor) -> Tensor:
        """See :class:`bench.snn.neurons.SpikingNeuron`."""
        if self.v is not None or len(x_TBX) != self.lookahead:
            needs = self.needs.format(self.lookahead)
            raise UserError(f"{needs} and got {len(x_TBX)}; run it through bench.snn.simulate")
        out_TBX, self.v = self.send(self.add_up(x_TBX))
        return out_TBX

    def add_up(self, x_TBX: Tensor) -> Tensor:
        """Returns the potential ``[B, ...]`` after all input steps."""
        return self.initial(x_TBX[0]) + x_TBX.sum(0)

    def send(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output ``[T, B, ...]`` for a potential ``[B, ...]``, and the potential afterwards."""
        raise NotImplementedError


class CountFirst(ConversionModule):
    """Base class of methods whose neurons count first."""

    counts_first = True
    per_T = True
