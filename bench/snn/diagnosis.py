"""How far a converted network is from its ANN, layer by layer, and why.

Let ``a`` be the activation of the ANN, ``theta`` the highest mean output that a neuron can have, ``q`` the activation
of the quantised twin, and ``r`` the mean output of the spiking neuron over T steps. Then

    a - r  =  [ a - min(a, theta) ]  +  [ min(a, theta) - q ]  +  [ q - r ]
                   clipping               quantisation          unevenness

(Bu et al., ICLR 2022, https://arxiv.org/abs/2303.04347, section 3). The sum is exact, element by element. It is
computed twice:

- ``end_to_end``: the ANN, the twin and the SNN each see the image, so the error of a layer includes the errors of the
  layers before it. The accuracies of the three nets belong to these errors.
- ``same_input``: the layer's ANN activation and quantised activation get the mean input current that the spiking layer
  received. This is how the papers define the errors: what the layer itself adds.

An offset spike is one spike more or fewer than the quantised activation of the same input has (Hao et al., ICLR 2023,
https://arxiv.org/abs/2302.10685). The residual is the potential left in the membrane after T steps. A neuron that ends
below 0 has sent too many spikes for its initial potential, unless it sent none; one that ends at theta or more has sent
too few, unless it fired at every step (Hao et al., AAAI 2023, https://arxiv.org/abs/2302.02091). The recorded shares
include both exceptions, although these neurons are correct.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.activations import Activation
from bench.snn.calibration import Batch, watching
from bench.snn.neurons import SpikingNeuron
from bench.snn.simulate import SpikingNetwork

View = Literal["end_to_end", "same_input"]
KINDS = ("clipping", "quantisation", "unevenness", "total")
VIEWS: tuple[View, ...] = ("end_to_end", "same_input")
# Borders of the bins of residual potentials, in units of theta; the first and the last bin are open.
EDGES = tuple(round(-2 + 0.1 * i, 1) for i in range(51))
# Images are compared in parts of this many passes; one activation of every layer is kept for a part.
_PASSES = 4


def decompose(a: Tensor, q: Tensor, r: Tensor, ceiling: Tensor) -> dict[str, Tensor]:
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


class ErrorMeans(TypedDict):
    """One error of a layer, in units of the activation: mean, mean magnitude and root mean square."""

    mean: float
    mean_abs: float
    rms: float


class Residuals(TypedDict):
    """Histogram of the potentials after the last step, in units of theta; the first and the last bin are open."""

    edges: list[float]
    counts: list[int]


class LayerDiagnosis(TypedDict):
    """One layer, as JSON has it: means, shares of the neurons, and histograms."""

    name: str
    neurons: int
    activation_mean: float
    firing_rate: float
    end_to_end: dict[str, ErrorMeans]
    same_input: dict[str, ErrorMeans]
    offsets: dict[str, int]
    offset_share: float | None
    residuals: Residuals
    residual_below_zero: float
    residual_at_least_theta: float


class Diagnosis(TypedDict):
    """A network at one T, as JSON has it; ``top1`` are fractions of the images for ann, quantised and snn."""

    T: int
    warmup: int
    images: int
    top1: dict[str, float]
    layers: list[LayerDiagnosis]


@dataclass
class Layer:
    """Sums of one layer over the images.

    Attributes:
        neurons: of the layer.
        elements: neurons times images.
        errors: for each view and kind, the sums of error, of its magnitude and of its square.
        activation: sum of the ANN's activations.
        spikes: in the counted steps.
        offsets: how often each difference in spike counts occurred; empty if spikes have several sizes and no ceiling.
        residuals: counts of the potentials after the last counted step, by the bins of :data:`EDGES`.
    """

    neurons: int = 0
    elements: int = 0
    activation: float = 0.0
    spikes: int = 0
    errors: dict[View, dict[str, list[float]]] = field(
        default_factory=lambda: {view: {kind: [0.0] * 3 for kind in KINDS} for view in VIEWS}
    )
    offsets: Counter[int] = field(default_factory=Counter)
    residuals: Tensor = field(default_factory=lambda: torch.zeros(len(EDGES) + 1, dtype=torch.int64))

    def add(self, view: View, errors: dict[str, Tensor]) -> None:
        """Adds the errors of one part of the images."""
        for kind, error in errors.items():
            sums = (error.sum(), error.abs().sum(), error.square().sum())
            self.errors[view][kind] = [old + float(new) for old, new in zip(self.errors[view][kind], sums, strict=True)]

    def summary(self, name: str, T: int) -> LayerDiagnosis:
        """Returns means, shares and histograms of the layer called ``name``."""

        def means(view: View) -> dict[str, ErrorMeans]:
            found: dict[str, ErrorMeans] = {}
            for kind, sums in self.errors[view].items():
                mean, magnitude, square = (value / self.elements for value in sums)
                found[kind] = {"mean": mean, "mean_abs": magnitude, "rms": square**0.5}
            return found

        zero, one = EDGES.index(0.0), EDGES.index(1.0)
        return {
            "name": name,
            "neurons": self.neurons,
            "activation_mean": self.activation / self.elements,
            "firing_rate": self.spikes / (self.elements * T),
            "end_to_end": means("end_to_end"),
            "same_input": means("same_input"),
            "offsets": {str(offset): self.offsets[offset] for offset in sorted(self.offsets)},
            "offset_share": 1 - self.offsets[0] / self.elements if self.offsets else None,
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
        The accuracies of the ANN, its quantised twin and the SNN, and the layers in the order of the network.

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
        "layers": [layer.summary(name, T) for name, layer in layers.items()],
    }


def _part(
    ann: nn.Module, twin: nn.Module, snn: SpikingNetwork, x: Tensor, T: int, layers: dict[str, Layer]
) -> dict[str, Tensor]:
    """Adds a few images to the sums; returns the scores ``[B, classes]`` of the three nets."""
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
    amplitude = neuron.amplitude
    ceiling = amplitude * (math.inf if neuron.unbounded else neuron.levels_per_step)
    own = neuron.twin(T).to(mean)(mean)
    layer.add("end_to_end", decompose(a, q, r, ceiling))
    layer.add("same_input", decompose(activation(mean), own, r, ceiling))
    layer.neurons = r[0].numel()
    layer.elements += r.numel()
    layer.activation += float(a.double().sum())
    layer.spikes += int(neuron.spike_counts[counted].sum())
    if not neuron.unbounded:  # else the outputs are no whole numbers of spikes
        # Rounded separately: the threshold of a neuron that never fires may be so small that T / theta is infinite.
        offsets = (torch.round(r / amplitude * T) - torch.round(own / amplitude * T)).long().flatten()
        values, numbers = torch.unique(offsets, return_counts=True)
        layer.offsets.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    assert neuron.v is not None
    # Undo the steps that had to be run beyond the counted ones.
    sent = out_TBX[after].sum(0) * (neuron.threshold / amplitude)
    residual = (neuron.v - current_TBX[after].sum(0) + sent) / neuron.threshold
    bins = torch.bucketize(residual.float().flatten(), torch.tensor(EDGES, device=residual.device), right=True)
    layer.residuals += torch.bincount(bins, minlength=len(EDGES) + 1).cpu()
