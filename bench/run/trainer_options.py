"""Checks ``--trainer.*``: one spelling for each value; unsupported values are refused before anything is computed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from bench.errors import UserError

# What decides the result of a training; which test batches are measured; and over how many processes it is spread.
# Everything else, such as the accelerator or the precision, changes how sums are rounded and no more.
TRAINING = (
    "max_epochs", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "limit_train_batches",
)  # fmt: skip
EVALUATION = ("limit_test_batches",)
PROCESSES = ("devices", "num_nodes")
# Not Apple's MPS: neurons count in double precision, which it lacks.
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
# Results stay in the process that made them, so processes that are forked or spawned take theirs with them when they
# end; sharded strategies have no whole network that could be converted.
STRATEGIES = (
    "auto", "single_device", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false",
)  # fmt: skip
# Lightning's older names. Two spellings of one thing would make two rows.
PRECISIONS: dict[object, str] = {
    16: "16-mixed", 32: "32-true", 64: "64-true",
    "16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true",
}  # fmt: skip
# Replaces Lightning's help, which lists values that are refused here.
HELP = {
    "--trainer.accelerator": "cpu, gpu (CUDA or ROCm), or auto: gpu if there is one",
    "--trainer.strategy": ", ".join(STRATEGIES),
    "--trainer.devices": "number of processes on each machine",
}


def checked(trainer: dict[str, Any]) -> dict[str, Any]:
    """``--trainer.*`` with values in range, and numbers of processes as numbers.

    Args:
        trainer: as parsed.

    Raises:
        UserError: names the option, the value and what it must be.
    """
    found = dict(trainer)
    for key in ("accelerator", "strategy"):
        found[key] = "auto" if found[key] is None else found[key]
    _choose("--trainer.accelerator", found["accelerator"], ACCELERATORS)
    _choose("--trainer.strategy", found["strategy"], STRATEGIES)
    _choose("--trainer.gradient_clip_algorithm", found["gradient_clip_algorithm"], (None, "norm", "value"))
    found["precision"] = PRECISIONS.get(found["precision"], found["precision"])
    # They are part of what decides a result, so "all that there are" will not do.
    found["devices"] = _count("devices", found["devices"], "; CUDA_VISIBLE_DEVICES says which GPUs are used")
    found["num_nodes"] = _count("num_nodes", found["num_nodes"])
    if found["strategy"] == "single_device" and found["devices"] * found["num_nodes"] > 1:
        raise UserError("--trainer.strategy single_device: runs one process only; give ddp, or --trainer.devices 1")
    for key in ("max_epochs", "accumulate_grad_batches"):
        if found[key] is None or found[key] < 1:
            raise UserError(f"--trainer.{key} {found[key]}: must be at least 1")
    clip = found["gradient_clip_val"]
    if clip is not None and not (clip > 0 and math.isfinite(clip)):
        raise UserError(f"--trainer.gradient_clip_val {clip}: must be above 0; without it nothing is clipped")
    if clip is None and found["gradient_clip_algorithm"] is not None:
        raise UserError("--trainer.gradient_clip_algorithm: nothing is clipped without --trainer.gradient_clip_val")
    if clip is not None:
        found |= {
            "gradient_clip_val": float(clip),
            "gradient_clip_algorithm": found["gradient_clip_algorithm"] or "norm",
        }
    for key in ("limit_train_batches", "limit_test_batches"):
        limit = found[key]
        if limit is not None and not (0 < limit <= 1 if isinstance(limit, float) else limit >= 1):
            raise UserError(
                f"--trainer.{key} {limit}: must be a whole number of batches, at least 1, or a fraction up to 1.0"
            )
        if isinstance(limit, float) and limit == 1:  # all of them; 1 is one batch
            found[key] = None
    return found


def _choose(option: str, value: object, choices: Sequence[str | None]) -> None:
    if not (value is None or isinstance(value, str)) or value not in choices:
        shown = str(value)[:80]
        raise UserError(f"{option} {shown}: choose from {', '.join(choice for choice in choices if choice)}")


def _count(key: str, value: object, advice: str = "") -> int:
    text = "1" if value is None else str(value)
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise UserError(f"--trainer.{key} {text[:80]}: must be a whole number of at least 1{advice}")
    return int(text)
