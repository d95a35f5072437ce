"""From the command line to one resolved configuration: defaults < recipe < ``--config`` < options.

Parsing has two stages: method, data set, architecture and recipe first, then the typed arguments of just those
classes, so that an unknown option is refused with the nearest real one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UserError
from bench.recipes import Recipe, find_recipe
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


def parse_steps(text: str | Sequence[int]) -> tuple[int, ...]:
    """``1,2,4`` to increasing integers.

    Raises:
        UserError: empty, not integers, below 1, or twice the same.
    """
    parts = text.split(",") if isinstance(text, str) else [str(part) for part in text]
    if not all(re.fullmatch(r"\s*\d{1,6}\s*", part) for part in parts) or not all(int(part) for part in parts):
        raise UserError(f"--T {text}: must be time-steps of at least 1 separated by commas, such as 1,2,4,8")
    steps = tuple(sorted({int(part) for part in parts}))
    if len(steps) != len(parts):
        raise UserError(f"--T {text}: each number of time-steps once")
    return steps


def _first_stage() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--method", "--arch", "--data.name", "--recipe", "--config"):
        parser.add_argument(option)
    return parser


SHORTHANDS = {"--data": "--data.name", "--max_epochs": "--trainer.max_epochs", "--subset": "--data.subset"}


def expand_shorthands(argv: Sequence[str]) -> list[str]:
    """``--data digits`` to ``--data.name digits``, and so on."""
    expanded = []
    for token in argv:
        option, equals, value = token.partition("=")
        expanded.append(SHORTHANDS.get(option, option) + equals + value)
    return expanded


def parse_fit(argv: Sequence[str]) -> Settings:
    """Resolves the arguments of ``bench fit``.

    Raises:
        UserError: anything unknown, missing or of the wrong type.
    """
    arguments = expand_shorthands(argv)
    try:
        first, _ = _first_stage().parse_known_args(arguments)
    except SystemExit as error:
        raise UserError("an option lacks its value; see python -m bench fit --help") from error
    chosen = _choices(first)
    from datamodules import DATA
    from methods import METHODS

    method = lookup("--method", chosen["method"], METHODS)
    data = lookup("--data", chosen["data"], DATA)

    # From here on torch is needed.
    from bench.architectures import resolve

    data_class, method_class = data.load(), method.load()
    arch = resolve(chosen["arch"], data_class.arch_family)
    recipe = find_recipe(chosen["recipe"], chosen["method"], chosen["data"], chosen["arch"])
    parser = _second_stage(method_class, data_class)
    baseline = _parse(parser, recipe, [])
    config = _parse(parser, recipe, arguments)
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


def _choices(first: argparse.Namespace) -> dict[str, str]:
    from_file: dict[str, Any] = {}
    if first.config:
        from_file = read_yaml(Path(first.config), "--config")
    data = from_file.get("data")
    values = {
        "method": first.method or from_file.get("method"),
        "arch": first.arch or from_file.get("arch") or "resnet20",
        "data": getattr(first, "data.name") or (data.get("name") if isinstance(data, dict) else data) or "cifar10",
        "recipe": first.recipe or from_file.get("recipe") or "",
    }
    if not values["method"]:
        raise UserError("--method is missing; python -m bench list shows the methods")
    return {key: str(value) for key, value in values.items()}


def read_yaml(path: Path, option: str) -> dict[str, Any]:
    """Reads a YAML mapping; ``UserError`` names ``option`` where that fails."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{option} {path}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise UserError(f"{option} {path}: must hold a mapping such as 'model: {{L: 4}}'")
    return content


def _second_stage(method_class: type, data_class: type) -> Any:
    import pytorch_lightning as pl
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(prog="python -m bench fit", exit_on_error=False, description=method_class.__doc__)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    parser.add_argument("--method", type=str, help="see python -m bench list")
    parser.add_argument("--arch", type=str, default="resnet20", help="short name, or timm/<name>")
    parser.add_argument("--data.name", type=str, default="cifar10", help="data set (short form: --data NAME)")
    parser.add_argument("--recipe", type=str, default="", help="name or YAML file; default: the paper's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--T", type=str, default=",".join(map(str, DEFAULT_STEPS)), help="time-steps to report")
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


def _parse(parser: Any, recipe: Recipe, arguments: list[str]) -> dict[str, Any]:
    from jsonargparse import ArgumentError

    help_asked = any(token in ("-h", "--help") for token in arguments)
    flat = _flatten(recipe.settings)
    known = set(_option_names(parser))
    for key in flat:
        if key not in known:
            raise UserError(f"recipe {recipe.path}: unknown setting {key}{nearest(key, known)}")
    for token in arguments:
        option = token.partition("=")[0]
        if option.startswith("--") and option[2:] not in known and option not in ("--help", "--print_config"):
            raise UserError(f"{option}: unknown option{nearest(option, [f'--{name}' for name in known])}")
    try:
        # A recipe's values are checked by the same types as the command line's.
        parser.set_defaults(flat)
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
