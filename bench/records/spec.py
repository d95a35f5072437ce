"""A resolved run: the settings that decide its result, and those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from bench.records.record import Name, Options, Positive, Strict, Text, config_sha256

RUNS = Path("runs")
# Of the part of a folder's name that is for people.
LONGEST = 80


class Local(Strict):
    """How and where a run executes on this machine. Nothing here changes a result but how sums are rounded.

    Attributes:
        T: time-steps to report, increasing.
        logger: ``wandb``, ``csv`` or ``none``.
        compile: compile training steps; ``None`` compiles them if that saves time.
        ckpt: ``last``, a file, or published weights.
        out: folder of the run; ``None`` for its own under ``runs/``.
        overwrite: begin anew in a folder that holds a run.
        data: options of the data module, such as where its files are.
        trainer: of the Trainer, such as the accelerator.
    """

    T: tuple[Positive, ...]
    logger: Literal["wandb", "csv", "none"] = "wandb"
    compile: bool | None = None
    ckpt: str | None = None
    out: Path | None = None
    overwrite: bool = False
    data: Options = {}
    trainer: Options = {}


class RunSpec(Strict):
    """One run. :attr:`sha256` and seed identify it; if it converts a net, together with that net.

    Attributes:
        model: all options of the method.
        snn: those of the converted network that are not the default.
        data_options: those of the data module that decide the result; of a method that does not train, which images
            are evaluated.
        trainer: those of the Trainer that decide it; ``None`` for a method that does not train.
        recipe: its name.
        overrides: what was changed in it, such as ``model.L=2``.
        net: the training whose net is converted, if no checkpoint is named.
    """

    method: Name
    arch: Name
    data: Name
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    recipe: Name
    overrides: tuple[Text, ...] = ()
    model: Options
    snn: Options = {}
    data_options: Options
    trainer: Options | None
    local: Local
    net: RunSpec | None = None

    @property
    def trains(self) -> bool:
        """Whether the method trains its own net."""
        return self.trainer is not None

    @property
    def all_data_options(self) -> Options:
        """For the data module's constructor."""
        return self.data_options | self.local.data

    @property
    def all_trainer_options(self) -> Options:
        """For the Trainer's constructor."""
        return (self.trainer or {}) | self.local.trainer

    @property
    def label(self) -> str:
        """Recipe and what was changed."""
        return "+".join([self.recipe, *self.overrides])

    def config(self) -> Options:
        """What decides the result, without the seed (and the source net): as it is recorded."""
        trainer: Options = {"trainer": self.trainer} if self.trains else {}
        data: Options = {"name": self.data, **self.data_options}
        snn: Options = {"snn": self.snn} if self.snn else {}
        return {"method": self.method, "arch": self.arch, "data": data, "model": self.model, **snn, **trainer}

    @property
    def sha256(self) -> str:
        """SHA-256 of :meth:`config`."""
        return config_sha256(self.config())

    def title(self, label: str) -> str:
        """The run's name in logs."""
        return f"{self.data}-{self.arch}-{self.method}-{label}-seed{self.seed}"

    def folder(self, root: Path = RUNS) -> Path:
        """Default folder of a training; different for any two settings that change the result."""
        return self._folder(root, self.label, self.config())

    def folder_of(self, source: Options | str, recipe: str, overrides: list[str], root: Path = RUNS) -> Path:
        """Where a conversion goes by default.

        Args:
            source: what decides its source net: the configuration, or the name of a file.
            recipe: of the source net, or its file.
            overrides: of the source net.
            root: folder of all runs.
        """
        label = "+".join([recipe, *sorted({*overrides, *self.overrides})])
        return self._folder(root, label, {**self.config(), "source": source})

    def _folder(self, root: Path, label: str, decides: Options) -> Path:
        short = label.replace("/", "-").replace(" ", "")
        if len(short) > LONGEST and "trainer.limit_" in short:  # all that tells a trial's folder from a whole run's
            short = f"{short[: LONGEST - 9]}-{config_sha256({'label': label})[:8]}"
        short = short[:LONGEST]
        leaf = f"{short}-seed{self.seed}-{config_sha256(decides)[:8]}"
        return root / self.data / self.arch / self.method / leaf
