"""From the command line to a :class:`RunSpec`: defaults < recipe < ``--config`` < options.

Parsing has two stages: method, data set, architecture and recipe first, then the typed options of just those classes,
so that an unknown option is refused with the nearest real one.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from bench.errors import UserError, first_error, nearest
from bench.files import expand
from bench.recipes import Recipe, find_recipe
from bench.records.record import Options, differences
from bench.records.spec import Local, RunSpec
from bench.registry.datasets import DATA
from bench.registry.entries import lookup
from bench.registry.methods import METHODS
from bench.run.options import (
    Parsed,
    expand_shorthands,
    first_stage,
    layered,
    near_option,
    read_config,
    second_stage,
    without,
)
from bench.run.trainer_options import EVALUATION, PROCESSES, TRAINING, checked

if TYPE_CHECKING:  # it imports torch
    from datamodules.base import Role


def parse_steps(text: object) -> tuple[int, ...]:
    """``1,2,4`` to increasing integers.

    Raises:
        UserError: empty, not integers, below 1, or twice the same.
    """
    parts = [str(part) for part in text] if isinstance(text, list | tuple) else str(text).split(",")
    if (
        not parts
        or not all(re.fullmatch(r"\s*\d{1,6}\s*", part) for part in parts)
        or not all(int(part) for part in parts)
    ):
        raise UserError(f"--T {text}: must be time-steps of at least 1 separated by commas, such as 1,2,4,8")
    steps = tuple(sorted({int(part) for part in parts}))
    if len(steps) != len(parts):
        raise UserError(f"--T {text}: gives a number of time-steps twice")
    return steps


def parse_fit(argv: Sequence[str]) -> RunSpec:
    """Resolves the options of ``bench fit``.

    Raises:
        UserError: anything unknown, missing or of the wrong type.
    """
    arguments = expand_shorthands(argv)
    if sum(token.partition("=")[0] == "--config" for token in arguments) > 1:
        raise UserError("--config: give one file")
    first, rest = first_stage().parse_known_args(arguments)
    for token in rest if first.method is None else ():
        if token.startswith("--") and (hint := near_option(token.partition("=")[0], ["--method"])):
            raise UserError(f"{token}: unknown option{hint}")
    for option in ("config", "recipe"):
        if getattr(first, option) == "":
            raise UserError(f"--{option}: is empty")
    from_file = read_config(expand(first.config)) if first.config else {}
    return resolve(_chosen(first, from_file), (f"--config {first.config}", from_file), without(arguments, "--config"))


class Chosen(NamedTuple):
    """What decides which options there are."""

    method: str
    arch: str
    data: str
    recipe: str = ""


def resolve(chosen: Chosen, settings: tuple[str, Options], arguments: Sequence[str] = ()) -> RunSpec:
    """One run.

    Args:
        chosen: names, as a user types them.
        settings: options by dotted name, and where they are from.
        arguments: further options as typed, which override them.

    Raises:
        UserError: a name or option is unknown, or a value of the wrong type or out of range.
    """
    method, data = lookup("--method", chosen.method, METHODS), lookup("--data", chosen.data, DATA)

    # From here on torch is needed.
    from bench.nets import architectures

    data_class, method_class = data.load(), method.load()
    arch = architectures.resolve(chosen.arch, data_class.arch_family)
    # timm's resnet18 is another net than ours, and must not get its recipe.
    short = chosen.arch if chosen.arch.startswith(architectures.TIMM_PREFIX) else arch.removeprefix("cifar_")
    recipe = find_recipe(chosen.recipe, chosen.method, chosen.data, short)
    # A row of a method that does not train has its source's recipe, so all that a file of one's own sets is a change.
    usual = find_recipe("", chosen.method, chosen.data, short) if method.source and recipe.own_file else recipe
    from bench.snn.readout import Readout

    parser = second_stage(method_class, data_class)
    config = layered(parser, [_layer(recipe), settings], arguments)
    baseline = layered(parser, [_layer(usual)])
    trains = method.source is None
    now, before = (_Parts.of(found, data_class.roles, trains) for found in (config, baseline))
    overrides = differences(before.deciding, now.deciding)
    if method.source:
        _refuse_training_options(overrides, chosen.method, method.source_for(now.model), data_class.roles)
        if now.local_trainer["precision"] != before.local_trainer["precision"]:
            raise UserError(f"--trainer.precision: {chosen.method} does not train, and SNNs are evaluated in 32 bits")
        if config["compile"] != "auto" and config["ckpt"]:
            raise UserError("--compile: nothing is trained if --ckpt gives a net; leave it out")
    if config["out"] == "":
        raise UserError("--out: is empty; give a folder, or leave it out")
    if not 0 <= config["seed"] < 2**32:
        raise UserError(f"--seed {config['seed']}: must be between 0 and {2**32 - 1}")
    snn: Options = {**Readout.of(config["snn"]).changes}
    if trains and snn:
        raise UserError(
            f"--snn.{next(iter(snn))}: {chosen.method} trains its net; give this to python -m bench evaluate afterwards"
        )
    evaluated = {key: value for key, value in now.images.items() if data_class.roles.get(key) == "evaluation"}
    try:
        return RunSpec(
            method=chosen.method,
            arch=arch,
            data=chosen.data,
            seed=config["seed"],
            recipe=recipe.name,
            overrides=tuple(overrides),
            model=now.model,
            snn=snn,
            data_options=now.images if trains else evaluated,
            trainer=now.trainer if trains else None,
            local=Local(
                T=parse_steps(config["T"]),
                logger=config["logger"],
                compile=None if config["compile"] == "auto" else config["compile"],
                ckpt=config["ckpt"] and str(expand(config["ckpt"])),
                out=expand(config["out"]) if config["out"] else None,
                overwrite=config["overwrite"],
                data=now.local_images,
                trainer=now.local_trainer if trains else now.local_trainer | now.trainer,
            ),
        )
    except ValidationError as error:
        message = first_error(error, show_input=True).replace("data_options.", "data.", 1).removeprefix("local.")
        if message.startswith("overrides."):  # the option is in what was given, 'model.L=2'
            option, _, rest = message.partition("'")[2].partition("=")
            message = f"{option}: '{rest}"
        raise UserError(f"--{message}") from error


class _Parts(NamedTuple):
    """The options of a parsed configuration, by what they are for."""

    model: Options
    snn: Options
    images: Options
    local_images: Options
    trainer: Options
    local_trainer: Options

    @classmethod
    def of(cls, config: Parsed, roles: dict[str, Role], trains: bool) -> _Parts:
        images = {key: value for key, value in config["data"].items() if key != "name"}
        local = {key: value for key, value in images.items() if roles.get(key) == "local"}
        all_trainer = checked(config["trainer"])
        # The batch size is per process and BN sees its own process only, so several are another training.
        several = {key: all_trainer[key] for key in PROCESSES if trains and all_trainer[key] != 1}
        trainer = {key: all_trainer.get(key) for key in (*TRAINING, *EVALUATION)} | several
        return cls(
            config.get("model", {}),
            config["snn"],
            {key: value for key, value in images.items() if key not in local},
            local,
            trainer,
            {key: value for key, value in all_trainer.items() if key not in trainer},
        )

    @property
    def deciding(self) -> Options:
        return {"model": self.model, "snn": self.snn, "data": self.images, "trainer": self.trainer}


def with_source(spec: RunSpec) -> RunSpec:
    """A run with the training of its source net, if it converts one and names none."""
    if spec.trains or spec.local.ckpt is not None:
        return spec
    kind = METHODS[spec.method].source_for(spec.model)
    from bench.nets.architectures import typed

    options = spec.all_data_options
    # What is called eval_ concerns this run's own evaluation. A split of 0 is no change of the source's recipe.
    names = [name for name in DATA[spec.data].load().roles if not name.startswith("eval_")]
    unset: dict[str, object] = {"val_split": 0}
    handed = {f"data.{n}": options[n] for n in names if options.get(n) not in (None, unset.get(n))}
    handed |= {"trainer.accelerator": spec.local.trainer["accelerator"]}
    handed |= {"seed": spec.seed, "logger": spec.local.logger}
    if spec.local.compile is not None:
        handed["compile"] = spec.local.compile
    return spec.model_copy(
        update={"net": resolve(Chosen(kind, typed(spec.arch), spec.data), (f"{spec.method}'s source", handed))}
    )


def _layer(recipe: Recipe) -> tuple[str, Options]:
    return f"recipe {recipe.path}", recipe.settings


def _refuse_training_options(overrides: Sequence[str], method: str, kind: str, roles: dict[str, Role]) -> None:
    """Refuses options without effect, so that they appear neither in the record nor in its name."""
    for override in overrides:
        option = override.partition("=")[0]
        group, _, name = option.partition(".")
        if (group == "trainer" and name in TRAINING) or (group == "data" and roles.get(name) != "evaluation"):
            raise UserError(
                f"--{option}: {method} does not train; train a net with it by --method {kind} and give that with --ckpt"
            )


def _chosen(first: Namespace, from_file: Options) -> Chosen:
    method = first.method or from_file.get("method")
    if not method:
        for key in from_file:
            if hint := nearest(key, ["method"]):
                raise UserError(f"--config {first.config}: {key} is unknown{hint}")
        raise UserError("--method is missing; python -m bench list shows the methods")
    arch, data = first.arch, getattr(first, "data.name")
    for option, value in (("arch", arch), ("data", data)):
        if value == "":
            raise UserError(f"--{option}: is empty; give a name, or leave it out")
    arch = arch or from_file.get("arch") or "resnet20"
    data = data or from_file.get("data.name") or "cifar10"
    return Chosen(str(method), str(arch), str(data), str(first.recipe or from_file.get("recipe") or ""))
