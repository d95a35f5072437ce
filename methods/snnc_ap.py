"""SNNC, advanced pipeline: calibrates weights and initial potentials as well.

Li, Deng, Dong, Gong, Gu: A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration, ICML
2021, https://arxiv.org/abs/2106.06984

Adds two steps to the light pipeline (``methods/snnc_lp.py``), for each layer from first to last:

1. before its neuron is inserted, a refit of the weights and biases that feed it to the activations of the ANN,

    min over W and b of  || clip-floor( W xbar + b + theta / (2T) ; T, theta ) - a ||^2,

   where xbar is the mean over T steps of the spike input that arrives, with a straight-through gradient;
2. after the bias correction, for each neuron, an initial potential that corrects the remaining error,

    v_0 = T ( mean of the ANN's output  -  mean of the SNN's ),

   in addition to ``v_init``, which is 0 in the paper.

From the paper or its authors' code (https://github.com/yhhhli/SNN_Calibration): Adam with a cosine, learning rate 1e-5
to 4e-5, about 5,000 iterations, batches of 32 of 1,024 images.
Chosen here, different from that code:

- The floor of the refit has the shift theta / (2T), like the neuron, and so rounds to nearest. Theirs is a plain
  clip-floor, half a step lower.
- Biases are fitted as well, and all layers that feed a neuron are fitted jointly (the convolution of a shortcut and the
  last one of its block). Theirs fits weights only, one layer at a time, with the shortcut's contribution fixed.
- The bias correction of the light pipeline follows. Their advanced pipeline has none.
- Each layer gets all its corrections before the next layer. Theirs refits all weights first, then sets all potentials,
  on augmented images.
- Weights are also refitted on CIFAR. Their CIFAR script calibrates potentials only (``iterations`` 0 comes nearest).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ranges import require_within
from bench.snn.activations import clip_floor_shift
from bench.snn.calibration import observe
from bench.snn.neurons import IFNode
from methods.base import refuse_without_effect
from methods.snnc_lp import SNNCLight, Work


class SNNCAdvanced(SNNCLight):
    """Calibration of weights, biases and potentials (https://arxiv.org/abs/2106.06984).

    Args:
        net: trained network with ReLU activations.
        iterations: steps of Adam for each layer; 0 keeps the weights.
        calibration_lr: learning rate of Adam, decayed to 0 by a cosine.
        calibration_batch: images in one step.
        **kwargs: options of :class:`methods.snnc_lp.SNNCLight`; the potential found is added to ``v_init``.
    """

    def __init__(
        self,
        net: nn.Module,
        iterations: int = 5000,
        calibration_lr: float = 1e-5,
        calibration_batch: int = 32,
        **kwargs: Any,
    ) -> None:
        require_within("[0, inf)", iterations=iterations)
        require_within("[1, inf)", calibration_batch=calibration_batch)
        require_within("(0, inf)", calibration_lr=calibration_lr)
        if not iterations:
            options = {"calibration_lr": calibration_lr, "calibration_batch": calibration_batch}
            refuse_without_effect(SNNCAdvanced, "--model.iterations 0", **options)
        super().__init__(net, **kwargs)
        self.iterations, self.calibration_lr, self.calibration_batch = iterations, calibration_lr, calibration_batch

    def before(self, work: Work, name: str, threshold: Tensor) -> None:
        """Refits the weights between the previous neurons and this layer."""
        part, sources = work.trains.segments[name]
        # Weights that feed several neurons (the stem of a pre-activation net) are refitted for the first one only: a
        # later refit would undo corrections already made.
        weights = [parameter for parameter in part.parameters() if parameter not in work.refitted]
        work.refitted |= set(weights)
        if not self.iterations or not weights:
            return
        inputs = [work.trains.rates(source) for source in sources]
        found: list[Tensor] = []
        observe(work.ann, work.batches, lambda layer, _, output: found.append(output) if layer == name else None)
        target = torch.cat(found)
        optimizer = torch.optim.Adam(weights, self.calibration_lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
        # Own generator: a conversion must not depend on what ran before it.
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            for parameter in weights:
                parameter.requires_grad_(True)
            for _ in range(self.iterations):
                rows = torch.randint(len(target), (self.calibration_batch,), generator=generator).to(target.device)
                z = part(*(x[rows] for x in inputs))
                loss = F.mse_loss(clip_floor_shift(z, threshold, work.T, "floor_first"), target[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
        part.requires_grad_(False)

    def correct(self, work: Work, name: str, node: IFNode) -> None:
        """Corrects the bias, then sets the initial potential from the remaining error."""
        super().correct(work, name, node)
        missing = work.means[name] - work.mean_rate(name)
        start = self.v_init + work.T * missing / node.threshold
        work.net.set_submodule(name, IFNode(node.threshold, start, node.bias).eval())
