"""``python -m bench export``: writes a checkpoint's net in another format, and reads it back to compare answers."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.errors import UserError
from bench.files import require_absent, require_writable, write_atomically
from bench.records.record import Options, Record, read_record
from bench.run.build import Trained, load
from bench.run.callbacks import calibration_batches
from bench.run.trainer import quiet
from bench.snn.precision import full_precision
from bench.snn.simulate import SpikingNetwork, simulate

NEEDS = {
    "safetensors": ("huggingface_hub",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "nir": ("nir",),
}
# If a potential equals theta up to rounding, a different summation order can move a spike by one step. In rare cases
# this changes the predicted class of a near tie.
TOLERATED = 1 / 500
# Largest root mean square error of the scores, relative to the root mean square difference between classes.
TOLERATED_SCORES = 0.05
# Files by name, and the network read back from them as a function from images to scores.
Exported = tuple[dict[str, str | bytes], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    Attributes:
        ckpt: ``last.ckpt`` or ``model.safetensors`` of a run.
        format: a key of :data:`NEEDS`.
        out: folder.
        T: steps that are unrolled (ONNX), converted for, and compared.
        images: evaluation images on which the answers are compared.
        record: of the run, for the card; ``None`` for ``record.json`` beside the checkpoint.
        push: repository on the Hugging Face Hub.
        overwrite: replace files in ``out``.
        data_options: data arguments that do not change results.
    """

    ckpt: Path
    format: str
    out: Path
    T: int
    images: int
    record: Path | None
    push: str | None
    overwrite: bool
    data_options: Options


@quiet()
def run(wanted: Wanted) -> int:
    """Exports.

    Returns:
        0.

    Raises:
        UserError: a package is missing, the input is bad, the format cannot express the network, or the network read
            back differs from the original by more than the tolerance. Nothing is written in these cases.
    """
    for package in NEEDS[wanted.format]:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"export --format {wanted.format} needs {package}, which is missing: pip install -e '.[export]'"
            )
    _check(wanted)
    record = _record(wanted) if wanted.format == "safetensors" else None
    trained = load(wanted.ckpt, wanted.data_options)
    require_writable(wanted.out)
    with full_precision(), torch.no_grad():
        trained.model.float().eval()
        snn = _convert(trained, wanted.T)
        batches = [images for images, _ in trained.datamodule.first_evaluated(wanted.images)]
        if record is not None:
            files, answer = _safetensors(trained, record, wanted)
        else:
            files, answer = _graph(trained, snn, batches[0][:1], wanted)
        same = _compare(snn, answer, batches, wanted.T)
    for name, content in files.items():
        write_atomically(wanted.out / name, content)
    print(f"{same}; written: {', '.join(str(wanted.out / name) for name in files)}")
    if wanted.push is not None:
        from bench.export.card import push

        print(f"pushed: {push(wanted.out, wanted.push)}")
    return 0


def names(wanted: Wanted) -> tuple[str, ...]:
    """Files that the export writes."""
    from bench.export.card import CARD, RECORD, WEIGHTS

    return {"safetensors": (WEIGHTS, CARD, RECORD), "onnx": (f"snn-T{wanted.T}.onnx",), "nir": ("snn.nir",)}[
        wanted.format
    ]


def _check(wanted: Wanted) -> None:
    if wanted.format != "safetensors" and (wanted.push is not None or wanted.record is not None):
        option = "--push" if wanted.push is not None else "--record"
        raise UserError(f"{option}: goes with --format safetensors, which has a model card")
    if not wanted.overwrite:
        require_absent(*(wanted.out / name for name in names(wanted)))
    if wanted.format == "safetensors" and wanted.out.resolve() == wanted.ckpt.parent.resolve():
        raise UserError(f"--out {wanted.out}: this is the run's own folder; give another")


def _record(wanted: Wanted) -> Record:
    path = wanted.record or wanted.ckpt.parent / "record.json"
    if not path.is_file():
        raise UserError(f"{path}: record not found, and the model card needs it; give --record FILE")
    return read_record(path)


def _convert(trained: Trained, T: int) -> SpikingNetwork:
    data = trained.datamodule
    snn: SpikingNetwork = trained.model.convert(T, calibration_batches(trained.model, data), data.input_shape)
    return snn


def _safetensors(trained: Trained, record: Record, wanted: Wanted) -> Exported:
    from bench.export.card import CARD, RECORD, WEIGHTS, model_card

    weights = trained.weights
    if record.checkpoint.sha256 != weights.sha256():
        raise UserError("the record belongs to other weights (its checkpoint.sha256 differs); give --record FILE")
    content = weights.to_safetensors()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        path.write_bytes(content)
        again = load(path, wanted.data_options)
    again.model.float().eval()
    snn = _convert(again, wanted.T)
    return {WEIGHTS: content, CARD: model_card(record), RECORD: record.dumps()}, lambda x: _answers(snn, x, wanted.T)


def _graph(trained: Trained, snn: SpikingNetwork, image: Tensor, wanted: Wanted) -> Exported:
    [name] = names(wanted)
    if trained.model.random or trained.model.readout.changes:
        raise UserError("export: a graph cannot hold random numbers or a delayed read-out; export the plain conversion")
    if wanted.format == "onnx":
        from bench.export.onnx_format import predict, to_onnx

        content = to_onnx(snn, image, wanted.T)
        return {name: content}, lambda x: predict(content, [x])
    from bench.export.nir_format import to_nir
    from bench.export.nir_reader import from_nir

    header = trained.header
    metadata = {key: str(getattr(header, key)) for key in ("method", "arch", "data", "seed")}
    content = to_nir(snn, image, {**metadata, "checkpoint_sha256": trained.weights.sha256(), "T": str(wanted.T)})
    again = from_nir(content)
    return {name: content}, lambda x: _answers(again, x, wanted.T)


def _answers(snn: SpikingNetwork, images: Tensor, T: int) -> Tensor:
    return torch.cat([part.logits.sum(0) for part in simulate(snn, images, T)])


def _compare(snn: SpikingNetwork, answer: Callable[[Tensor], Tensor], batches: list[Tensor], T: int) -> str:
    """Compares classes and scores. At a low T all images may get the same class, also from a broken copy."""
    ours = torch.cat([_answers(snn, images, T) for images in batches]).double()
    theirs = torch.cat([answer(images) for images in batches]).double()
    if not bool(torch.isfinite(ours).all()):
        raise UserError("export: the network's logits are not all finite numbers: its weights are broken")
    same = int((ours.argmax(1) == theirs.argmax(1)).sum())
    apart = float((ours - theirs).square().mean().sqrt() / (ours - ours.mean(1, keepdim=True)).square().mean().sqrt())
    if len(ours) - same > TOLERATED * len(ours) or not apart <= TOLERATED_SCORES:
        raise UserError(
            f"export: read back, the network answers {len(ours) - same} of {len(ours)} images differently, and its "
            f"scores are {apart:.2%} apart"
        )
    one = " (always the same class)" if len(ours) > 1 and bool((ours.argmax(1) == ours.argmax(1)[0]).all()) else ""
    return f"read back, it answers {same} of {len(ours)} images the same at T = {T}{one}, scores {apart:.3%} apart"
