"""A model card from a record, in the layout of the Hugging Face Hub, and the upload."""

from __future__ import annotations

from pathlib import Path

from bench.errors import UserError, first_line
from bench.records.energy import ENERGY_MODEL
from bench.records.record import Imported, Record, Training

LIBRARY = "ann2snn-bench"
WEIGHTS, CARD, RECORD = "model.safetensors", "README.md", "record.json"

_EPOCHS = {"last": "last epoch", "best_test": "epoch chosen on the test set", "unknown": "epoch of unknown choice"}
_BODY = """\
# {title}

{what}, and what its conversion by `{method}` gave: {samples:,} images of
the {split} split, {epoch}, {reset} reset, image presented unchanged at each step, logits summed over
{read}.
{limited}
| T | warm-up | waiting | SNN top-1 % | top-5 % | quantised ANN % | firing rate | SynOps (M) | energy (uJ) |
|---|---|---|---|---|---|---|---|---|
| ANN | | | {ann_top1} | {ann_top5} | | | | {ann_energy:.1f} |
{rows}

Energy: {energy_model}, arithmetic alone. {arch}: {parameters:,} parameters, {macs:,} multiply-accumulates.

## Use

`model.safetensors` holds the trained weights and, in its metadata, what they are; `record.json` the whole record.
With {library} installed:

```bash
python -m bench evaluate --ckpt model.safetensors --T {steps} --out again
```

## Where it comes from

{imported}- method `{method}` (paper key `{paper}`), options {options}
- recipe `{recipe}`, seed {seed}, {epochs} epochs; {calibration} calibration images
- code {commit}{dirty}, torch {torch}, {device}
- SHA-256 of the weights: `{sha256}`
"""


def model_card(record: Record) -> str:
    """The card's text: metadata (YAML) with the results as the Hub reads them, and tables.

    Args:
        record: of the run.
    """
    from huggingface_hub import EvalResult, ModelCardData

    name = f"{record.arch.name}-{record.method.name}-{record.data.name}"

    def result(metric: str, value: float) -> EvalResult:
        return EvalResult(
            task_type="image-classification",
            dataset_type=record.data.name,
            dataset_name=record.data.name,
            dataset_split=record.protocol.eval_split,
            metric_type="accuracy",
            metric_name=metric,
            metric_value=value,
        )

    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="image-classification",
        tags=["spiking-neural-network", "ann-to-snn-conversion", record.method.name, record.arch.name],
        datasets=[record.data.name],
        metrics=["accuracy"],
        model_name=name,
        eval_results=[
            result("ANN top-1", record.ann.top1),
            *(result(f"SNN top-1, T = {point.T}", point.top1) for point in record.snn),
        ],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(record, name)}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _imported(theirs: Imported) -> str:
    said = {"repository": theirs.repository, "commit": theirs.commit, "licence": theirs.licence}
    known = "".join(f", {name} {value}" for name, value in said.items() if value)
    return f"- weights that others have trained: `{theirs.file}`, SHA-256 `{theirs.sha256}`{known}\n"


def _origin(training: Training) -> str:
    if training.imported is None:
        return "A network trained to be converted into a spiking one"
    tuned = ", tuned further here for its conversion" if training.epochs else ""
    return f"A network that others have trained{tuned}"


def _body(record: Record, title: str) -> str:
    theirs, delayed = record.training.imported, record.protocol.readout == "delayed"
    rows = []
    for point in record.snn:
        cells = [f"{point.T}", f"{point.warmup}", f"{point.wait}", _percent(point.top1), _percent(point.top5)]
        cells.append("" if point.quantised_top1 is None else _percent(point.quantised_top1))
        cells.append(f"{point.firing_rate:.4f}")
        cells.append("" if point.synops is None else f"{point.synops / 1e6:.2f}")
        cells.append("" if point.energy_joule is None else f"{point.energy_joule * 1e6:.1f}")
        rows.append(f"| {' | '.join(cells)} |")
    return _BODY.format(
        title=title,
        epoch=_EPOCHS[record.protocol.checkpoint_selection],
        what=_origin(record.training),
        imported=_imported(theirs) if theirs else "",
        method=record.method.name,
        samples=record.protocol.num_eval_samples,
        split=record.protocol.eval_split,
        reset=record.protocol.reset,
        read="all steps but the first ones, which a delayed read-out leaves out" if delayed else "the steps",
        limited="\n**Part of the data was left out: a trial, not a result.**\n" if record.limited else "",
        ann_top1=_percent(record.ann.top1),
        ann_top5=_percent(record.ann.top5),
        ann_energy=ENERGY_MODEL.joules(record.arch.macs, 0) * 1e6,
        rows="\n".join(rows),
        energy_model=record.energy_model or ENERGY_MODEL.name,
        arch=record.arch.name,
        parameters=record.arch.parameters,
        macs=record.arch.macs,
        library=LIBRARY,
        steps=",".join(str(point.T) for point in record.snn),
        paper=record.method.paper,
        options=", ".join(f"`{key}={value}`" for key, value in sorted(record.method.options.items())) or "as they are",
        recipe=record.recipe.label,
        seed=record.seed,
        epochs=record.training.epochs,
        calibration=record.protocol.calibration_images,
        commit=record.training.code.commit[:12],
        dirty=" with changes that were not committed" if record.training.code.dirty else "",
        torch=record.environment.torch,
        device=record.environment.device,
        sha256=record.checkpoint.sha256,
    )


def push(folder: Path, repo: str) -> str:
    """Uploads weights, card and record to a model repository of the Hub. Creates the repository if needed.

    Args:
        folder: holds the three files.
        repo: ``NAME`` or ``USER/NAME``; the token comes from ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        URL of the commit.

    Raises:
        UserError: no token, repository not found, or no network.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi(library_name=LIBRARY)
    try:
        target = api.create_repo(repo, repo_type="model", exist_ok=True).repo_id
        done = api.upload_folder(
            repo_id=target,
            folder_path=folder,
            allow_patterns=[WEIGHTS, CARD, RECORD],
            commit_message="Weights, card and record",
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, httpx.HTTPError, OSError, ValueError) as error:
        raise UserError(f"--push {repo}: {first_line(error, 200)} (the files are in {folder})") from error
    return str(done)
