"""What a converted network lacks of its ANN, layer by layer, and why.

With ``a`` the activation of the ANN, ``theta`` the highest average that a neuron can have, ``q`` the quantised twin's
activation and ``r`` the mean output of the spiking neuron over T steps,

    a - r  =  [ a - min(a, theta) ]  +  [ min(a, theta) - q ]  +  [ q - r ]
                   clipping               quantisation          unevenness

(Bu et al., ICLR 2022, https://arxiv.org/abs/2303.04347, section 3). The sum is exact, element by element. It is taken
twice:

- ``end_to_end``: ANN, twin and SNN each see the image, so what a layer lacks includes what reached it. The accuracies
  of the three nets belong to these errors.
- ``same_input``: ANN activation and quantised activation of this layer are given the mean input current that the
  spiking layer really got, as the papers define the errors: what the layer itself adds.

A spike more or fewer than the quantised activation of that same input has is an offset spike (Hao et al., ICLR 2023,
https://arxiv.org/abs/2302.10685). The residual is what is left in the membrane after T steps. Of the neurons that could
have sent fewer (more) spikes, one that ends below 0 (at theta or more) has sent too many (too few) for the potential it
began with (Hao et al., AAAI 2023, https://arxiv.org/abs/2302.02091); but a silent neuron below 0, or one at theta or
more that fired at every step, is as it should be, and both are in these shares.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.calibration import Batch, watching
from bench.snn.neurons import SpikingNeuron
from bench.snn.simulate import SpikingNetwork

Kind = Literal["clipping", "quantisation", "unevenness", "total"]
View = Literal["end_to_end", "same_input"]
KINDS: tuple[Kind, ...] = get_args(Kind)
VIEWS: tuple[View, ...] = get_args(View)
# Borders of the residual potential's bins, in units of theta; the first and the last bin are open.
EDGES = tuple(round(-2 + 0.1 * i, 1) for i in range(51))
# Passes of one part of the images; each keeps one activation of every layer.
_PASSES = 4


class Error(TypedDict):
    """One error of a layer, in units of its activation."""

    mean: float
    mean_abs: float
    rms: float


class Residuals(TypedDict):
    """Histogram of the residual potentials: the borders of :data:`EDGES`, and counts, one more."""

    edges: list[float]
    counts: list[int]


class Summary(TypedDict):
    """A layer as JSON has it: means, shares of neurons times images, and histograms."""

    neurons: int
    activation_mean: float
    firing_rate: float
    end_to_end: dict[Kind, Error]
    same_input: dict[Kind, Error]
    offsets: dict[str, int]
    offset_share: float
    residuals: Residuals
    residual_below_zero: float
    residual_at_least_theta: float


class NamedSummary(Summary):
    """With the layer's name."""

    name: str


class Diagnosis(TypedDict):
    """What :func:`diagnose` returns."""

    T: int
    warmup: int
    images: int
    top1: dict[str, float]
    layers: list[NamedSummary]


def decompose(a: Tensor, q: Tensor, r: Tensor, ceiling: Tensor) -> dict[Kind, Tensor]:
    """Splits ``a - r`` into its three errors.

    Args:
        a: activation of the ANN, ``[B, ...]``.
        q: quantised activation.
        r: mean output of the spiking neurons.
        ceiling: highest value of ``r``, broadcastable to it.

    Returns:
        ``clipping``, ``quantisation``, ``unevenness`` and ``total``, in double precision.
    """
    a, q, r = a.double(), q.double(), r.double()
    clipped = torch.minimum(a, ceiling.double())
    return {"clipping": a - clipped, "quantisation": clipped - q, "unevenness": q - r, "total": a - r}


@dataclass
class Layer:
    """Sums over the images of one layer.

    Attributes:
        elements: neurons times images.
        errors: for each view and kind, the sums of error, of its magnitude and of its square.
        activation: sum of the ANN's activations.
        spikes: in the counted steps.
        offsets: how often each difference of spike counts was found.
        residuals: counts of the potentials after the last counted step, by the bins of :data:`EDGES`.
    """

    neurons: int = 0
    elements: int = 0
    activation: float = 0.0
    spikes: int = 0
    errors: dict[View, dict[Kind, list[float]]] = field(
        default_factory=lambda: {view: {kind: [0.0] * 3 for kind in KINDS} for view in VIEWS}
    )
    offsets: Counter[int] = field(default_factory=Counter)
    residuals: Tensor = field(default_factory=lambda: torch.zeros(len(EDGES) + 1, dtype=torch.int64))

    def add(self, view: View, errors: dict[Kind, Tensor]) -> None:
        """Adds the errors of one part of the images."""
        for kind, error in errors.items():
            sums = (error.sum(), error.abs().sum(), error.square().sum())
            self.errors[view][kind] = [old + float(new) for old, new in zip(self.errors[view][kind], sums, strict=True)]

    def summary(self, T: int) -> Summary:
        """Means, shares and histograms, as JSON has them; errors are in units of the activation."""

        def means(view: View) -> dict[Kind, Error]:
            found: dict[Kind, Error] = {}
            for kind, sums in self.errors[view].items():
                mean, magnitude, square = (value / self.elements for value in sums)
                found[kind] = {"mean": mean, "mean_abs": magnitude, "rms": square**0.5}
            return found

        zero, one = EDGES.index(0.0), EDGES.index(1.0)
        return {
            "neurons": self.neurons,
            "activation_mean": self.activation / self.elements,
            "firing_rate": self.spikes / (self.elements * T),
            "end_to_end": means("end_to_end"),
            "same_input": means("same_input"),
            "offsets": {str(offset): self.offsets[offset] for offset in sorted(self.offsets)},
            "offset_share": 1 - self.offsets[0] / self.elements,
            "residuals": {"edges": list(EDGES), "counts": self.residuals.tolist()},
            "residual_below_zero": int(self.residuals[: zero + 1].sum()) / self.elements,
            "residual_at_least_theta": int(self.residuals[one + 1 :].sum()) / self.elements,
        }


@torch.no_grad()
def diagnose(ann: nn.Module, snn: SpikingNetwork, batches: Sequence[Batch], T: int) -> Diagnosis:
    """Compares a network with its conversion.

    Args:
        ann: network whose nonlinearities are :class:`bench.snn.activations.Activation`.
        snn: its conversion, whose neurons have the names of the activations.
        batches: images ``[B, C, H, W]`` and labels.
        T: counted steps.

    Returns:
        ``T``, ``warmup``, ``images``, ``top1`` of ``ann``, ``quantised`` and ``snn`` (fractions of the images), and
        ``layers`` in the order of the network: name, neurons, mean activation, firing rate, for each view and error its
        mean, mean magnitude and root mean square, offset spikes and residual potentials.

    Raises:
        UserError: the two networks do not belong together, or there are no images.
    """
    activations = {name for name, module in ann.named_modules() if isinstance(module, Activation)}
    if activations != set(snn.neurons):
        raise UserError("diagnosis: the spiking network's layers are not those of the ANN")
    layers = {name: Layer() for name in snn.neurons}
    right = {"ann": 0, "quantised": 0, "snn": 0}
    twin, steps, images = snn.twin(T), snn.steps_for(T), 0
    for batch, batch_labels in batches:
        part = max(1, _PASSES * snn.image_steps(batch) // steps)
        for x, labels in zip(torch.split(batch, part), torch.split(batch_labels, part), strict=True):
            scores = _part(ann, twin, snn, x, T, layers)
            for name, score in scores.items():
                right[name] += int((score.argmax(1) == labels).sum())
            images += len(x)
    if not images:
        raise UserError("diagnosis needs images and got none")
    return {
        "T": T,
        "warmup": snn.warmup,
        "images": images,
        "top1": {name: count / images for name, count in right.items()},
        "layers": [{"name": name, **layer.summary(T)} for name, layer in layers.items()],
    }


def _part(
    ann: nn.Module, twin: nn.Module, snn: SpikingNetwork, x: Tensor, T: int, layers: dict[str, Layer]
) -> dict[str, Tensor]:
    """Adds a few images to the sums; gives the scores ``[B, classes]`` of the three nets."""
    seen: list[dict[str, Tensor]] = [{}, {}]
    with watching(ann, lambda name, _, output: seen[0].update({name: output})):
        scores = {"ann": ann(x)}
    with watching(twin, lambda name, _, output: seen[1].update({name: output})):
        scores["quantised"] = twin(x)

    def measure(name: str, current: Tensor, output: Tensor) -> None:
        a, q = (activations[name] for activations in seen)
        _measure(layers[name], snn, name, ann.get_submodule(name), current, output, T, a, q)

    snn.reset()
    with watching(snn.net, measure, SpikingNeuron):
        scores["snn"] = snn.score(snn(x, snn.steps_for(T))[snn.counted(T)], T)
    snn.reset()
    return scores


def _measure(
    layer: Layer, snn: SpikingNetwork, name: str, activation: nn.Module, current: Tensor, output: Tensor, T: int,
    a: Tensor, q: Tensor,
) -> None:  # fmt: skip
    neuron = snn.neurons[name]
    current_TBX, out_TBX = snn.clock.unfold(current), snn.clock.unfold(output)
    counted = snn.counted(T)
    after = slice(counted.stop, None)
    mean, r = current_TBX[counted].mean(0), out_TBX[counted].mean(0)
    amplitude = torch.ones_like(neuron.threshold) if neuron.unit_spikes else neuron.threshold
    ceiling = amplitude * (math.inf if neuron.unbounded else neuron.levels_per_step)
    own = neuron.twin(T).to(mean)(mean)
    layer.add("end_to_end", decompose(a, q, r, ceiling))
    layer.add("same_input", decompose(activation(mean), own, r, ceiling))
    layer.neurons = r[0].numel()
    layer.elements += r.numel()
    layer.activation += float(a.double().sum())
    layer.spikes += int(neuron.spike_counts[counted].sum())
    # Each by itself: where a neuron never fires, its threshold may be so small that T / theta is infinite.
    offsets = (torch.round(r / amplitude * T) - torch.round(own / amplitude * T)).long().flatten()
    values, numbers = torch.unique(offsets, return_counts=True)
    layer.offsets.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    assert neuron.v is not None
    # Steps that had to be run beyond the counted ones are taken back.
    sent = out_TBX[after].sum(0) * (neuron.threshold / amplitude)
    residual = (neuron.v - current_TBX[after].sum(0) + sent) / neuron.threshold
    bins = torch.bucketize(residual.float().flatten(), torch.tensor(EDGES, device=residual.device), right=True)
    layer.residuals += torch.bincount(bins, minlength=len(EDGES) + 1).cpu()
