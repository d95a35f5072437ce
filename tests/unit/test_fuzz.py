"""Random small nets, written as people write them: converted right, or refused by name."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from reference import randomise
from steps import steps_of
from torch import Tensor, nn

from bench import convert, simulate
from bench.errors import UserError
from bench.snn.layerwise import execution_order

C, SIDE, T = 4, 6, 6


class Program(nn.Module):
    """A net that runs a list of operations on a growing list of values, which may be other names of one memory."""

    def __init__(self, program: list[tuple[str, int, int]], weights: int) -> None:
        super().__init__()
        self.program = program
        self.convolutions = nn.ModuleList(nn.Conv2d(C, C, 3, padding=1) for _ in program)
        self.norms = nn.ModuleList(nn.BatchNorm2d(C) for _ in program)
        self.mixers = nn.ModuleList(nn.Conv2d(2 * C, C, 1) for _ in program)
        self.acts = nn.ModuleList(nn.ReLU(inplace=bool(k % 2)) for k, _ in enumerate(program))
        self.shared, self.six, self.hard = nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0.0, 0.8)
        self.dropout, self.pool = nn.Dropout(0.5), nn.MaxPool2d(3, 1, 1)
        self.scales = nn.Parameter(torch.ones(3))
        self.matrix = nn.Parameter(torch.eye(SIDE))
        self.first, self.head = nn.Conv2d(3, C, 3, padding=1), nn.Linear(C, 3)
        randomise(self.double(), weights)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.shared(self.first(x))]
        for number, (operation, a, b) in enumerate(self.program):
            values.append(OPERATIONS[operation](self, number, values[a % len(values)], values[b % len(values)]))
        return self.head(self.acts[0](self.first(x) + sum(values)).mean((2, 3)))


def _add_in_place(_: Program, __: int, y: Tensor, z: Tensor) -> Tensor:
    y += z
    return y


def _scale_in_place(net: Program, _: int, y: Tensor, __: Tensor) -> Tensor:
    y *= 0.5
    return y


def _dropped_result(net: Program, _: int, y: Tensor, z: Tensor) -> Tensor:
    y.add_(z)
    return z


def _part_in_place(net: Program, _: int, y: Tensor, z: Tensor) -> Tensor:
    part = y[:, :2]
    part += 0.1
    return z


Operation = Callable[[Program, int, Tensor, Tensor], Tensor]
OPERATIONS: dict[str, Operation] = {
    "convolution": lambda net, k, y, z: net.convolutions[k](y),
    "convolution and BN": lambda net, k, y, z: net.norms[k](net.convolutions[k](y)),
    "BN alone": lambda net, k, y, z: net.norms[k](y),
    "F.relu": lambda net, k, y, z: F.relu(net.convolutions[k](y)),
    "relu_": lambda net, k, y, z: net.convolutions[k](y).relu_(),
    "F.relu in place on a value": lambda net, k, y, z: F.relu(y, inplace=True),
    "nn.ReLU": lambda net, k, y, z: net.acts[k](net.convolutions[k](y)),
    "nn.ReLU on a value": lambda net, k, y, z: net.acts[k](y),
    "shared nn.ReLU": lambda net, k, y, z: net.shared(net.convolutions[k](y)),
    "ReLU6": lambda net, k, y, z: net.six(net.convolutions[k](y)),
    "Hardtanh": lambda net, k, y, z: net.hard(net.convolutions[k](y)),
    "clamp": lambda net, k, y, z: net.convolutions[k](y).clamp(0, 0.7),
    "sum": lambda net, k, y, z: y + z,
    "difference": lambda net, k, y, z: y - 0.5 * z,
    "+=": _add_in_place,
    "*=": _scale_in_place,
    "add_ without its result": _dropped_result,
    "+= on a part": _part_in_place,
    "other name": lambda net, k, y, z: y,
    "view and back": lambda net, k, y, z: y.view(y.size(0), -1).view(y.shape[0], C, SIDE, SIDE),
    "transposed": lambda net, k, y, z: y.transpose(2, 3),
    "concatenation": lambda net, k, y, z: net.mixers[k](torch.cat([y, z], 1)),
    "stack": lambda net, k, y, z: torch.stack([y, z]).mean(0),
    "average pooling": lambda net, k, y, z: F.avg_pool2d(y, 3, 1, 1),
    "max-pooling": lambda net, k, y, z: net.pool(y),
    "F.max_pool2d": lambda net, k, y, z: F.max_pool2d(y, 3, 1, 1),
    "padding": lambda net, k, y, z: F.pad(y, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1],
    "interpolation": lambda net, k, y, z: F.avg_pool2d(F.interpolate(y, scale_factor=2), 2),
    "dropout": lambda net, k, y, z: F.dropout(net.dropout(y), 0.5, training=net.training),
    "mixture by parameters": lambda net, k, y, z: net.scales.softmax(0)[0] * y + net.scales[1] * z,
    "F.conv2d": lambda net, k, y, z: F.conv2d(y, net.convolutions[k].weight * 0.5, padding=1),
    "matrix": lambda net, k, y, z: y @ net.matrix,
    "clone": lambda net, k, y, z: y.clone(),
}  # fmt: skip
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 7), st.integers(0, 7)), min_size=3, max_size=9
)


def check(program: list[tuple[str, int, int]], weights: int) -> str:
    """``converted``, or the reason of a refusal."""
    net = Program(program, weights)
    before = copy.deepcopy(net.state_dict())
    draw = torch.Generator().manual_seed(weights)
    calibration, images = (torch.randn(n, 3, SIDE, SIDE, generator=draw, dtype=torch.float64) for n in (12, 3))
    pooled = any("max" in operation.lower() for operation, _, _ in program)
    # A start that no multiple of a threshold meets: at a tie, the rounding of a sum decides.
    options = {"v_init": 0.413, "percentile": 99.0}
    given = images.clone()
    try:
        snn = convert(net, "burst" if pooled else "opi", calibration, **options)
    except UserError as error:
        return str(error)
    thresholds = [snn.net.get_submodule(name).threshold for name in execution_order(snn.net)]
    expected, _ = steps_of(net, images, T, thresholds, 0.413, levels=5 if pooled else 1)
    assert torch.allclose(simulate(snn, given, T), expected, rtol=1e-7, atol=1e-9), program
    assert torch.equal(given, images), "the caller's images were changed"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return "converted"


def fuzz(examples: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # shrinking takes minutes, and the failing program is printed anyway
        suppress_health_check=list(HealthCheck),
    )
    @given(program=PROGRAMS, weights=st.integers(0, 1000))
    def run(program: list[tuple[str, int, int]], weights: int) -> None:
        outcomes[check(program, weights)] += 1

    run()
    return outcomes


def test_random_nets_are_their_own_step_loop_or_refused() -> None:
    outcomes = fuzz(40)
    assert outcomes["converted"] > outcomes.total() / 2, outcomes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_random_nets_are_their_own_step_loop_or_refused() -> None:
    outcomes = fuzz(500)
    assert outcomes["converted"] > outcomes.total() / 2, outcomes
