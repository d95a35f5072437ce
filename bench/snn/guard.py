"""The final check of a conversion: with time folded into the batch, the network must answer as the user's does.

The checks of :mod:`bench.snn.graph` look at operations. What they cannot see (noise, statistics over the batch, state
that a network keeps, values that were read while it was traced) shows up here, on a few images.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation, ClippedReLU, ReLUActivation
from bench.snn.graph.check import mixes_constant_input
from bench.snn.graph.trace import does_not_take
from bench.snn.neurons import Clock, Timed
from bench.snn.replace import replace

# Number of images compared, and of time-steps folded into the batch.
IMAGES, STEPS = 4, 2
# Tolerances, relative to the largest answer: the order of sums changes with the batch size and with folded BN.
_TOLERANCE = {torch.float64: 1e-6}
_SINGLE = 1e-3
# A rounding error may move a quantised activation by a whole level.
_QUANTISED = 5e-2


class _Unfolded(Timed):
    """An activation that unfolds time from the batch, as a neuron does, and answers at each step as in the ANN."""

    def __init__(self, activation: Activation, clock: Clock) -> None:
        super().__init__()
        self.activation, self.clock = activation, clock

    def forward(self, x: Tensor) -> Tensor:
        """``[B, ...]`` or ``[T*B, ...]`` in, ``[T*B, ...]`` out."""
        result: Tensor = self.activation(self.clock.unfold(x)).flatten(0, 1)
        return result


@torch.no_grad()
def require_same_answers(own: nn.Module, net: nn.Module, last: nn.Module | None, images: Tensor) -> None:
    """Refuses a conversion whose network does not answer as the user's does.

    Args:
        own: the user's network, in evaluation mode.
        net: the same network prepared for conversion, before its activations become neurons.
        last: the softmax that ends ``own`` and is left out of ``net``; ``None`` if there was none.
        images: ``[B, ...]``; the first few are used, one by one, as a batch, and with time folded into it.

    Raises:
        UserError: says how the answers differ.
    """
    # Add an image that differs from the first, in case only one was given or all are alike.
    images, name = torch.cat([images[: IMAGES - 1], images[:1] / 2 + 0.1]), type(own).__name__

    def ask(x: Tensor) -> Tensor:
        try:
            answer = own(x.clone())  # it may change its input
        except Exception as error:  # whatever a forward pass may raise
            raise does_not_take(own, x.shape[1:], error) from error
        if not isinstance(answer, Tensor):
            raise UserError(f"{name} returns a {type(answer).__name__}; give a network that returns logits")
        return answer

    whole = ask(images)
    if not bool(torch.isfinite(whole).all()):
        raise UserError(f"{name} returns NaN or infinity for calibration images")
    smooth = all(isinstance(m, (ReLUActivation, ClippedReLU)) for m in net.modules() if isinstance(m, Activation))
    share = _TOLERANCE.get(whole.dtype, _SINGLE) if smooth else _QUANTISED
    tolerance = share * float(whole.abs().max())

    def differs(other: Tensor) -> float:
        if other.shape != whole.shape:
            raise UserError(
                f"{name} returns {list(whole.shape)} for {len(images)} images, but {list(other.shape)} if they come "
                "one by one or with time folded into them; keep the first dimension of every value for the images"
            )
        gap = float((other - whole).abs().max())
        return gap if not gap <= tolerance else 0.0

    # A regression that ends with squeeze() returns a scalar for a single image.
    apart = torch.cat(
        [answer[None] if answer.ndim < whole.ndim else answer for answer in map(ask, torch.split(images, 1))]
    )
    if gap := differs(ask(images)):
        raise UserError(
            f"{name} answers the same images differently the second time (by {gap:.3g}): it draws random numbers or "
            "keeps state from one call to the next; make it deterministic in evaluation mode"
        )
    if gap := differs(apart):
        raise UserError(
            f"{name} answers an image differently beside other images (by {gap:.3g}): it mixes the images of a batch, "
            "into which time is folded; process each image alone"
        )
    for step in _with_time(net, images):
        if gap := differs(step if last is None else last(step)):
            raise UserError(
                f"{name} cannot be converted: the traced network answers calibration images differently "
                f"(by {gap:.3g} of {float(whole.abs().max()):.3g}); remove everything but layers, ReLU, pooling and "
                "additions from its forward"
            )


def _with_time(net: nn.Module, images: Tensor) -> Tensor:
    """Returns the answers of a network at each step, ``[T, B, ...]``, with time folded into its batch."""
    net, clock = copy.deepcopy(net).eval(), Clock(STEPS, len(images))
    replace(net, Activation, lambda _, activation: _Unfolded(activation, clock))
    repeat = mixes_constant_input(net, images.shape[1:])
    answers: Tensor = net(images.expand(STEPS, *images.shape).flatten(0, 1) if repeat else images.clone())
    return clock.unfold(answers)
