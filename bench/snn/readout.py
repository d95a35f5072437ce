"""Options of a converted network that do not depend on its method: delayed read-out and permuted spikes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.errors import UserError
from bench.ranges import require_within
from bench.snn.neurons import Draws, IFNode, Shuffle
from bench.snn.simulate import SpikingNetwork

# Training images from which a delay is estimated if the method needs no calibration images.
DELAY_IMAGES = 1000


@dataclass(frozen=True)
class Readout:
    """Options of the converted network. Methods whose layers wait for their whole input have neither of the two.

    Args:
        delay: number of first steps that the answer leaves out (Bu et al., CVPR 2025). ``auto`` estimates, from
            training images without augmentation, how long the most strongly driven neurons of all layers take to fire.
            If fewer than four steps would be left, the last four are read.
        permute: send each neuron's spikes in a random order in time (Bojkovic et al., ICML 2025). A layer must wait
            for all of them.
        draw_seed: seed of these orders.
        draws: runs of each image in a network that draws random numbers. Accuracy and costs are means over them.
    """

    delay: int | Literal["auto"] = 0
    permute: bool = False
    draw_seed: int = 0
    draws: int = 5

    def __post_init__(self) -> None:
        if self.delay != "auto" and self.delay < 0:
            raise UserError(f"--snn.delay {self.delay}: must be at least 0 steps, or auto")
        require_within("[0, inf)", "--snn.", draw_seed=self.draw_seed)
        if self.draw_seed and not self.permute:
            raise UserError(
                f"--snn.draw_seed {self.draw_seed}: is the seed of --snn.permute true, which is not given; a method "
                "that draws numbers itself has --model.draw_seed"
            )
        require_within("[1, inf)", "--snn.", draws=self.draws)

    @classmethod
    def of(cls, options: Mapping[str, object]) -> Readout:
        """The options of a file or a caller, by name.

        Raises:
            TypeError: an option is unknown.
            UserError: an option is out of range.
        """
        make: Callable[..., Readout] = cls
        return make(**options)

    @property
    def changes(self) -> dict[str, int | str | bool]:
        """The options that differ from their defaults."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Readout, name)}

    def apply(self, snn: SpikingNetwork, T: int, means: Mapping[str, Tensor]) -> None:
        """Sets up a converted network.

        Args:
            snn: changed in place.
            T: number of steps that it was converted for.
            means: mean activation of each neuron in the ANN, needed to estimate the delay.

        Raises:
            UserError: spikes are permuted, and ``T`` is not known.
        """
        snn.delay = delay_of(snn, means) if self.delay == "auto" else self.delay
        if not self.permute:
            return
        if sys.maxsize == T:
            raise UserError("permuted spikes hold for one T; give convert(..., T=...)")
        for name, neuron in snn.neurons.items():
            neuron.shuffle, neuron.lookahead = Shuffle(Draws(self.draw_seed, name)), T


def delay_of(snn: SpikingNetwork, means: Mapping[str, Tensor]) -> int:
    """Estimates the steps until the most strongly driven neuron of every layer has fired, one layer after the other.

    A neuron that starts at ``v_0`` and gets its mean activation at every step needs ``(theta - v_0) / mean`` steps, or
    fewer if it adds a constant current itself. A neuron with several levels fires at its lowest one,
    ``neuron.fires_at`` of theta.

    Args:
        snn: the converted network.
        means: mean activation of each neuron in the ANN, in the shape of one image's activation.

    Returns:
        The sum over all layers, rounded down.
    """
    total = 0.0
    for name, neuron in snn.neurons.items():
        start = torch.as_tensor(neuron.v_init).to(neuron.threshold)
        mean = means[name].to(neuron.threshold)
        # If spikes weigh 1, the mean is a rate: the current is theta times as large.
        missing = (neuron.fires_at - start).clamp_min(0) * neuron.amplitude
        drive = mean
        if isinstance(neuron, IFNode) and neuron.bias is not None:
            drive = mean + neuron.bias * (neuron.amplitude / neuron.threshold)
        fastest = float((missing / drive).where((mean > 0) & (drive > 0), math.inf).min())
        total += fastest if math.isfinite(fastest) else 0.0
    return math.floor(total)
