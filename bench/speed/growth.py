"""Memory of a simulation, and how its time grows with T, images, depth and width."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from bench.nets.architectures import CifarResNet, count_macs
from bench.snn.simulate import SpikingNetwork, simulate
from bench.speed.evaluation import BATCH, Nets
from bench.speed.figures import Figure, lively_qcfs, noise, rate

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
IMAGES = (25, 50, 100, 200)
DEPTHS = {8: 1, 14: 2, 20: 3, 32: 5}
WIDTHS = (8, 16, 32, 64)


def peak_bytes(work: Callable[[], object], device: str) -> float:
    """The most memory that ``work`` has allocated at one time, what was there before left out."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return float(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    level = peak = 0
    for _, change in changes:
        level += change
        peak = max(peak, level)
    return float(peak)


@torch.inference_mode()
def memory(arch: str, T: int, images: int, pairs: int, device: str) -> list[Figure]:
    """Peak memory of simulating a batch of 100, against one forward pass of the ANN with that batch."""
    nets = Nets(arch, noise(BATCH, device), T)
    figures = []
    for steps in sorted({1, T, 4 * T}):

        def simulated(steps: int = steps) -> float:
            return peak_bytes(lambda: [None for _ in simulate(nets.compiled, nets.x, steps)], device)

        figure = Figure(f"memory, SNN, batch {BATCH}, T = {steps}", f"ANN, batch {BATCH}", "bytes")
        figures.append(figure.measure(simulated, lambda: peak_bytes(lambda: nets.ann(nets.x), device), pairs))
    return figures


@torch.inference_mode()
def growth(arch: str, T: int, images: int, pairs: int, device: str) -> list[Figure]:
    """Rates of larger simulations against a middle one: 1 where the cost is linear.

    In image-steps a second for T and for images, in multiply-accumulates of the ANN times steps for depth and width.
    """
    nets = Nets(arch, noise(max(IMAGES), device), T)

    def simulated(snn: SpikingNetwork, count: int, steps: int, macs: int = 1) -> Callable[[], float]:
        x = nets.x[:count]
        return lambda: rate(lambda: [None for _ in simulate(snn, x, steps)], count * steps * macs)

    base = simulated(nets.compiled, BATCH, T)
    figures = [
        Figure(f"T = {t}", f"T = {T}", "image-steps/s").measure(simulated(nets.compiled, BATCH, t), base, pairs)
        for t in STEPS
    ]
    figures += [
        Figure(f"{n} images", f"{BATCH} images", "image-steps/s").measure(simulated(nets.compiled, n, T), base, pairs)
        for n in IMAGES
    ]

    def of_shape(width: int, blocks: int) -> Callable[[], float]:
        with torch.inference_mode(False):
            torch.manual_seed(0)
            net = CifarResNet((width, 2 * width, 4 * width), blocks, 10)
            macs = count_macs(net, (3, 32, 32))
            snn = lively_qcfs(net, noise(BATCH, device)).convert(T, [])
        snn.compiled = True
        return simulated(snn, BATCH, T, macs)

    middle = of_shape(16, 3)
    figures += [
        Figure(f"{depth} layers", "20 layers", "MAC-steps/s").measure(of_shape(16, blocks), middle, pairs)
        for depth, blocks in DEPTHS.items()
    ]
    figures += [
        Figure(f"width {width}", "width 16", "MAC-steps/s").measure(of_shape(width, 3), middle, pairs)
        for width in WIDTHS
    ]
    return figures
