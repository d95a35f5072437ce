"""``python -m bench diagnose``: explains the accuracy of a converted net at a given T."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal, get_args

import torch
from matplotlib.figure import Figure
from pytorch_lightning.loggers import WandbLogger

from bench.diagnose.pictures import draw, to_svg
from bench.files import require_writable, write_atomically
from bench.records.record import Options
from bench.run.build import Trained, load
from bench.run.callbacks import calibration_batches
from bench.run.loggers import finish, make_loggers, send_to_wandb
from bench.run.trainer import device_for, quiet
from bench.snn.diagnosis import KINDS, VIEWS, Diagnosis, LayerDiagnosis, View, diagnose
from bench.snn.precision import full_precision

FILE = "diagnosis.json"
# Heads of the table: of bench.snn.diagnosis's VIEWS and KINDS.
SHORT = {"end_to_end": "e2e", "same_input": "own"}
SHORT |= {"clipping": "clip", "quantisation": "quant", "unevenness": "uneven", "total": "total"}
# What W&B's table has of a layer.
Measure = Literal["activation_mean", "firing_rate", "offset_share", "residual_below_zero", "residual_at_least_theta"]


@quiet()
def run(
    ckpt: Path,
    steps: tuple[int, ...],
    images: int,
    out: Path,
    as_json: bool,
    wandb: bool,
    device: str,
    data_options: Options,
) -> int:
    """Converts the net of a checkpoint, compares it with its ANN layer by layer, and writes and prints the result.

    Args:
        ckpt: ``last.ckpt`` or ``model.safetensors`` of a run.
        steps: values of T.
        images: number of evaluation images; the first ones are used.
        out: folder for ``diagnosis.json`` and the pictures.
        as_json: print the JSON instead of tables.
        wandb: log tables and pictures to W&B as well.
        device: ``cpu`` or ``cuda``.
        data_options: data arguments that do not affect results.

    Returns:
        The exit status, 0.

    Raises:
        UserError: an argument is invalid, or the checkpoint cannot be read.
    """
    device_for({"accelerator": device}, "--device")
    trained = load(ckpt, data_options)
    require_writable(out)
    with full_precision():
        found = diagnoses(trained, steps, images, device)
    header = trained.header
    what = {name: getattr(header, name) for name in ("method", "arch", "data", "seed")}
    result = {**what, "checkpoint": trained.weights.sha256(), "diagnoses": found}
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    title = f"{header.method}, {header.arch}, {header.data}, seed {header.seed}"
    pictures = draw(found, title)
    for name, figure in pictures.items():
        write_atomically(out / f"{name}.svg", to_svg(figure))
    write_atomically(out / FILE, text)
    if wandb:
        loggers = make_loggers("wandb", out, f"diagnose-{'-'.join(map(str, what.values()))}", what)
        send_to_wandb(loggers, lambda logger: _send(logger, found, pictures), out / FILE)
        finish(loggers)
    if as_json:
        print(text, end="")
    else:
        _show(found, title)
        print(f"written: {', '.join(str(out / name) for name in (FILE, *(f'{name}.svg' for name in pictures)))}")
    return 0


def diagnoses(trained: Trained, steps: tuple[int, ...], images: int, device: str = "cpu") -> list[Diagnosis]:
    """Makes one diagnosis (:func:`bench.snn.diagnosis.diagnose`) for each T."""
    model, datamodule = trained.model.float().eval().to(device), trained.datamodule
    batches = [(x.to(device), y.to(device)) for x, y in datamodule.first_evaluated(images)]
    found = []
    with torch.no_grad():
        calibration = calibration_batches(model, datamodule)
        snn = None if model.per_T else model.convert(steps[-1], calibration, datamodule.input_shape).to(device)
        for T in steps:
            converted = model.convert(T, calibration, datamodule.input_shape).to(device) if snn is None else snn
            found.append(diagnose(model.net, converted, batches, T))
    return found


def verdict(found: Diagnosis) -> str:
    """Returns one line: the three accuracies, and the causes of their differences."""
    ann, twin, snn = (100 * found["top1"][name] for name in ("ann", "quantised", "snn"))
    warmup = f" (+ {found['warmup']})" if found["warmup"] else ""
    return (
        f"T = {found['T']}{warmup}, {found['images']} images: ANN {ann:.2f} %, quantised {twin:.2f} %, "
        f"SNN {snn:.2f} %; {ann - twin:+.2f} points lost to clipping and quantisation, {twin - snn:+.2f} to unevenness"
    )


def _percent(layer: LayerDiagnosis, view: View, kind: str) -> float | None:
    mean = layer["activation_mean"]
    return 100 * layer[view][kind]["mean_abs"] / mean if mean > 0 else None


def _show(found: list[Diagnosis], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(
        f"{title}\nmean error of a layer in % of its mean activation: clipping, quantisation, unevenness, total;\n"
        "e2e: end to end, own: on the layer's own input; offset, v: shares of neurons in %\n"
    )
    for diagnosis in found:
        table = Table(title=verdict(diagnosis), title_justify="left", box=None, pad_edge=False, header_style="dim")
        table.add_column("layer", no_wrap=True)
        heads = [f"{SHORT[view]} {SHORT[kind]}" for view in VIEWS for kind in KINDS]
        for head in ("rate", *heads, "offset != 0", "v < 0", "v >= theta"):
            table.add_column(head, justify="right")
        for layer in diagnosis["layers"]:
            errors = [_percent(layer, view, kind) for view in VIEWS for kind in KINDS]
            shares = (layer["offset_share"], layer["residual_below_zero"], layer["residual_at_least_theta"])
            table.add_row(
                layer["name"],
                f"{layer['firing_rate']:.3f}",
                *("" if error is None else f"{error:.1f}" for error in errors),
                *("" if share is None else f"{100 * share:.1f}" for share in shares),
            )
        console.print(table, "")


def _send(logger: WandbLogger, found: list[Diagnosis], pictures: dict[str, Figure]) -> None:
    import wandb

    names: tuple[Measure, ...] = get_args(Measure)
    errors = [(view, kind) for view in VIEWS for kind in KINDS]
    table = wandb.Table(columns=["T", "layer", *names, *(f"{view}/{kind}" for view, kind in errors)])
    for diagnosis in found:
        for layer in diagnosis["layers"]:
            first = [diagnosis["T"], layer["name"], *(layer[name] for name in names)]
            table.add_data(*first, *(layer[view][kind]["mean_abs"] for view, kind in errors))
    images = {f"diagnosis/{name}": wandb.Image(figure) for name, figure in pictures.items()}
    logger.experiment.log({"diagnosis/layers": table, **images})
