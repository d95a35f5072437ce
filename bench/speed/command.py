"""``python -m bench speed``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Column, Table

from bench.errors import UserError
from bench.run.provenance import environment
from bench.run.trainer import device_for
from bench.snn.compilation import can_compile
from bench.speed.evaluation import callback, evaluation, memory
from bench.speed.figures import Figure
from bench.speed.training import data, training


def figures_of(kind: str, arch: str, T: int, images: int, pairs: int, device: str) -> list[Figure]:
    """One of :data:`bench.cli.commands.SPEED_KINDS`."""
    if kind in ("training", "data"):
        # A training step, three passes of 128 images, takes about as long as 32 steps of a dozen or two.
        return {"training": training, "data": data}[kind](arch, max(1, images // 20), pairs, device)
    return {"evaluation": evaluation, "callback": callback, "memory": memory}[kind](arch, T, images, pairs, device)


def run(arch: str, what: Sequence[str], T: int, images: int, pairs: int, device: str, as_json: bool) -> int:
    """Measures and prints.

    Args:
        arch: CIFAR net.
        what: of :data:`bench.cli.commands.SPEED_KINDS`.
        T: steps.
        images: in one measurement of an evaluation.
        pairs: measurements of each ratio.
        device: ``cpu`` or ``cuda``.
        as_json: print JSON instead of a table.

    Returns:
        0.

    Raises:
        UserError: no such device, or no compiler.
    """
    device_for({"accelerator": device}, "--device")
    if not can_compile():
        raise UserError("speed: it compares compiled code and needs a C++ compiler; install g++ or set $CXX")
    figures = [figure for kind in what for figure in figures_of(kind, arch, T, images, pairs, device)]
    machine = environment(torch.device(device), 1, 0)
    if as_json:
        rows = [{**asdict(figure), "ratio": figure.ratio} for figure in figures]
        asked = {"arch": arch, "what": list(what), "T": T, "images": images, "pairs": pairs}
        print(json.dumps({**asked, "environment": machine.model_dump(), "figures": rows}, indent=2))
        return 0
    numbers = [Column(heading, justify="right") for heading in ("rate", "limit", "ratio", "range")]
    title = f"{arch}, {machine.device}, {machine.threads} threads, torch {machine.torch}"
    table = Table("what", "against", *numbers, title=title)
    for figure in figures:
        medians = [statistics.median(values) for values in (figure.ours, figure.theirs)]
        rates = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in medians]
        spread = f"{min(figure.ratios):.2f} to {max(figure.ratios):.2f}"
        table.add_row(figure.name, figure.limit, *rates, f"{figure.ratio:.2f}", spread)
    Console(width=150).print(table)
    units = ", ".join(sorted({figure.unit for figure in figures}))
    print(f"medians of {pairs} pairs; {units}")
    return 0
