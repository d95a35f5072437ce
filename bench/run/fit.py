"""A run, from its specification to its record, as the composition of ``trained``, ``evaluate`` and ``publish``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning.loggers import Logger

from bench.errors import Interrupted, UserError
from bench.files import require_writable
from bench.nets import architectures
from bench.records.record import Options, recorded_steps
from bench.records.spec import RunSpec
from bench.run.build import Trained, build_trained, build_untrained, load
from bench.run.callbacks import calibration_size
from bench.run.checkpoints import LAST, PREVIOUS, RECORD, WEIGHTS, Weights, read
from bench.run.evaluation import check_early, evaluate
from bench.run.loggers import make_loggers
from bench.run.provenance import code_state
from bench.run.publish import keep_weights, publish, working_in
from bench.run.source import converting, source_weights, tuned_weights
from bench.run.trainer import device_for, quiet
from bench.run.training import find_resume, header_of, is_of, trained, untrained


@quiet()
def fit(spec: RunSpec, argv: list[str]) -> Path:
    """Trains or takes a net, converts, evaluates, writes the record.

    Args:
        spec: the run.
        argv: the command, for the record.

    Returns:
        The record's path.

    Raises:
        UserError: bad input, or a loss that is not finite.
        Interrupted: a signal ended the training; it can be resumed.
    """
    code_state()  # now, before the checkout changes
    return _fit(spec, argv) if spec.trains else _convert(spec, argv)


def _fit(spec: RunSpec, argv: list[str]) -> Path:
    source = tuned_weights(spec)
    theirs = source and source.header.of_weights().recipe
    folder = spec.folder_of(theirs.config, theirs.name, theirs.overrides) if theirs else spec.folder()
    out, header = spec.local.out or folder, header_of(spec, source)
    if spec.recipe == "default":
        print(f"note: {spec.method} has no recipe for {spec.arch} on {spec.data}; its defaults are used")
    check_early(header, argv)
    resume = find_resume(spec, out, header, source is not None)
    # A run that goes on keeps the steps of its record.
    goes_on = resume is not None and (spec.local.ckpt == "last" or is_of(out, resume))
    steps = tuple(sorted({*spec.local.T, *(recorded_steps(out / RECORD) if goes_on else ())}))
    begun = untrained(spec, resume, source)
    require_writable(out)
    with working_in(out, spec.all_trainer_options):
        if resume is None:
            find_resume(spec, out, header, source is not None)  # again: another process may have had the folder
        loggers = make_loggers(spec.local.logger, out, spec.title(spec.label), _logged(spec, header.recipe.config))
        net = trained(spec, header, resume, out, loggers, begun, source)
        return _record(net, steps, spec.all_trainer_options, loggers, out, argv)


def _convert(spec: RunSpec, argv: list[str]) -> Path:
    source, spec, path = source_weights(spec, lambda net: _train_first(spec, net))
    weights = converting(spec, source)
    recipe, theirs = weights.header.recipe, source.header.of_weights().recipe
    out = spec.local.out or spec.folder_of(theirs.config, theirs.name, theirs.overrides)
    check_early(weights.header, argv)
    _require_free(out, path.parent, spec.local.overwrite)
    net = build_trained(weights, spec.all_data_options, str(path))
    _keep_net(out, weights)
    net.model.check_steps(max(spec.local.T))
    device_for({"accelerator": spec.all_trainer_options.get("accelerator")})
    require_writable(out)
    with working_in(out, spec.all_trainer_options):
        _require_free(out, path.parent, spec.local.overwrite)  # again, as above
        title = spec.title("+".join([recipe.name, *recipe.overrides]))
        loggers = make_loggers(spec.local.logger, out, title, _logged(spec, recipe.config))
        return _record(net, spec.local.T, spec.all_trainer_options, loggers, out, argv)


def _require_free(out: Path, source: Path, overwrite: bool) -> None:
    if (out / "checkpoints").exists() or source.resolve() == out.resolve():
        raise UserError(f"--out {out}: holds a training, whose weights would be lost; give another folder")
    if (out / RECORD).exists() and not overwrite:
        raise UserError(f"{out} already holds a record; replace it with --overwrite, or give another --out")


def _keep_net(out: Path, weights: Weights) -> None:
    """Refuses to replace a net that has no record yet, such as an imported one, by another."""
    if not (out / WEIGHTS).exists() or (out / RECORD).exists():
        return
    try:
        there = read(out / WEIGHTS)
    except UserError as error:
        raise UserError(f"--out {out}: holds a file that would be replaced ({error}); give another folder") from error
    ours = weights.state
    same = there.state.keys() == ours.keys() and all(
        torch.equal(value, ours[name]) for name, value in there.state.items()
    )
    if there.header.source is None and not same:
        raise UserError(f"--out {out}: holds a net, which would be lost; give another folder")


def _train_first(spec: RunSpec, net: RunSpec) -> Path:
    folder = net.local.out or net.folder()
    if not (folder / WEIGHTS).exists():
        anew = command(net)
        if any((folder / "checkpoints" / name).exists() for name in (LAST, PREVIOUS)):
            net = net.model_copy(update={"local": net.local.model_copy(update={"ckpt": "last"})})
        elif (folder / RECORD).exists():  # this command's --overwrite is not its source net's
            raise UserError(
                f"{folder}: holds the record of a {net.method} net but no weights to convert; give a net with --ckpt, "
                f"or train it again: {shlex.join([*anew, '--overwrite'])}"
            )
        _check_before_training(spec, net, folder)
        print(f"{spec.method} converts a {net.method} net, and --ckpt was not given: training one first, in {folder}")
        try:
            fit(net, anew)
        except Interrupted as stop:
            said = f"making the {net.method} net was stopped; to continue, repeat the command as it is"
            raise Interrupted(said, stop.status) from stop
    return folder / WEIGHTS


def _check_before_training(spec: RunSpec, net: RunSpec, folder: Path) -> None:
    """Refuses now what the conversion would refuse after hours of training."""
    _require_free(
        spec.local.out or spec.folder_of(net.config(), net.recipe, [*net.overrides]), folder, spec.local.overwrite
    )
    calibration_size(*build_untrained(spec, net.method, net.model))


def command(spec: RunSpec) -> list[str]:
    """Returns a command line for a run. The folder and other settings without effect on results stay default."""
    arch = architectures.typed(spec.arch)
    words = ["python", "-m", "bench", "fit", "--method", spec.method, "--arch", arch, "--data", spec.data]
    words += ["--seed", str(spec.seed), *(f"--{override}" for override in spec.overrides)]
    return words


def _logged(spec: RunSpec, config: Options) -> Options:
    return {**config, "seed": spec.seed, "T": list(spec.local.T)}


def _record(
    net: Trained, steps: tuple[int, ...], trainer: Options, loggers: Sequence[Logger], out: Path, argv: list[str]
) -> Path:
    sha256 = keep_weights(net, out)
    record = evaluate(net, sha256, steps, trainer, loggers, out, argv)
    return out / RECORD if record is None else publish(record, out, loggers)


@quiet()
def evaluate_checkpoint(
    ckpt: Path, steps: tuple[int, ...], out: Path, logger: str, data: Options, trainer: Options, argv: list[str],
    snn: Options,
) -> Path:  # fmt: skip
    """Repeats conversion and evaluation from a checkpoint.

    Args:
        ckpt: ``last.ckpt`` or ``model.safetensors``.
        steps: values of T.
        out: folder for the record.
        logger: as for ``fit``.
        data: options of the data module that do not change results.
        trainer: ``accelerator`` and ``limit_test_batches`` of the Trainer.
        argv: the command, for the record.
        snn: options of the converted network, which replace the recorded ones.

    Returns:
        The record's path.

    Raises:
        UserError: the checkpoint is damaged, not ours, or its weights do not fit what its header says.
    """
    code_state()
    if (out / "checkpoints").exists() and ckpt.parent.resolve() not in (out.resolve(), (out / "checkpoints").resolve()):
        raise UserError(f"--out {out}: holds another training, whose weights would be lost; give another folder")
    net = load(ckpt, data, snn)
    net = net._replace(header=net.header.of_weights(readout=True))
    check_early(net.header, argv)
    _keep_net(out, net.weights)
    whole = net.header.recipe.part("trainer").get("max_epochs")
    if (out / "checkpoints").exists() and net.header.epochs != whole:
        # A sweep, or a conversion, would take its weights for those of the whole training.
        raise UserError(f"--out {out}: its training has {net.header.epochs} of {whole} epochs; give another folder")
    net.model.check_steps(max(steps))
    require_writable(out)
    header = net.header
    # One process evaluates, however many have trained.
    one: Options = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    trainer = {**header.recipe.part("trainer"), **trainer, **one}
    with working_in(out, trainer):
        name = f"evaluate-{header.data}-{header.arch}-{header.method}-seed{header.seed}"
        config: Options = {**header.recipe.config, "seed": header.seed, "T": list(steps)}
        return _record(net, steps, trainer, make_loggers(logger, out, name, config), out, argv)
