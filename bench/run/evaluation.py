"""``evaluate``: converts a trained net, measures ANN and SNN on the test images, and makes the record."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from pytorch_lightning.loggers import Logger

from bench.errors import UserError, first_error
from bench.nets import architectures
from bench.records import record as records
from bench.records.energy import ENERGY_MODEL
from bench.records.header import Header, is_cut
from bench.records.record import Options, Record
from bench.run.build import Trained
from bench.run.callbacks import ConversionCallback, calibration_size
from bench.run.checkpoints import WEIGHTS
from bench.run.provenance import code_state, environment
from bench.run.trainer import interruptible, make_trainer, require_batches
from bench.snn.graph.check import BatchNorm
from bench.snn.precision import full_precision


def check_early(header: Header, argv: list[str]) -> None:
    """Validates the known parts of the record now, so that they are not refused after the training.

    Raises:
        UserError: a name or an argument is too long or has characters that a record cannot hold.
    """
    try:
        Header.model_validate(header.dump(), strict=True)
        records.Run(argv=argv, started="", seconds=0)
    except ValidationError as error:
        raise UserError(f"not valid in a record: {first_error(error, show_input=True)}") from error


def evaluate(
    net: Trained,
    sha256: str,
    steps: tuple[int, ...],
    trainer_options: Options,
    loggers: Sequence[Logger],
    out: Path,
    argv: list[str],
) -> Record | None:
    """Converts and tests in full precision.

    Args:
        net: a trained method.
        sha256: of its weights as they were written.
        steps: values of T.
        trainer_options: of the Trainer.
        loggers: get the metrics.
        out: the run's folder.
        argv: the command, for the record.

    Returns:
        The record; ``None`` in all but the first of several processes.

    Raises:
        UserError: the net cannot be converted.
        Interrupted: a signal ended the evaluation.
    """
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    conversion = ConversionCallback(steps, per_T=net.model.per_T)
    trainer = make_trainer(trainer_options, loggers, [conversion], out, precision="32-true")
    require_batches(trainer, net.datamodule, "test")
    again = f"python -m bench evaluate --ckpt {shlex.quote(str(out / WEIGHTS))} --T {','.join(map(str, steps))}"
    advice = f"the trained weights are kept; continue with {again}"
    with interruptible("evaluation", lambda: advice), full_precision():
        trainer.test(net.model, datamodule=net.datamodule, verbose=False)
    if not trainer.is_global_zero:
        return None
    header, datamodule = net.header, net.datamodule
    return Record(
        schema_version=records.SCHEMA_VERSION,
        method=records.Method(name=header.method, paper=net.entry.paper, options=header.recipe.part("model")),
        arch=records.Arch(
            name=header.arch,
            parameters=architectures.count_parameters(net.model.net),
            macs=architectures.count_macs(net.model.net, datamodule.input_shape),
        ),
        data=records.Data(name=header.data, fingerprint=datamodule.fingerprint(), num_classes=datamodule.num_classes),
        recipe=records.Recipe(**header.recipe.model_dump(), sha256=records.config_sha256(header.recipe.config)),
        seed=header.seed,
        protocol=_protocol(net, conversion),
        conversion=_conversion(net, conversion),
        ann=conversion.results["ann"],
        snn=conversion.results["snn"],
        extras=conversion.results["extras"],
        energy_model=ENERGY_MODEL.name,
        training=records.Training(
            code=header.code,
            epochs=header.epochs,
            seconds=header.seconds,
            arithmetic=header.arithmetic,
            imported=header.trained.imported,
        ),
        code=code_state(),
        environment=environment(trainer.strategy.root_device, trainer.world_size, datamodule.num_workers),
        run=records.Run(argv=argv, started=started, seconds=round(time.monotonic() - clock, 3)),
        checkpoint=records.Checkpoint(sha256=sha256, format="safetensors"),
        limited=datamodule.limited or header.trained_on_part or is_cut(trainer_options.get("limit_test_batches")),
    )


def _protocol(net: Trained, conversion: ConversionCallback) -> records.Protocol:
    imported = net.header.trained.imported is not None
    return records.Protocol(
        version=records.PROTOCOL_VERSION,
        input_coding="direct",
        readout="delayed" if net.model.readout.delay else "rate",
        reset=next(iter(conversion.evaluated.neurons.values())).reset_rule,
        checkpoint_selection="unknown" if imported else "last",
        eval_split=net.datamodule.eval_split,
        num_train_samples=None if imported else net.header.num_train_samples or len(net.datamodule.split("train")),
        num_eval_samples=conversion.results["num_eval_samples"],
        calibration_images=calibration_size(net.model, net.datamodule),
        precision="fp32",
        bn_folded=not any(isinstance(module, BatchNorm) for module in conversion.evaluated.net.modules()),
    )


def _conversion(net: Trained, conversion: ConversionCallback) -> records.Conversion:
    neurons = list(conversion.evaluated.neurons.values())
    source = net.header.recipe.part("source").get("sha256")
    return records.Conversion(
        alphabet=neurons[0].alphabet,
        levels_per_step=max(neuron.levels_per_step for neuron in neurons),
        coding=neurons[0].coding,
        causal=conversion.evaluated.lookahead == 0,
        per_T=net.model.per_T,
        draws=conversion.draws if net.model.random else None,
        retrained=net.entry.source is None,
        source_sha256=None if source is None else str(source),
    )
