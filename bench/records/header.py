"""The header of every checkpoint. Records take their training and source from it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bench.records.record import Arithmetic, Code, Count, Imported, Name, Options, Strict, Text, part

HEADER_VERSION: Literal[1] = 1
_TEST_LIMIT = "limit_test_batches"


def is_cut(limit: object) -> bool:
    """Whether a ``limit_*_batches`` of the Trainer leaves batches out; 1 is one batch, 1.0 is all of them."""
    return not (limit is None or (isinstance(limit, float) and limit == 1.0))


class RecipeHeader(Strict):
    """How it was trained."""

    name: Name
    overrides: list[Text]
    config: Options

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if not all(isinstance(self.config.get(part), dict) for part in ("model", "data")):
            raise ValueError("config lacks model or data")
        return self

    def part(self, name: str) -> Options:
        """``model``, ``data``, ``trainer``, ``source`` or ``snn`` of the configuration; empty if it is missing."""
        return part(self.config, name)


class Header(Strict):
    """What every checkpoint says of itself; ``source`` is the header of the net that a conversion was made from."""

    version: Literal[1]
    method: Name
    arch: Name
    data: Name
    seed: Count
    recipe: RecipeHeader
    code: Code
    epochs: Count
    seconds: Annotated[float, Field(ge=0)] | None = None
    arithmetic: Arithmetic | None = None
    # Whether training images were left out, and how many there were; younger than the first checkpoints.
    limited: bool = False
    num_train_samples: Count | None = None
    # Weights that others have trained, or that a tuning began from; their code is that of the import or the tuning.
    imported: Imported | None = None
    source: Header | None = None

    @property
    def trained(self) -> Header:
        """The header of the training: its own, or that of the net that it was converted from."""
        return self.source or self

    @property
    def trained_on_part(self) -> bool:
        """Whether part of the training was left out: of its images, or of the training that a tuning began from."""
        data, trainer = (self.trained.recipe.part(name) for name in ("data", "trainer"))
        left_out = data.get("subset") is not None or bool(data.get("partial"))
        return self.limited or left_out or is_cut(trainer.get("limit_train_batches"))

    def of_weights(self, readout: bool = False) -> Header:
        """The header without what an evaluation was asked for: part of the test images, and a read-out.

        Args:
            readout: keep the read-out, as for another evaluation of the same conversion.
        """
        config, gone = dict(self.recipe.config), (f"trainer.{_TEST_LIMIT}=",) + (() if readout else ("snn.",))
        if self.recipe.part("trainer").get(_TEST_LIMIT) is not None:
            config["trainer"] = {**self.recipe.part("trainer"), _TEST_LIMIT: None}
        if not readout:
            config.pop("snn", None)
        overrides = [override for override in self.recipe.overrides if not override.startswith(gone)]
        recipe = self.recipe.model_copy(update={"config": config, "overrides": overrides})
        return self.model_copy(update={"recipe": recipe})

    def dump(self) -> Options:
        """Returns JSON with the given fields only: a newer field must not change the checksum of older weights."""
        return self.model_dump(mode="json", exclude_unset=True)

    def without_seconds(self) -> Options:
        """Returns JSON without the training times of this net and its source: they differ between equal trainings."""
        stable = self.dump()
        stable.pop("seconds", None)
        if self.source is not None:
            stable["source"] = self.source.without_seconds()
        return stable
