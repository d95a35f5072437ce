"""From the command line to one resolved configuration: defaults < recipe < ``--config`` < options.

Parsing has two stages: method, data set, architecture and recipe first, then the typed arguments of just those
classes, so that an unknown option is refused with the nearest real one.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cli.options import expand_shorthands, first_stage, flatten, parse, read_config, second_stage, tokens, without
from bench.errors import UserError
from bench.recipes import find_recipe
from bench.records.record import config_sha256
from bench.registry.entries import lookup
from bench.run.trainer_options import checked

# What decides a result; paths and loader processes do not. Precision is arithmetic, like the processor's instructions.
SCIENCE_TRAINER = ("max_epochs", "gradient_clip_val", "gradient_clip_algorithm",
                   "accumulate_grad_batches", "limit_train_batches", "limit_test_batches")  # fmt: skip
NOT_SCIENCE_DATA = ("name", "root", "num_workers", "eval_batch_size", "check")


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
    compile: bool | None
    model_args: dict[str, Any] = field(default_factory=dict)
    data_args: dict[str, Any] = field(default_factory=dict)
    trainer_args: dict[str, Any] = field(default_factory=dict)
    ckpt: str | None = None
    out: Path | None = None
    overwrite: bool = False

    @property
    def label(self) -> str:
        """Recipe and what was changed."""
        return "+".join([self.recipe, *self.overrides])

    def science(self) -> dict[str, Any]:
        """What decides the result, without the seed: the part that is hashed."""
        data = {key: value for key, value in self.data_args.items() if key not in NOT_SCIENCE_DATA}
        trainer = {key: self.trainer_args.get(key) for key in SCIENCE_TRAINER}
        # The batch size is per process and BN sees its own process only, so several are another experiment.
        trainer |= {key: self.trainer_args[key] for key in ("devices", "num_nodes")
                    if self.trainer_args.get(key, 1) != 1}  # fmt: skip
        return {
            "method": self.method,
            "arch": self.arch,
            "data": {"name": self.data, **data},
            "model": self.model_args,
            "trainer": trainer,
        }

    def folder(
        self, root: Path = Path("runs"), recipe: str = "", overrides: Sequence[str] = (), source: Any = None
    ) -> Path:
        """Where a run goes by default: a place of its own for all that decides its result.

        Args:
            root: folder of all runs.
            recipe: of the source net (or its file), for a method that does not train.
            overrides: of the source net.
            source: what decides the source net: its settings, or its file.
        """
        label = "+".join([recipe, *sorted({*overrides, *self.overrides})]) if recipe else self.label
        leaf = label.replace("/", "-").replace(" ", "")[:80]
        decides = {**self.science(), "source": source} if recipe else self.science()
        leaf = f"{leaf}-seed{self.seed}-{config_sha256(decides)[:8]}"
        return root / self.data / self.arch / self.method / leaf


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


def parse_fit(argv: Sequence[str]) -> Settings:
    """Resolves the arguments of ``bench fit``.

    Raises:
        UserError: anything unknown, missing or of the wrong type.
    """
    arguments = expand_shorthands(argv)
    if sum(token.partition("=")[0] == "--config" for token in arguments) > 1:
        raise UserError("--config: give one file")
    first, _ = first_stage().parse_known_args(arguments)
    for option in ("config", "recipe"):
        if getattr(first, option) == "":
            raise UserError(f"--{option}: is empty")
    from_file = read_config(Path(first.config)) if first.config else {}
    chosen = _choices(first, from_file)
    rest = without(arguments, "--config")
    from bench.registry.datasets import DATA
    from bench.registry.methods import METHODS

    method = lookup("--method", chosen["method"], METHODS)
    data = lookup("--data", chosen["data"], DATA)

    # From here on torch is needed.
    from bench.nets.architectures import TIMM_PREFIX, resolve

    data_class, method_class = data.load(), method.load()
    arch = resolve(chosen["arch"], data_class.arch_family)
    # timm's resnet18 is another net than ours, and must not get its recipe.
    short = chosen["arch"] if chosen["arch"].startswith(TIMM_PREFIX) else arch.removeprefix("cifar_")
    recipe = find_recipe(chosen["recipe"], chosen["method"], chosen["data"], short)
    parser = second_stage(method_class, data_class)
    recipe_settings = flatten(recipe.settings)
    # A row of a method that does not train has its source's recipe, so all that a file of one's own sets is a change.
    usual = find_recipe("", chosen["method"], chosen["data"], short) if method.source and recipe.own_file else recipe
    baseline = parse(parser, tokens(parser, flatten(usual.settings), f"recipe {usual.path}"))
    parser = second_stage(method_class, data_class)
    from_files = tokens(parser, recipe_settings | from_file, f"--config {first.config}")
    config = parse(parser, [*from_files, *rest])
    baseline["trainer"], config["trainer"] = checked(baseline["trainer"]), checked(config["trainer"])
    settings = Settings(
        method=chosen["method"],
        arch=arch,
        data=chosen["data"],
        recipe=recipe.name,
        overrides=[],
        seed=config["seed"],
        steps=parse_steps(config["T"]),
        logger=config["logger"],
        compile=None if config["compile"] == "auto" else config["compile"],
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
        elif before != after or type(before) is not type(after):  # 1 is one batch, 1.0 is all of them
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
