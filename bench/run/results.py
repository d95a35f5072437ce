"""From a trained network to its record: test, measure, write, show."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pydantic import ValidationError
from pytorch_lightning.loggers import Logger
from rich.console import Console
from rich.table import Table

from bench.errors import UserError, first_error
from bench.files import lock, write_atomically
from bench.nets import architectures
from bench.records import record as records
from bench.registry.entries import MethodEntry
from bench.run import checkpoints
from bench.run.callbacks import ConversionCallback, calibration_size
from bench.run.loggers import finish, log_record
from bench.run.provenance import code_state, environment
from bench.run.trainer import interruptible, make_trainer, require_batches
from bench.snn.cost import ENERGY_MODEL
from bench.snn.precision import full_precision

# Of a checkpoint's header, what a record says of the training.
TRAINING = ("code", "epochs", "seconds", "arithmetic")


def is_cut(limit: object) -> bool:
    """Whether a ``--trainer.limit_*_batches`` leaves batches out; 1 is one batch, 1.0 is all of them."""
    return not (limit is None or (isinstance(limit, float) and limit == 1.0))


def trained_on_part(header: dict[str, Any]) -> bool:
    """Whether part of the training images was left out: of the net itself, or of the one that it was converted from."""
    config = header.get("source", header)["recipe"]["config"]
    data, trainer = config["data"], config.get("trainer") or {}
    return (
        header.get("limited", False)
        or data.get("subset") is not None
        or bool(data.get("partial"))
        or is_cut(trainer.get("limit_train_batches"))
    )


def check_early(header: dict[str, Any], argv: list[str]) -> None:
    """Makes now, of what is known, the parts of the record that would else be refused after the training.

    Raises:
        UserError: a name or an argument is too long or has characters that a record cannot hold.
    """
    try:
        checkpoints.Header.model_validate({**header, "epochs": 0}, strict=True)
        records.Run(argv=argv, started="", seconds=0)
    except ValidationError as error:
        raise UserError(f"this cannot stand in a record: {first_error(error, show_input=True)}") from error


@contextmanager
def working_in(out: Path, trainer_args: dict[str, Any]) -> Iterator[None]:
    """Keeps other runs out of a run's folder, and clears what a killed one has left half-written.

    Args:
        out: the run's folder.
        trainer_args: ``--trainer.*``.

    Raises:
        BusyError: another process writes there.
    """
    if all(trainer_args.get(key) in (None, 1, "1") for key in ("devices", "num_nodes")):
        # A launcher of several runs (srun) gives each a rank in the environment; in this run there is one process.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    if getattr(rank_zero_only, "rank", 0) != 0:  # processes of one run share its folder
        yield
        return
    with lock(out / ".lock"):
        for stale in (*out.glob(".*.tmp"), *(out / "checkpoints").glob(".*.tmp")):
            stale.unlink(missing_ok=True)
        yield


def evaluate_and_record(
    model: Any,
    datamodule: Any,
    entry: MethodEntry,
    header: dict[str, Any],
    steps: tuple[int, ...],
    trainer_args: dict[str, Any],
    loggers: list[Logger],
    out: Path,
    argv: list[str],
) -> Path:
    """Tests in full precision, then writes ``model.safetensors`` and ``record.json`` and prints the table.

    Args:
        model: a trained method.
        datamodule: its data.
        entry: the method's registry line.
        header: of the checkpoint, with ``epochs`` and, where known, ``seconds`` of training.
        steps: values of T.
        trainer_args: ``--trainer.*``.
        loggers: get metrics, curve and record.
        out: the run's folder.
        argv: the command, for the record.

    Returns:
        The record's path.
    """
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    conversion = ConversionCallback(steps, per_T=entry.per_T)
    path = out / "record.json"
    trainer = make_trainer(trainer_args, loggers, [conversion], out, precision="32-true")
    require_batches(trainer, datamodule, "test")
    model = model.float()
    weights = checkpoints.to_safetensors(model.state_dict(), header)
    if trainer.is_global_zero:
        write_atomically(out / "model.safetensors", weights)
    advice = f"the trained weights are kept; go on with python -m bench evaluate --ckpt {out / 'model.safetensors'}"
    with interruptible("evaluation", advice), full_precision():
        trainer.test(model, datamodule=datamodule, verbose=False)
    if not trainer.is_global_zero:
        return path
    record = records.Record(
        schema_version=records.SCHEMA_VERSION,
        **_what(model, datamodule, entry, header),
        protocol=_protocol(model, datamodule, conversion, header.get("num_train_samples")),
        conversion=_conversion(entry, header, conversion),
        ann=records.Accuracy(**conversion.results["ann"]),
        snn=[records.SnnAccuracy(**point) for point in conversion.results["snn"]],
        extras=conversion.results["extras"],
        energy_model=ENERGY_MODEL.name,
        training=records.Training.model_validate({"seconds": None} | {k: header[k] for k in TRAINING if k in header}),
        code=code_state(),
        environment=environment(trainer.strategy.root_device, trainer.world_size, datamodule.num_workers),
        run=records.Run(argv=argv, started=started, seconds=round(time.monotonic() - clock, 3)),
        checkpoint=records.Checkpoint(sha256=hashlib.sha256(weights).hexdigest(), format="safetensors"),
        limited=datamodule.limited or trained_on_part(header) or is_cut(trainer_args.get("limit_test_batches")),
    )
    record.write(path)
    log_record(loggers, record, path)
    finish(loggers)
    print_result(record, path)
    return path


def _what(model: Any, datamodule: Any, entry: MethodEntry, header: dict[str, Any]) -> dict[str, Any]:
    recipe = header["recipe"]
    return {
        "method": records.Method(name=header["method"], paper=entry.paper, options=recipe["config"]["model"]),
        "arch": records.Arch(
            name=header["arch"],
            parameters=architectures.count_parameters(model.net),
            macs=architectures.count_macs(model.net, datamodule.input_shape),
        ),
        "data": records.Data(
            name=header["data"], fingerprint=datamodule.fingerprint(), num_classes=datamodule.num_classes
        ),
        "recipe": records.Recipe(**recipe, sha256=records.config_sha256(recipe["config"])),
        "seed": header["seed"],
    }


def _protocol(model: Any, datamodule: Any, conversion: ConversionCallback, trained: int | None) -> records.Protocol:
    return records.Protocol(
        version=records.PROTOCOL_VERSION,
        input_coding="direct",
        readout="rate",
        reset=next(iter(conversion.evaluated.neurons.values())).reset_rule,
        checkpoint_selection="last",
        eval_split=datamodule.eval_split,
        num_train_samples=trained or len(datamodule.split("train")),
        num_eval_samples=conversion.results["num_eval_samples"],
        calibration_images=calibration_size(model, datamodule),
        precision="fp32",
        bn_folded=True,
    )


def _conversion(entry: MethodEntry, header: dict[str, Any], conversion: ConversionCallback) -> records.Conversion:
    neurons = list(conversion.evaluated.neurons.values())
    return records.Conversion(
        alphabet=neurons[0].alphabet,
        levels_per_step=max(neuron.levels_per_step for neuron in neurons),
        causal=conversion.evaluated.lookahead == 0,
        per_T=entry.per_T,
        retrained=entry.source is None,
        source_sha256=header["recipe"]["config"].get("source", {}).get("sha256"),
    )


def print_result(record: records.Record, path: Path) -> None:
    """The table at the end of a run."""
    title = f"{record.method.name}, {record.arch.name}, {record.data.name}, {record.recipe.label}, seed {record.seed}"
    table = Table(title=title)
    for heading in ("T", "SNN top-1 %", "top-5 %", "quantised ANN %", "firing rate", "SynOps (M)", "energy (uJ)"):
        table.add_column(heading, justify="right")
    joules = ENERGY_MODEL.joules(record.arch.macs, 0)
    table.add_row(
        "ANN", f"{100 * record.ann.top1:.2f}", f"{100 * record.ann.top5:.2f}", "", "", "", f"{joules * 1e6:.1f}"
    )
    for name, value in record.extras.items():
        table.add_row(name, f"{100 * value:.2f}")
    for point in record.snn:
        steps = f"{point.T}" + (f" + {point.warmup}" if point.warmup else "")
        twin = "" if point.quantised_top1 is None else f"{100 * point.quantised_top1:.2f}"
        assert point.synops is not None
        assert point.energy_joule is not None
        accuracies = (f"{100 * point.top1:.2f}", f"{100 * point.top5:.2f}", twin, f"{point.firing_rate:.4f}")
        table.add_row(steps, *accuracies, f"{point.synops / 1e6:.2f}", f"{point.energy_joule * 1e6:.1f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    limited = " (limited: never ranked)" if record.limited else ""
    print(f"{record.protocol.num_eval_samples} images{limited}; record: {path}")
