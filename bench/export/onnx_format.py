"""ONNX of a spiking network unrolled over T steps."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import UserError
from bench.snn.simulate import SpikingNetwork

INPUT, SCORES, LOGITS = "images", "scores", "logits"


class Unrolled(nn.Module):
    """A spiking network as a function of the image alone.

    Args:
        snn: the network.
        T: counted steps.
    """

    def __init__(self, snn: SpikingNetwork, T: int) -> None:
        super().__init__()
        self.snn, self.T = snn, T

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, C, H, W]`` to the summed logits ``[B, classes]`` and those of each counted step ``[T, B, classes]``."""
        snn = self.snn
        snn.reset()
        logits_TBK = snn(x, snn.steps_for(self.T))[snn.counted(self.T)]
        snn.reset()
        return logits_TBK.sum(0), logits_TBK


def to_onnx(snn: SpikingNetwork, image: Tensor, T: int) -> bytes:
    """Unrolls a spiking network over T steps; warm-up steps are unrolled with it.

    Args:
        snn: the network, on the CPU, in single precision.
        image: one, ``[1, C, H, W]``; the number of images stays free in the file.
        T: counted steps.

    Returns:
        The file: input ``images``, outputs ``scores`` (logits summed over the counted steps) and ``logits`` (of each).

    Raises:
        UserError: torch cannot express the network in ONNX.
    """
    # A copy, because the exporter modifies the modules that it runs.
    own = SpikingNetwork(copy.deepcopy(snn.net), snn.warmup, snn.uncounted, snn.only_T, image=image.shape[1:])
    for neuron in own.neurons.values():
        # Spike counts are not outputs, and tracing the attribute would raise an error.
        neuron.counting = False
    unrolled = Unrolled(own, T).eval()
    batch = torch.export.Dim("batch", min=1)
    try:
        with _silent():
            program = torch.onnx.export(
                unrolled,
                (image.expand(2, *image.shape[1:]).contiguous(),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[SCORES, LOGITS],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"export: torch cannot express this network in ONNX ({reason[:200]})") from error
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def predict(model: bytes, batches: list[Tensor]) -> Tensor:
    """Runs the model in onnxruntime and returns scores ``[N, classes]``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    scores = [session.run([SCORES], {INPUT: images.numpy()})[0] for images in batches]
    return torch.from_numpy(np.concatenate(scores))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hides the exporter's progress lines and torch's deprecation warnings. A user cannot act on either."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
