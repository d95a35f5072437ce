"""From the command line to one resolved configuration: defaults < recipe < ``--config`` < options.

Parsing has two stages: method, data set, architecture and recipe first, then the typed arguments of just those
classes, so that an unknown option is refused with the nearest real one.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.arguments import Parser
from bench.errors import UserError
from bench.recipes import find_recipe
from bench.registry import lookup, nearest

DEFAULT_STEPS = (1, 2, 4, 8, 16, 32)
# Options of pl.Trainer that the suite sets itself.
MANAGED = {
    "logger", "callbacks", "plugins", "profiler", "default_root_dir", "enable_checkpointing", "fast_dev_run",
    "use_distributed_sampler", "inference_mode", "num_sanity_val_steps", "reload_dataloaders_every_n_epochs",
    "barebones", "max_time", "min_epochs", "min_steps", "max_steps", "model_registry", "overfit_batches",
    "log_every_n_steps", "val_check_interval", "sync_batchnorm", "detect_anomaly", "check_val_every_n_epoch",
    "enable_autolog_hparams",
}  # fmt: skip
# What decides a result; paths, loader processes and devices do not.
SCIENCE_TRAINER = ("max_epochs", "precision", "gradient_clip_val", "gradient_clip_algorithm",
                   "accumulate_grad_batches", "limit_train_batches", "limit_test_batches")  # fmt: skip
NOT_SCIENCE_DATA = ("name", "root", "num_workers", "eval_batch_size")


@dataclass
class Settings:
    """One resolved run."""

    method: str
    arch: str
    data: str
    recipe: str
    overrides: list[str]
    seed: int
    steps: tuple[int, ...]
    logger: str
    compile: bool
    model_args: dict[str, Any] = field(default_factory=dict)
    data_args: dict[str, Any] = field(default_factory=dict)
    trainer_args: dict[str, Any] = field(default_factory=dict)
    ckpt: str | None = None
    out: Path | None = None
    overwrite: bool = False

    def science(self) -> dict[str, Any]:
        """What decides the result, without the seed: the part that is hashed."""
        data = {key: value for key, value in self.data_args.items() if key not in NOT_SCIENCE_DATA}
        return {
            "method": self.method,
            "arch": self.arch,
            "data": {"name": self.data, **data},
            "model": self.model_args,
            "trainer": {key: self.trainer_args.get(key) for key in SCIENCE_TRAINER},
        }


def parse_steps(text: str | int | Sequence[int]) -> tuple[int, ...]:
    """``1,2,4`` to increasing integers.

    Raises:
        UserError: empty, not integers, below 1, or twice the same.
    """
    parts = str(text).split(",") if isinstance(text, str | int) else [str(part) for part in text]
    if not all(re.fullmatch(r"\s*\d{1,6}\s*", part) for part in parts) or not all(int(part) for part in parts):
        raise UserError(f"--T {text}: must be time-steps of at least 1 separated by commas, such as 1,2,4,8")
    steps = tuple(sorted({int(part) for part in parts}))
    if len(steps) != len(parts):
        raise UserError(f"--T {text}: each number of time-steps once")
    return steps


def _first_stage() -> Parser:
    parser = Parser(prog="python -m bench fit", add_help=False, allow_abbrev=False)
    for option in ("--method", "--arch", "--data.name", "--recipe", "--config"):
        parser.add_argument(option)
    return parser


SHORTHANDS = {"--data": "--data.name", "--max_epochs": "--trainer.max_epochs", "--subset": "--data.subset"}
SWITCHES = ("--overwrite", "--compile")


def expand_shorthands(argv: Sequence[str]) -> list[str]:
    """``--data digits`` to ``--data.name digits``, a bare ``--compile`` to ``--compile true``, and so on."""
    expanded = []
    for index, token in enumerate(argv):
        option, equals, value = token.partition("=")
        expanded.append(SHORTHANDS.get(option, option) + equals + value)
        if token in SWITCHES and (index + 1 == len(argv) or argv[index + 1].startswith("-")):
            expanded.append("true")
    return expanded


def parse_fit(argv: Sequence[str]) -> Settings:
    """Resolves the arguments of ``bench fit``.

    Raises:
        UserError: anything unknown, missing or of the wrong type.
    """
    arguments = expand_shorthands(argv)
    first, _ = _first_stage().parse_known_args(arguments)
    from_file = read_config(Path(first.config)) if first.config else {}
    chosen = _choices(first, from_file)
    rest = _without(arguments, "--config")
    from datamodules import DATA
    from methods import METHODS

    method = lookup("--method", chosen["method"], METHODS)
    data = lookup("--data", chosen["data"], DATA)

    # From here on torch is needed.
    from bench.architectures import TIMM_PREFIX, resolve

    data_class, method_class = data.load(), method.load()
    arch = resolve(chosen["arch"], data_class.arch_family)
    # timm's resnet18 is another net than ours, and must not get its recipe.
    short = (
        chosen["arch"] if chosen["arch"].startswith(TIMM_PREFIX) else arch.removeprefix(f"{data_class.arch_family}_")
    )
    recipe = find_recipe(chosen["recipe"], chosen["method"], chosen["data"], short)
    parser = _second_stage(method_class, data_class)
    recipe_tokens = _tokens(parser, _flatten(recipe.settings), f"recipe {recipe.path}")
    config_tokens = _tokens(parser, from_file, f"--config {first.config}")
    baseline = _parse(parser, recipe_tokens)
    config = _parse(parser, [*recipe_tokens, *config_tokens, *rest])
    settings = Settings(
        method=chosen["method"],
        arch=arch,
        data=chosen["data"],
        recipe=recipe.name,
        overrides=[],
        seed=config["seed"],
        steps=parse_steps(config["T"]),
        logger=config["logger"],
        compile=config["compile"],
        model_args=config["model"],
        data_args={key: value for key, value in config["data"].items() if key != "name"},
        trainer_args=config["trainer"],
        ckpt=config["ckpt"],
        out=Path(config["out"]) if config["out"] else None,
        overwrite=config["overwrite"],
    )
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"--seed {settings.seed}: must be between 0 and {2**32 - 1}")
    reference = Settings(**{**settings.__dict__, "model_args": baseline["model"], "trainer_args": baseline["trainer"],
                            "data_args": {k: v for k, v in baseline["data"].items() if k != "name"}})  # fmt: skip
    settings.overrides = differences(reference.science(), settings.science())
    return settings


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """``model.L=2`` and the like: what in ``new`` is not as in ``old``, sorted."""
    found = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(after, dict):
            found += differences(before or {}, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}={after}")
    return found


def _choices(first: Namespace, from_file: dict[str, Any]) -> dict[str, str]:
    values = {
        "method": first.method or from_file.get("method"),
        "arch": first.arch or from_file.get("arch") or "resnet20",
        "data": getattr(first, "data.name") or from_file.get("data.name") or "cifar10",
        "recipe": first.recipe or from_file.get("recipe") or "",
    }
    if not values["method"]:
        raise UserError("--method is missing; python -m bench list shows the methods")
    return {key: str(value) for key, value in values.items()}


def _without(arguments: list[str], option: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for token in arguments:
        if not skip and token != option and not token.startswith(f"{option}="):
            kept.append(token)
        skip = token == option and not skip
    return kept


def read_config(path: Path) -> dict[str, Any]:
    """Reads the file of ``--config``: any options, nested or with dots, short forms included.

    Returns:
        Values by full option name.

    Raises:
        UserError: it cannot be read, or is not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: must hold a mapping such as 'model: {{L: 4}}'")
    flat = _flatten(content)
    return {SHORTHANDS.get(f"--{key}", f"--{key}")[2:]: value for key, value in flat.items()}


def _second_stage(method_class: type, data_class: type) -> Any:
    import pytorch_lightning as pl
    from jsonargparse import ActionConfigFile, ArgumentParser

    summary = (method_class.__doc__ or "").splitlines()[0]
    parser = ArgumentParser(prog="python -m bench fit", exit_on_error=False, description=summary)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    parser.add_argument("--method", type=str, help="see python -m bench list")
    parser.add_argument("--arch", type=str, default="resnet20", help="short name, or timm/<name>")
    parser.add_argument("--data.name", type=str, default="cifar10", help="data set (short form: --data NAME)")
    parser.add_argument("--recipe", type=str, default="", help="name or YAML file; default: the paper's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--T", type=str | int | list[int], default=",".join(map(str, DEFAULT_STEPS)), help="time-steps to report"
    )
    parser.add_argument("--logger", choices=["wandb", "csv", "none"], default="wandb", help="wandb is csv and W&B")
    parser.add_argument("--ckpt", type=str, default=None, help="'last' or a file, to resume from")
    parser.add_argument("--out", type=str, default=None, help="folder of the run; default under runs/")
    parser.add_argument("--overwrite", type=bool, default=False, help="start anew in a folder that holds a run")
    parser.add_argument("--compile", type=bool, default=False, help="compile training steps (torch.compile)")
    parser.add_class_arguments(method_class, "model", skip={"net"})
    parser.add_class_arguments(data_class, "data")
    parser.add_class_arguments(pl.Trainer, "trainer", skip=MANAGED)
    parser.set_defaults({"trainer.max_epochs": 300, "trainer.accelerator": "auto", "trainer.devices": 1})
    return parser


def _tokens(parser: Any, settings: dict[str, Any], origin: str) -> list[str]:
    """A file's settings as options, so that one parser checks them all by the same types."""
    tokens = []
    known = sorted(_option_names(parser))
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"{origin}: unknown setting {key}{nearest(key, known)}")
        tokens.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    try:
        _parse(parser, tokens)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    return tokens


def _parse(parser: Any, arguments: list[str]) -> dict[str, Any]:
    from jsonargparse import ArgumentError

    help_asked = any(token in ("-h", "--help") for token in arguments)
    known = sorted(_option_names(parser))
    for token in arguments:
        option = token.partition("=")[0]
        if option.startswith("--") and option[2:] not in known and option not in ("--help", "--print_config"):
            raise UserError(f"{option}: unknown option{nearest(option, [f'--{name}' for name in known])}")
    try:
        namespace = parser.parse_args(arguments)
    except ArgumentError as error:
        if help_asked:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(" ".join(lines)[:400]) from error
    config: dict[str, Any] = namespace.as_dict()
    return config


def _option_names(parser: Any) -> list[str]:
    names = []
    for action in parser._actions:
        names += [option[2:] for option in action.option_strings if option.startswith("--")]
    return names


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
