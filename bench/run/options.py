"""The options of ``bench fit``: their parser, their short forms, and files that hold them."""

from __future__ import annotations

import argparse
import functools
import operator
import re
import typing
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, NotRequired, TypedDict

from bench.errors import UserError, nearest
from bench.records.record import Options
from bench.run.trainer_options import HELP
from bench.yaml_files import UNREADABLE, read_yaml, reason

if TYPE_CHECKING:  # it is slow to import
    from jsonargparse import ArgumentParser

DEFAULT_STEPS = (1, 2, 4, 8, 16, 32)
# Options of pl.Trainer that the suite sets itself.
MANAGED = {
    "logger", "callbacks", "plugins", "profiler", "default_root_dir", "enable_checkpointing", "fast_dev_run",
    "use_distributed_sampler", "inference_mode", "num_sanity_val_steps", "reload_dataloaders_every_n_epochs",
    "barebones", "max_time", "min_epochs", "min_steps", "max_steps", "model_registry", "overfit_batches",
    "log_every_n_steps", "limit_val_batches", "val_check_interval", "sync_batchnorm", "detect_anomaly",
    "check_val_every_n_epoch", "enable_autolog_hparams", "limit_predict_batches",
}  # fmt: skip

SHORTHANDS = {"--data": "--data.name", "--max_epochs": "--trainer.max_epochs", "--subset": "--data.subset"}
SWITCHES = ("--overwrite", "--compile")


class Parsed(TypedDict):
    """The options of ``bench fit`` that decide how it goes on, as :func:`second_stage` declares them."""

    seed: int
    T: str | int | list[int]
    logger: Literal["wandb", "csv", "none"]
    ckpt: str | None
    out: str | None
    overwrite: bool
    compile: bool | Literal["auto"]
    model: NotRequired[Options]  # a method may have no options
    snn: Options
    data: Options
    trainer: Options


class Parser(argparse.ArgumentParser):
    """Raises :class:`UserError` instead of printing its usage; names the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        _, unrecognised, rest = message.partition("unrecognized arguments: ")
        hint = near_option(rest.split()[0].partition("=")[0], known) if unrecognised and rest else ""
        raise UserError(f"{self.prog}: {message}{hint}")


def near_option(option: str, known: Sequence[str]) -> str:
    """As :func:`bench.errors.nearest`, for options: without their dashes, which would make all look alike."""
    return nearest(option.lstrip("-"), [name.lstrip("-") for name in known]).replace("mean ", "mean --")


def expand_shorthands(argv: Sequence[str]) -> list[str]:
    """``--data digits`` to ``--data.name digits``, a bare ``--compile`` to ``--compile true``, and so on."""
    expanded = []
    for index, token in enumerate(argv):
        option, equals, value = token.partition("=")
        expanded.append(SHORTHANDS.get(option, option) + equals + value)
        if token in SWITCHES and (index + 1 == len(argv) or argv[index + 1].startswith("-")):
            expanded.append("true")
    return expanded


def first_stage() -> Parser:
    """Reads only what decides which classes the second stage needs."""
    parser = Parser(prog="python -m bench fit", add_help=False, allow_abbrev=False)
    for option in ("--method", "--arch", "--data.name", "--recipe", "--config"):
        parser.add_argument(option)
    return parser


def without(arguments: list[str], option: str) -> list[str]:
    """The arguments without an option and its value."""
    kept: list[str] = []
    skip = False
    for token in arguments:
        if not skip and token != option and not token.startswith(f"{option}="):
            kept.append(token)
        skip = token == option and not skip
    return kept


def read_config(path: Path) -> Options:
    """Reads the file of ``--config``: any options, nested or with dots, short forms included.

    Returns:
        Values by full option name.

    Raises:
        UserError: it cannot be read, or is not a mapping.
    """
    try:
        content = read_yaml(path)
    except UNREADABLE as error:
        raise UserError(f"--config {path}: cannot be read ({reason(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: must hold a mapping such as 'model: {{L: 4}}'")
    try:
        flat = flatten(content)
    except RecursionError as error:
        raise UserError(f"--config {path}: is nested too deeply") from error
    if "config" in flat:
        raise UserError(f"--config {path}: cannot name another configuration file")
    return {SHORTHANDS.get(f"--{key}", f"--{key}")[2:]: value for key, value in flat.items()}


@functools.cache  # a sweep asks for the same one hundreds of times, and each takes a tenth of a second to build
def second_stage(method_class: type, data_class: type) -> ArgumentParser:
    """A jsonargparse parser for every option of one method and one data set."""
    import pytorch_lightning as pl
    from jsonargparse import ActionConfigFile, ArgumentParser

    from bench.snn.readout import Readout

    summary = (method_class.__doc__ or "").splitlines()[0]
    parser = ArgumentParser(prog="python -m bench fit", exit_on_error=False, description=summary)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    parser.add_argument("--method", type=str, help="see python -m bench list")
    parser.add_argument("--arch", type=str, default="resnet20", help="short name, or timm/<name>")
    parser.add_argument("--data.name", type=str, default="cifar10", help="data set (short form: --data NAME)")
    parser.add_argument("--recipe", type=str, default="", help="name or YAML file; default: the paper's, else ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--T", type=str | int | list[int], default=",".join(map(str, DEFAULT_STEPS)), help="time-steps to report"
    )
    parser.add_argument("--logger", choices=["wandb", "csv", "none"], default="wandb", help="wandb is csv and W&B")
    parser.add_argument(
        "--ckpt",
        type=str,
        default=None,
        help="'last' or a file to resume from; a net to convert or tune, or 'timm'",
    )
    parser.add_argument("--out", type=str, default=None, help="folder of the run; default under runs/")
    parser.add_argument("--overwrite", type=bool, default=False, help="start anew in a folder that holds a run")
    parser.add_argument(
        "--compile", type=bool | Literal["auto"], default="auto",
        help="compile training steps (torch.compile); auto: if the training is longer than compiling costs",
    )  # fmt: skip
    parser.add_class_arguments(method_class, "model", skip={"net", "image"})
    parser.add_class_arguments(Readout, "snn")
    parser.add_class_arguments(data_class, "data")
    parser.add_class_arguments(pl.Trainer, "trainer", skip=MANAGED)
    parser.set_defaults({"trainer.max_epochs": 300, "trainer.accelerator": "auto", "trainer.devices": 1})
    for action in parser._actions:
        action.help = HELP.get(next(iter(action.option_strings), ""), action.help)
        kinds = typing.get_args(getattr(action, "_typehint", None))
        if int in kinds and float in kinds:
            # typing takes Union[float, int] for Union[int, float] if it has seen that first, and 1 batch would be
            # read as 1.0, all of them.
            action._typehint = functools.reduce(operator.or_, sorted(kinds, key=lambda kind: kind is not int))
    return parser


def model_parser(method_class: type) -> ArgumentParser:
    """A parser for what a method's net is, without what only its training reads."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m bench import", exit_on_error=False)
    training = {"lr", "momentum", "weight_decay", "label_smoothing", "init"}
    parser.add_class_arguments(method_class, "model", skip={"net", "image", *training})
    return parser


def layered(parser: ArgumentParser, layers: Sequence[tuple[str, Options]], arguments: Sequence[str] = ()) -> Parsed:
    """Options of files, one over the other, and typed ones over them, all checked by the same types.

    Args:
        parser: from :func:`second_stage`.
        layers: where they are from, and options, nested or by dotted name.
        arguments: as typed.

    Raises:
        UserError: names the nearest option, or what is wrong with a value.
    """
    known = sorted(name for action in parser._actions for name in action.option_strings if name.startswith("--"))
    config = parser.get_defaults()
    for origin, settings in layers:
        flat = flatten(settings)
        for key in flat:
            if f"--{key}" not in known:
                raise UserError(f"{origin}: unknown setting {key}{near_option(f'--{key}', known).replace('--', '')}")
        try:
            config = parser.parse_object(flat, config)
            # parse_object takes a null for any type; the command line does not.
            for key in (key for key, value in flat.items() if value is None):
                parser.parse_args([f"--{key}=null"], config.clone())
        except ArgumentError as error:
            raise UserError(f"{origin}: {_one_line(error, key='')}") from error
    for token in arguments:
        option = token.partition("=")[0]
        if option.startswith("--") and option not in (*known, "--help", "--print_config"):
            raise UserError(f"{option}: unknown option{near_option(option, [*known, *SHORTHANDS])}")
    try:
        found: Parsed = parser.parse_args(arguments, config).as_dict()
    except ArgumentError as error:
        raise UserError(_one_line(error)) from error
    return found


def _one_line(error: Exception, key: str = "--") -> str:
    """The message of jsonargparse in one line and in the words of a user, with ``key`` before the name of an option."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    text = re.sub(r'Parser key "([^"]+)"', rf"{key}\1", text)
    text = re.sub(r"Expected an? (<class '\w+'>|typing\.Literal\[.*?\])\. Got value: ", r"must be \1, not ", text)
    union = re.search(r"Does not validate against any .*?Subtypes: \[(.*)\] Errors: .* Given value: ", text)
    if union:
        types = " or ".join(re.split(", (?=<|typing)", union[1]))
        text = f"{text[: union.start()]}must be {types}, not {text[union.end() :]}"

    def plain(found: re.Match[str]) -> str:
        return found[1] or found[2].replace(", ", " or ")

    text = re.sub(r"<class '(\w+)'>|typing\.Literal\[(.*?)\]", plain, text)
    return text.replace("NoneType", "null").replace("not None", "not null")[:400]


def flatten(tree: Options, prefix: str = "") -> Options:
    """Nested settings by dotted name."""
    flat: Options = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
