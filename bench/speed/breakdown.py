"""Where the time goes: in convolutions, compiled kernels, the rest; in units of what it stands beside."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.config
from torch.profiler import ProfilerActivity, profile

from bench.speed.evaluation import Nets
from bench.speed.figures import Figure, noise, rate
from bench.speed.training import BATCH, METHODS, Stepper, ready_batches
from methods.relu import ReLU

# Parts of the names that torch gives to its own convolutions and to the kernels that it generates.
KINDS = {"convolutions": ("convolution",), "compiled kernels": ("cpp_fused", "triton_")}
REST = "the rest"
# What is done, and how many images it treats, by name.
Works = dict[str, tuple[Callable[[], object], int]]


def microseconds(work: Callable[[], object], device: str) -> dict[str, float]:
    """Microseconds that ``work`` spends in operators of each of :data:`KINDS`, and in all else."""
    activities = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        whole = 1 / rate(work, 1e-6)
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        for kind, names in KINDS.items():
            if any(name in event.key for name in names):
                spent[kind] += own
                break
    return {**spent, REST: whole - sum(spent.values())}


def parts(works: Works, unit: str, pairs: int, device: str) -> list[Figure]:
    """Each kind of operator of each work, against the whole of the first one, for one image (or image and step).

    Args:
        works: what is done, and how many images it treats, by name.
        unit: of both.
        pairs: measurements.
        device: ``cpu`` or ``cuda``.
    """
    limit = next(iter(works))
    found = {(name, kind): Figure(f"time, {name}: {kind}", limit, unit) for name in works for kind in (*KINDS, REST)}
    for work, _ in works.values():
        work()
    for _ in range(pairs):
        spent = {name: microseconds(work, device) for name, (work, _) in works.items()}
        whole = sum(spent[limit].values()) / works[limit][1]
        for (name, kind), figure in found.items():
            figure.ours.append(spent[name][kind] / works[name][1])
            figure.theirs.append(whole)
    return [figure for figure in found.values() if statistics.median(figure.ours) > 0]


def breakdown(arch: str, T: int, images: int, batches: int, pairs: int, device: str) -> list[Figure]:
    """A simulation against the ANN, and training steps against those with ReLU, part by part."""
    # Generated kernels are named in a profile only if they are generated so.
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
        ready = ready_batches(batches, device)
        methods: dict[str, type[Any]] = {"ReLU": ReLU, **METHODS}
        trainings: Works = {
            f"training, {name}, compiled": (Stepper(arch, method, "compiled", ready, device), batches * BATCH)
            for name, method in methods.items()
        }
        trained = parts(trainings, "µs/image", pairs, device)
        with torch.inference_mode():
            nets = Nets(arch, noise(images, device), T)
            simulations: Works = {
                "eager ANN": (nets.passing(nets.ann, nets.batch), images),
                f"SNN, T = 1..{T}": (nets.simulating(nets.compiled), images * T),
                f"SNN, T = 1..{T}, not counted": (nets.simulating(nets.uncounted()), images * T),
                f"SNN, T = 1..{T}, bf16": (nets.simulating(nets.reduced), images * T),
            }
            return parts(simulations, "µs/image-step", pairs, device) + trained
