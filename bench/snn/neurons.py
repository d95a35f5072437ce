"""Spiking neurons that unroll time inside the batch.

A neuron sees the whole batch of a pass: ``[B, ...]`` while the input is still constant in time (before the first
neuron), and ``[T*B, ...]``, time-major, after that. It returns ``[T*B, ...]``. Convolutions, BN, pooling and linear
layers know nothing of time.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import QuantisedReLU

# What is sent of a value: ``rate``: the value itself, at every step; ``word``: a value that is constant in time, once;
# ``differential``: its difference from the mean of all steps before; ``time``: once, the sooner the larger it is.
Coding = Literal["rate", "word", "differential", "time"]


@dataclass
class Clock:
    """The make-up of the current pass's batch; all neurons of a network share one object.

    Attributes:
        T: steps in this pass.
        batch: images in this pass.
        coding: what a step's input stands for, which decides what it costs (:class:`bench.snn.cost.AnalogueCounter`).
    """

    T: int = 1
    batch: int = 1
    coding: Coding = "rate"

    def unfold(self, x: Tensor) -> Tensor:
        """Views ``[T*B, ...]`` as ``[T, B, ...]``, and a constant ``[B, ...]`` as ``[T, B, ...]`` without a copy."""
        if x.shape[0] == self.T * self.batch:
            return x.view(self.T, self.batch, *x.shape[1:])
        if x.shape[0] == self.batch:
            return x.expand(self.T, *x.shape)
        raise UserError(
            f"a neuron got a batch of {x.shape[0]} in a pass of {self.T} steps and {self.batch} images; "
            "run converted nets through bench.snn.simulate"
        )


def stack_steps(steps: list[Tensor], like_TBX: Tensor) -> Tensor:
    """Stacks T tensors ``[B, ...]`` to ``[T, B, ...]``, in the memory format of the input."""
    if torch.compiler.is_compiling():
        return torch.stack(steps)
    return torch.stack(steps, out=torch.empty_like(like_TBX))


def channel_sums(x_TBX: Tensor) -> Tensor:
    """Sums over images and channels: ``[T, H, W]`` of ``[T, B, C, H, W]``, ``[T]`` of ``[T, B, C]``."""
    return x_TBX.sum((1, 2))


def connected(x_TBX: Tensor, fan_out: Tensor) -> Tensor:
    """Sums events times the weights that each meets, over images: ``[T, ...]`` in double precision.

    Args:
        x_TBX: numbers of events.
        fan_out: of each neuron, or of the neurons of one channel if all channels have the same.
    """
    sums = x_TBX.sum(1) if fan_out.ndim == x_TBX.ndim - 2 else channel_sums(x_TBX)
    return sums.double() * fan_out


def step_totals(sums_TX: Tensor) -> Tensor:
    """Totals of each step, as integers ``[T]``."""
    return sums_TX.reshape(len(sums_TX), -1).sum(1).long()


class Timed(nn.Module):
    """Base of the modules that see time in a converted network: they unfold the steps and keep state.

    Attributes:
        lookahead: first steps of its input that it must see at once, before its first output; 0 if it is causal, so
            that step t of its output depends only on steps 1..t of its input. Later steps may come in any parts.
        probing: steps that update its potential before its first output, apart from those of its output.
        replays: the steps that it has looked at are sent to it a second time, and paid twice (COS). If false, it has
            added them up and does not need them again.
    """

    lookahead = 0
    probing = 0
    replays = False

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()

    @property
    def wait(self) -> int:
        """Steps between the first step of its input and the first step of its output."""
        return max(self.lookahead, self.probing)

    def reset(self) -> None:
        """Clears its state."""
        raise NotImplementedError


class Draws:
    """Uniform random numbers, reproducible by seed and name, and different at each call.

    Args:
        seed: the conversion's.
        name: the layer's, so that the sizes of other layers do not change its numbers.
    """

    def __init__(self, seed: int, name: str) -> None:
        self.stream, self.calls = f"{seed}/{name}", 0

    def __call__(self, like: Tensor) -> Tensor:
        """Draws from [0, 1), with the shape, type and device of a tensor."""
        # No generator is kept, because it could not be copied with its network.
        generator = torch.Generator(like.device).manual_seed(zlib.crc32(f"{self.stream}/{self.calls}".encode()))
        self.calls += 1
        return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


class Shuffle:
    """Permutes the spikes of each neuron in time, independently and at random.

    Args:
        draws: random numbers.
    """

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def __call__(self, out_TBX: Tensor) -> Tensor:
        """Reorders the values of each neuron, for each image."""
        return out_TBX.gather(0, self.draws(out_TBX).argsort(0))


class SpikingNeuron(Timed):
    """Base of all neurons: membrane state, spike counts, folding of time.

    Args:
        threshold: ``theta``, a positive scalar or broadcastable to one image's input (``[C, 1, 1]``, ``[C, H, W]``).
        v_init: initial membrane potential as a fraction of the threshold.

    Attributes:
        v: membrane potential ``[B, ...]`` carried from one pass to the next; ``None`` before the first.
        spike_counts: spikes at each step of the last pass, ``[T]``.
        synop_counts: weights that these spikes met, ``[T]``.
        fan_out: weights that one spike meets (:class:`bench.snn.graph.wiring.Wiring`); 0 before
            :meth:`SpikingNetwork.wire`.
        counting: whether spikes are counted; not in an exported network.
        coding: how its input and output are coded in time.
        most_T: the largest number of steps that it was made for; ``None`` for any.
        unbounded: its mean output may exceed ``levels_per_step`` times theta.
        fires_at: lowest potential at which it fires, as a fraction of theta.
        weighs_bits: a spike weighs twice as much as one at the next step, so that potentials are shifted.
        unit_spikes: send 1 instead of ``theta``, because the next weights already hold the threshold.
        shuffle: reorders the spikes of a pass; ``None`` keeps their order.
    """

    alphabet: Literal["binary", "ternary", "multi"] = "binary"
    levels_per_step = 1
    coding: Coding = "rate"
    unbounded = False
    most_T: int | None = None
    fires_at = 1.0
    weighs_bits = False
    reset_rule: Literal["soft", "hard"] = "soft"
    threshold: Tensor
    fan_out: Tensor
    v_init: float | Tensor

    def __init__(self, threshold: Tensor, v_init: float | Tensor = 0.5) -> None:
        super().__init__()
        threshold = threshold.detach().clone()
        fits = torch.isfinite(threshold) & (threshold > 0)
        if not bool(fits.all()):
            raise UserError(f"threshold {threshold[~fits][0].item():.4g}: must be positive and finite to convert")
        self.register_buffer("threshold", threshold)
        if isinstance(v_init, Tensor):
            self.register_buffer("v_init", v_init.detach().clone())
        else:
            self.v_init = v_init
        self.unit_spikes, self.counting = False, True
        self.shuffle: Shuffle | None = None
        self.v: Tensor | None = None
        self.spike_counts = self.synop_counts = torch.zeros(0)
        self.register_buffer("fan_out", torch.zeros((), dtype=torch.float64), persistent=False)
        self.size = 0

    @property
    def amplitude(self) -> Tensor:
        """What a spike weighs: theta, or 1 in a neuron of ``unit_spikes``."""
        return torch.ones_like(self.threshold) if self.unit_spikes else self.threshold

    def reset(self) -> None:
        """Forgets the membrane potential."""
        self.v = None

    def initial(self, like_BX: Tensor) -> Tensor:
        """Membrane potential before the first step, in the shape of one step's input."""
        return torch.zeros_like(like_BX) + self.v_init * self.threshold

    def require_shape(self, shape: torch.Size) -> None:
        """Refuses an input that its thresholds were not made for.

        Raises:
            ValueError: ``shape``, of one image's input, differs from that of its thresholds, one for each neuron.
        """
        for own in (self.threshold, self.v_init):
            if (
                isinstance(own, Tensor)
                and own.ndim == len(shape)
                and any(size not in (1, wanted) for size, wanted in zip(own.shape, shape, strict=True))
            ):
                raise ValueError(f"it has thresholds for {list(own.shape)} and not for {list(shape)} neurons")

    def forward(self, x: Tensor) -> Tensor:
        """Runs all steps of the pass; ``[B, ...]`` or ``[T*B, ...]`` in, ``[T*B, ...]`` out."""
        # Currents may be bfloat16; membranes never are.
        x_TBX = self.clock.unfold(x).to(torch.promote_types(x.dtype, self.threshold.dtype))
        out_TBX = self.run(x_TBX)
        if self.shuffle is not None:
            out_TBX = self.shuffle(out_TBX)
        if self.counting:
            self._count(out_TBX)
        return out_TBX.flatten(0, 1).div_(self.threshold) if self.unit_spikes else out_TBX.flatten(0, 1)

    def _count(self, out_TBX: Tensor) -> None:
        self.size = out_TBX[0, 0].numel()
        # Single precision is exact to 2^24, far more than the channels and images of one pass. Integers would need a
        # copy eight times as large as the spikes.
        events = self.events(out_TBX)
        sums, alike = channel_sums(events).double(), self.fan_out.ndim < events.ndim - 2
        self.spike_counts = step_totals(sums)
        self.synop_counts = step_totals(sums * self.fan_out if alike else connected(events, self.fan_out))

    def run(self, x_TBX: Tensor) -> Tensor:
        """Turns input currents ``[T, B, ...]`` into outputs of the same shape."""
        raise NotImplementedError

    def events(self, out_TBX: Tensor) -> Tensor:
        """Returns how many spikes each element of an output stands for, in single precision."""
        return (out_TBX != 0).to(torch.float32)

    def twin(self, T: int) -> nn.Module:
        """Returns the quantised activation that this neuron equals if spikes arrive evenly."""
        return QuantisedReLU(self.threshold, T, self.v_init, unit=self.unit_spikes)


class IFNode(SpikingNeuron):
    """Integrate-and-fire neuron with soft reset; it fires at equality and sends ``theta``.

    ``u_t = v_{t-1} + I_t + b;  s_t = [u_t >= theta];  v_t = u_t - theta s_t``; the output is ``theta s_t``.

    Args:
        threshold: ``theta``.
        v_init: initial membrane potential as a fraction of the threshold.
        bias: ``b``, a constant current at every step, broadcastable to one image's input; ``None`` for none.
    """

    bias: Tensor | None

    def __init__(self, threshold: Tensor, v_init: float | Tensor = 0.5, bias: Tensor | None = None) -> None:
        super().__init__(threshold, v_init)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def run(self, x_TBX: Tensor) -> Tensor:
        """See :class:`SpikingNeuron`."""
        v = self.initial(x_TBX[0]) if self.v is None else self.v
        sent = []
        for current in x_TBX:
            out, v = self.step(v, current)
            sent.append(out)
        self.v = v
        return stack_steps(sent, x_TBX)

    def step(self, v: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """Runs one step from potential ``v``; returns the output and the new potential, both ``[B, ...]``."""
        v = v + current
        if self.bias is not None:
            v = v + self.bias
        out = torch.where(v >= self.threshold, self.threshold, 0.0)
        return out, v - out

    def twin(self, T: int) -> nn.Module:
        """See :class:`SpikingNeuron`."""
        bias = 0.0 if self.bias is None else self.bias
        return QuantisedReLU(self.threshold, T, self.v_init, bias, unit=self.unit_spikes)
