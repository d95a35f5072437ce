"""The result record: what one run measured, on what, by which code. One JSON file per run.

Programs outside rely on ``method.name``, ``arch.name``, ``data.name``, ``seed``, ``protocol.num_eval_samples``,
``ann.top1``, ``snn[].T``, ``snn[].warmup``, ``snn[].top1`` and ``limited``. Accuracies are fractions.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from bench.errors import UNKNOWN_KEY, UserError, first_error, nearest
from bench.files import write_atomically

SCHEMA_VERSION: Literal[1] = 1
# Raised whenever the way results are measured changes, so that results of different protocols are never merged.
PROTOCOL_VERSION = 1

# Levels of a record's JSON; a real one has 7.
DEPTH = 20
# A deep network at 500 values of T has 5 MB.
MAX_BYTES = 20_000_000

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=,-]*$", max_length=120)]
Text = Annotated[str, Field(max_length=2000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Above any real number, and below those that arithmetic on them cannot hold.
Count = Annotated[int, Field(ge=0, le=10**18)]
Positive = Annotated[int, Field(ge=1, le=10**18)]
Amount = Annotated[float, Field(ge=0, le=1e18)]
# Options of a class by name, as JSON values. The class defines their names and types.
Options = dict[str, JsonValue]


class Strict(BaseModel):
    """Unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: object) -> object:
        # pydantic would refuse them too, but without suggesting a similar key.
        unknown = [str(key) for key in given if key not in cls.model_fields] if isinstance(given, dict) else []
        if unknown:
            context = {"key": unknown[0], "hint": nearest(unknown[0], cls.model_fields)}
            raise PydanticCustomError(UNKNOWN_KEY, "unknown key{hint}", context)
        return given


class Method(Strict):
    """The method, the key of its paper (in ``leaderboards/reported``), and its options."""

    name: Name
    paper: Name
    options: Options


class Arch(Strict):
    """The network: rows of different nets that share a popular name are told apart by size."""

    name: Name
    parameters: Positive
    macs: Positive


class Data(Strict):
    """The evaluated set; the fingerprint is the SHA-256 of its images and labels in order."""

    name: Name
    fingerprint: Sha256
    num_classes: Positive


class Recipe(Strict):
    """Training settings: a named file, what was changed on the command line, and the resolved result."""

    name: Name
    overrides: list[Text]
    sha256: Sha256
    config: Options

    @property
    def label(self) -> str:
        """Name with the overrides, as in the record's file name."""
        return "+".join([self.name, *(re.sub(r"[^A-Za-z0-9_.=,-]", "_", o) for o in self.overrides)])


class Protocol(Strict):
    """How accuracy was measured.

    For weights that others trained, ``checkpoint_selection`` is ``unknown`` and ``num_train_samples`` is ``None``.
    """

    version: Positive
    input_coding: Literal["direct"]
    readout: Literal["rate", "delayed"]
    reset: Literal["soft", "hard"]
    checkpoint_selection: Literal["last", "best_test", "unknown"]
    eval_split: Literal["test", "val"]
    num_train_samples: Positive | None
    num_eval_samples: Positive
    calibration_images: Count
    precision: Name
    bn_folded: bool


class Conversion(Strict):
    """What makes rows comparable: the latency ledger of the converted net.

    ``retrained``: the method trains the weights that it converts. A post-training method says no, and names the net
    that it was given by ``source_sha256``, whatever that net was trained for (COS and SRP are given a QCFS net).
    ``draws``: runs of each image over which accuracy and costs are means; ``None`` for a network that draws nothing.
    ``coding``: what a spike stands for: one unit of a rate, a bit of a number (``word``), a change of the mean so far
    (``differential``), which its receivers must store, or the whole value, by its time (``time``).
    """

    alphabet: Literal["binary", "ternary", "multi"]
    levels_per_step: Positive
    causal: bool
    per_T: bool
    retrained: bool
    source_sha256: Sha256 | None
    draws: Positive | None = None
    coding: Literal["rate", "word", "differential", "time"] = "rate"


class Accuracy(Strict):
    """Fractions of the evaluated images."""

    top1: Fraction
    top5: Fraction


class SnnAccuracy(Accuracy):
    """The converted net after ``T`` counted steps (and ``warmup`` steps before them).

    ``quantised_top1`` belongs to the twin: the same net whose activations are quantised to the levels that the
    neurons can send in ``T`` steps, without any spike. What lies between it and ``top1`` is due to the timing of spikes
    alone. ``firing_rate`` is spikes per neuron and step.

    ``wait`` is the number of steps before the output begins, apart from ``warmup``, if each layer must see several
    steps of its input before it sends. ``delay`` is the number of first counted steps that the output leaves out.

    Costs are means over the images and include the warm-up; ``bench/snn/cost.py`` has the rules: ``synops``,
    accumulates of layers that get spikes; ``macs``, multiply-accumulates of the others; ``membrane_updates``, neurons
    times steps; ``shifts``, of membranes by one bit, if spikes are the bits of a number; ``energy_joule``, by the
    record's ``energy_model``. ``None`` in older records, which did not count them.
    """

    T: Positive
    warmup: Count
    quantised_top1: Fraction | None
    firing_rate: Amount
    layer_firing_rates: dict[Text, Amount] = {}
    synops: Amount | None = None
    macs: Amount | None = None
    membrane_updates: Count | None = None
    wait: Count = 0
    delay: Count = 0
    shifts: Count = 0
    energy_joule: Amount | None = None

    @property
    def latency(self) -> int:
        """Steps until the answer, including warm-up and waiting."""
        return self.T + self.warmup + self.wait


class Code(Strict):
    """Git state of the suite; ``commit`` is ``unknown`` outside a checkout."""

    commit: Annotated[str, Field(pattern=r"^([0-9a-f]{40}|unknown)$")]
    dirty: bool


class Arithmetic(Strict):
    """What decides how a training's sums are rounded. If it differs, the same command gives different weights.

    ``device`` of a CPU ends with the instructions that torch uses, such as AVX2; earlier ones do not say.
    """

    torch: Text
    device: Text
    threads: Positive
    world_size: Positive
    # Compiled code adds in another order; younger than the first records, as is the precision of the steps.
    compiled: bool | None = None
    precision: Name | None = None


class Imported(Strict):
    """Weights trained elsewhere: the file that they were read from, and what its source states about it.

    ``stated_top1`` is the accuracy that its authors state for the ANN. If timm has fetched the weights, ``sha256`` is
    that of their tensors as safetensors.
    """

    file: Text
    sha256: Sha256
    repository: Text | None = None
    commit: Text | None = None
    licence: Text | None = None
    stated_top1: Fraction | None = None


class Training(Strict):
    """Where the weights come from. ``arithmetic`` is unknown in older records and if it changed during the training.

    ``imported`` weights are not of a training of this suite: ``code`` is that of their import, or of the tuning that
    began from them.
    """

    code: Code
    epochs: Count
    seconds: Amount | None
    arithmetic: Arithmetic | None = None
    imported: Imported | None = None


class Environment(Strict):
    """What ran it."""

    python: Text
    torch: Text
    torchvision: Text
    lightning: Text
    timm: Text
    device: Text
    threads: Positive
    world_size: Positive
    workers: Count
    deterministic: bool


class Run(Strict):
    """When and by which command; the only part that differs between two identical runs."""

    argv: list[Text]
    started: Text
    seconds: Amount


class Checkpoint(Strict):
    """The evaluated weights: ``sha256`` of the file that ``format`` says, as the suite writes it."""

    sha256: Sha256
    format: Literal["safetensors"]


class Record(Strict):
    """One run."""

    schema_version: Literal[1]
    method: Method
    arch: Arch
    data: Data
    recipe: Recipe
    seed: Count
    protocol: Protocol
    conversion: Conversion
    ann: Accuracy
    snn: Annotated[list[SnnAccuracy], Field(min_length=1)]
    # Top-1 of a method's further measurements, such as its ANN with the training noise on.
    extras: dict[Name, Fraction] = {}
    energy_model: Name | None = None
    training: Training
    code: Code
    environment: Environment
    run: Run
    checkpoint: Checkpoint
    limited: bool

    @model_validator(mode="after")
    def _each_step_once(self) -> Record:
        steps = [point.T for point in self.snn]
        if steps != sorted(set(steps)):
            raise ValueError("snn: T must be increasing, each once")
        _sound(self.recipe.config)
        if self.recipe.sha256 != config_sha256(self.recipe.config):
            raise ValueError("recipe.sha256 is not that of recipe.config")
        return self

    def path(self) -> Path:
        """Where it belongs under ``leaderboards/results``."""
        name = f"{self.recipe.label}-seed{self.seed}-{self.recipe.sha256[:8]}.json"
        return Path(self.data.name) / self.arch.name / self.method.name / name

    def dumps(self) -> str:
        """The file's text: sorted keys, two spaces, a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Writes atomically."""
        write_atomically(path, self.dumps())


def _sound(config: Options) -> None:
    """Refuses configurations that no run resolves to, and that would break what reads them later."""
    source = config.get("source", {})
    for where, part in (("config", config), ("config.source", source)):
        for name in ("model", "data", "trainer", "source"):
            if not isinstance(part, dict) or not isinstance(part.get(name, {}), dict):
                raise ValueError(f"recipe.{where}: {name} is not a mapping")


def recorded_steps(path: Path) -> set[int]:
    """Returns the values of T in a record; none if it is absent or damaged."""
    try:
        return {point.T for point in read_record(path).snn}
    except UserError:
        return set()


def part(config: Options, name: str) -> Options:
    """A part of a configuration (``model``, ``data``, ``trainer``, ``source``); empty if it has none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def config_sha256(config: Options) -> str:
    """SHA-256 of a resolved configuration's canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(old: Options, new: Options, prefix: str = "") -> list[str]:
    """``model.L=2`` and the like: settings in ``new`` that differ from ``old``, sorted."""
    found = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(after, dict):
            found += differences(before if isinstance(before, dict) else {}, after, f"{prefix}{key}.")
        elif before != after or type(before) is not type(after):  # 1 is one batch, 1.0 is all of them
            found.append(f"{prefix}{key}={after}")
    return found


def read_record(path: Path) -> Record:
    """Reads and validates one record.

    Raises:
        UserError: the file cannot be read, is not JSON, has duplicate keys or violates the schema; says where.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the file, such as {path / 'record.json'}")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: a record is a few kilobytes; this file is larger than {MAX_BYTES // 10**6} MB")
        text = path.read_text(encoding="utf-8")
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_nan)
        if _depth(data) > DEPTH:
            raise ValueError(f"nested more than {DEPTH} levels deep")
        if not isinstance(data, dict) or "schema_version" not in data:
            raise UserError(f"{path}: not a record of this suite; give the record.json of a run")
        version = data["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise UserError(f"{path}: is of a newer version of this suite (schema_version {version}); update the suite")
        return Record.model_validate(_corrected(data), strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable record: {error}") from error


def _corrected(data: Options) -> Options:
    """Corrects what older records claim.

    The first of imported weights described a training that was not ours, and the first of TTFS named a paper with
    another coding.
    """
    method = data.get("method")
    if isinstance(method, dict) and method.get("paper") == "rueckauer2018ttfs":
        data = {**data, "method": {**method, "paper": "stanojevic2023exact"}}
    training, protocol = data.get("training"), data.get("protocol")
    if not (isinstance(training, dict) and training.get("imported") and isinstance(protocol, dict)):
        return data
    unknown: Options = {"num_train_samples": None}
    if protocol.get("checkpoint_selection") == "last":
        unknown["checkpoint_selection"] = "unknown"
    return {**data, "protocol": {**protocol, **unknown}}


def _depth(tree: object) -> int:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _no_duplicates(pairs: list[tuple[str, JsonValue]]) -> Options:
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return dict(pairs)


def _no_nan(constant: str) -> float:
    raise ValueError(f"{constant} is not a finite number")


def duration(seconds: float) -> str:
    """``1 h 02 min``, ``3 min 20 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"
