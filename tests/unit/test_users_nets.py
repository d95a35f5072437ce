"""Nets, inputs and machines that people really have: the right answer, or one line that says why not.

The right answers come from the user's own network, run once per time-step (``steps.py``).
"""

from __future__ import annotations

import copy
import pickle
import types
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import StepNeuron, randomise, refused
from steps import steps_of
from tiny import normal
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench import convert, simulate
from bench.errors import ConversionWarning
from bench.registry.methods import METHODS
from bench.snn.layerwise import execution_order
from methods.qcfs import QCFS

T, V_INIT = 12, 0.413
IMAGES, CALIBRATION = normal(3, 3, 8, 8), normal(12, 3, 8, 8, seed=1)


class Net(nn.Module):
    """Two convolutions, BN and a head; ``body`` is what the user's forward does."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.c = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.fc = nn.ReLU(), nn.Linear(6, 5)
        self.w = nn.Parameter(torch.tensor([0.3, 0.7]))
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        for name, module in modules.items():
            self.add_module(name, module)
        self.body = body
        randomise(self.double(), 0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


def assert_same_as_own_loop(net: nn.Module, last: Callable[[Tensor], Tensor] = lambda y: y, **options: object) -> None:
    """What convert makes of it is the net run step by step; neither the net nor the images change."""
    method = str(options.pop("method", "opi"))
    before, given, seen = copy.deepcopy(net.state_dict()), IMAGES.clone(), CALIBRATION.clone()
    attributes = set(vars(net))
    snn = convert(net, method, seen, v_init=V_INIT, percentile=99.0)
    logits = simulate(snn, given, T)
    thresholds = [snn.net.get_submodule(name).threshold for name in execution_order(snn.net)]
    expected, rates = steps_of(net, IMAGES, T, thresholds, V_INIT, levels=5 if method == "burst" else 1)
    assert torch.allclose(last(logits), last(expected), rtol=1e-9, atol=1e-9)
    assert min(rates) > 0.001 and expected.sum(0).std(0).max() > 1e-6
    assert torch.equal(given, IMAGES) and torch.equal(seen, CALIBRATION), "the caller's images were changed"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert set(vars(net)) == attributes


# ------------------------------------------------------------------------------------- in place, and other names


def _normalises(net: Net, x: Tensor) -> Tensor:
    x -= net.mean
    x /= 0.25
    return net.head(net.relu(net.a(x)))


def _residual(act: Callable[[Net, Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    def body(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        res = y
        y += net.b(y)
        z = net.c(act(net, y)) + res
        return net.head(act(net, z))

    return body


def _view_of_what_changes(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    flat = y.flatten(2)
    y += 0.5
    return net.head(F.relu(y)) + net.fc(F.relu(flat).mean(2))


def _result_dropped(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu(y, inplace=True)
    return net.head(net.c(y))


IN_PLACE: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "the input is normalised": _normalises,
    "add_ on the input": lambda net, x: net.head(net.relu(net.a(x.add_(-0.5)))),
    "residual, F.relu": _residual(lambda _, z: F.relu(z)),
    "residual, nn.ReLU": _residual(lambda net, z: net.relu(z)),
    "residual, relu_": _residual(lambda _, z: z.relu_()),
    "a view of what changes": _view_of_what_changes,
    "the result is dropped": _result_dropped,
}


@pytest.mark.parametrize("what", IN_PLACE)
def test_what_works_in_place_is_followed_under_every_name(what: str) -> None:
    assert_same_as_own_loop(Net(IN_PLACE[what]))


def test_calibration_layer_by_layer_follows_names_too() -> None:
    net = Net(IN_PLACE["residual, nn.ReLU"])
    rates = simulate(convert(net, "snnc_lp", CALIBRATION, T=64), IMAGES, 64).mean(0)
    assert (rates - net(IMAGES)).abs().max() < 0.05 * net(IMAGES).abs().max()


# ------------------------------------------------------------------------------------------------------- hooks


def _sequential(*extra: nn.Module) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), *extra, nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    )  # fmt: skip
    randomise(net.double(), 0)
    return net.eval()


def _in_place_hook(_: nn.Module, __: object, output: Tensor) -> None:
    output.mul_(0.5)


def _hooked(where: str) -> nn.Module:
    if where.startswith("net"):
        net: nn.Module = Net(lambda net, x: net.head(F.relu(net.a(x)))) if "F.relu" in where else _sequential()
        if "pre" in where:
            net.register_forward_pre_hook(lambda _, inputs: (inputs[0] / 2,))
        else:
            net.register_forward_hook(lambda _, __, output: output * 3)
        return net
    net = _sequential(nn.BatchNorm2d(6))
    module = net[{"convolution": 0, "BN": 1, "ReLU": 2, "ReLU, clipped": 2, "ReLU, pre": 2, "in place": 0}[where]]
    if where == "ReLU, clipped":
        module.register_forward_hook(lambda _, __, output: output.clamp(max=0.3))
    elif where == "ReLU, pre":
        module.register_forward_pre_hook(lambda _, args, kwargs: ((args[0] * 2 - 0.2,), kwargs), with_kwargs=True)
    elif where == "in place":
        module.register_forward_hook(_in_place_hook)
    else:
        module.register_forward_hook(lambda _, __, output: output * 2 + 0.1)
    return net


@pytest.mark.parametrize(
    "where",
    ["convolution", "BN", "ReLU", "ReLU, pre", "in place", "net", "net, pre", "net, F.relu", "net, pre, F.relu"],
)
def test_hooks_that_change_values_are_part_of_the_net(where: str) -> None:
    assert_same_as_own_loop(_hooked(where))


def test_a_hook_that_clips_a_relu_is_a_ceiling() -> None:
    """The loop of the tests knows a clip of a ReLU as two rectifiers; so it is compared in the limit."""
    net = _hooked("ReLU, clipped")
    rates = simulate(convert(net, "max_norm", CALIBRATION), IMAGES, 2000).mean(0)
    assert (rates - net(IMAGES)).abs().max() < 0.01 * net(IMAGES).abs().max()


def test_a_hook_that_only_looks_is_not_called_again_and_again() -> None:
    net, seen = _sequential(), []
    net[0].register_forward_hook(lambda _, __, output: seen.append(output.shape))
    snn = convert(net, "max_norm", CALIBRATION)
    calls = len(seen)
    expected = simulate(convert(_sequential(), "max_norm", CALIBRATION), IMAGES, T)
    assert torch.equal(simulate(snn, IMAGES, T), expected)
    assert len(seen) == calls


# ------------------------------------------------------------------------------------- nets that cannot be converted


class Remembers(nn.Module):
    """Adds what it saw last."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(192, 8), nn.Linear(8, 3)
        self.last: Tensor | float = 0.0
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.fc(x.flatten(1)))
        answer = self.out(y + self.last)
        self.last = float(y.detach().sum()) if not isinstance(y, torch.fx.Proxy) else 0.0
        return answer


class Counts(nn.Module):
    """Keeps the number of its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(192, 8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(1))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.out(F.relu(self.fc(x.flatten(1)))) + self.calls


class Frames(nn.Module):
    """Rows of an image are frames, folded into the batch."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.a, self.b, self.mean = nn.Linear(8, 6), nn.Linear(6, 3), mean
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x.reshape(-1, 8))))
        return y.view(x.shape[0], -1, 3).mean(1) if self.mean else y


class Extractor(nn.Module):
    """Answers with what a hook has put aside; the hook of a copy still writes to the original."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net, self.found = net, {}
        net.relu.register_forward_hook(lambda _, __, output: self.found.update(relu=output))

    def forward(self, x: Tensor) -> Tensor:
        self.net(x)
        return self.net.head(self.found["relu"])


class TwoInputs(Net):
    """Needs more than images."""

    def __init__(self) -> None:
        super().__init__(lambda net, x: x)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.head(self.relu(self.a(x) + self.a(z)))


def _writes(net: Net, x: Tensor) -> Tensor:
    y = F.relu(net.a(x))
    y[:, 0] = 0
    return net.head(y)


def _part(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    part = y[:, :2]
    part += 1
    return net.head(F.relu(y))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "frames in the batch": (lambda: Frames(False), "first dimension of a is not the images"),
    "frames in the batch, averaged": (lambda: Frames(True), "first dimension of a is not the images"),
    "active dropout": (lambda: Net(lambda net, x: net.head(F.dropout(F.relu(net.a(x))))), "dropout.*stays active"),
    "noise": (lambda: Net(lambda net, x: net.head(F.relu(net.a(x)) + torch.rand(8, 8))), "draws random numbers"),
    "statistics of the batch": (
        lambda: Net(lambda net, x: net.head(F.relu(net.a(x - x.mean(0, keepdim=True))))),
        "mixes the images of a batch",
    ),
    "a shuffle of the batch": (lambda: Net(lambda net, x: net.head(F.relu(net.a(x.roll(1, 0))))), "mixes the images"),
    "a slice of the batch": (lambda: Net(lambda net, x: net.head(F.relu(net.a(x[:1])))), "first dimension"),
    "state in an attribute": (Remembers, "keeps state from one call to the next"),
    "state in a buffer": (Counts, "keeps state from one call to the next"),
    "a part is overwritten": (lambda: Net(_writes), r"torch\.cat"),
    "a part is changed in place": (lambda: Net(_part), "in place on a part"),
    "rounding": (lambda: Net(lambda net, x: net.head(F.relu(net.a(x)).to(torch.int32).double())), "function to, which"),
    "rounding in a sum": (
        lambda: Net(lambda net, x: net.fc(F.relu(net.a(x)).sum((2, 3), dtype=torch.int32).double())), "function sum"
    ),
    "leaky_relu_": (lambda: Net(lambda net, x: net.head(F.leaky_relu_(net.a(x)))), "leaky_relu, which has negative"),
    "a mask": (lambda: Net(lambda net, x: net.head(F.relu(net.a(x)) * ((x > 0) & (x < 1)).sum())), "function and_"),
    "no weights yet": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), r"0\.weight has no shape yet"),
    "no values": (lambda: Net(_normalises).to("meta"), "is on the meta device"),
    "a class": (lambda: Net, "is a Net; give a trained nn.Module"),
    "a hook for another net": (lambda: Extractor(Net(_normalises)), "does not take images"),
    "a value is read": (lambda: Net(lambda net, x: net.head(F.relu(net.a(x))) * float(x.max())), "cannot trace it"),
    "a branch on values": (
        lambda: Net(lambda net, x: net.head(F.relu(net.a(x))) if x.sum() > 0 else x), "values of the images"
    ),
    "len": (lambda: Net(lambda net, x: net.head(F.relu(net.a(x)).view(len(x), 6, 8, 8))), r"write x\.shape"),
    "two inputs": (TwoInputs, "needs z besides the images"),
    "indices of maxima": (
        lambda: Net(lambda net, x: net.head(net.p(F.relu(net.a(x)))[0]), p=nn.MaxPool2d(2, return_indices=True)),
        "indices of maxima",
    ),
    "GELU": (lambda: Net(lambda net, x: net.head(F.gelu(net.b(F.relu(net.a(x)))))), "gelu.*nn.ReLU instead"),
    "PReLU": (lambda: Net(lambda net, x: net.head(net.p(net.a(x))), p=nn.PReLU()), r"p \(PReLU\).*negative"),
    "Hardtanh below 0": (lambda: Net(lambda net, x: net.head(net.p(net.a(x))), p=nn.Hardtanh()), r"p \(Hardtanh\)"),
    "GroupNorm": (lambda: Net(lambda net, x: net.head(net.relu(net.p(net.a(x)))), p=nn.GroupNorm(2, 6)), "statistic"),
    "a gate": (lambda: Net(lambda net, x: net.head(F.relu(net.a(x)) * F.relu(net.a(x)).mean((2, 3), True))), "gate"),
    "NaN weights": (lambda: _with(Net(_normalises), "a", float("nan")), r"^a\.weight has values that are NaN"),
    "an unbounded weight": (lambda: _with(Net(_normalises), "fc", float("inf")), r"^fc\.weight has values"),
    "a scripted part": (
        lambda: Net(lambda net, x: net.head(net.relu(net.p(x))), p=torch.jit.script(nn.Conv2d(3, 6, 3).double())),
        "^p is a ScriptModule",
    ),
}  # fmt: skip


def _with(net: Net, layer: str, value: float) -> Net:
    net.get_submodule(layer).weight.data.view(-1)[0] = value
    return net


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_cannot_be_converted_is_refused_by_name(what: str) -> None:
    make, pattern = REFUSED[what]
    with refused(pattern):
        convert(make(), "max_norm", CALIBRATION)


@pytest.mark.parametrize("what", ["statistics of the batch", "a shuffle of the batch"])
def test_one_calibration_image_shows_what_mixes_images_too(what: str) -> None:
    with refused("mixes the images"):
        convert(REFUSED[what][0](), "max_norm", CALIBRATION[:1])


def test_a_wall_of_refused_modules_is_one_line_with_a_count() -> None:
    net = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.SiLU()) for _ in range(50)), nn.Linear(4, 2), nn.ReLU())
    with refused(r"0\.1 \(SiLU\) .*\(50 in all\)$"):
        convert(net, "max_norm", torch.randn(4, 4))


def test_a_neuron_behind_a_neuron_ends_what_a_spike_reaches() -> None:
    """Only the second's spikes meet the weights behind it, and counting them runs no neuron."""
    net = Net(lambda net, x: net.fc(F.relu(F.relu(net.a(x)).flatten(2)).mean(2)))
    snn = convert(net, "max_norm", CALIBRATION)
    simulate(snn, IMAGES, 4)
    assert next(float(neuron.fan_out.sum()) for neuron in snn.neurons.values()) == 0


# ------------------------------------------------------------------------------------ operations that are exact

OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "nn.ReLU6": lambda: Net(lambda net, x: net.head(net.p(net.b(net.p(net.a(4 * x))))), p=nn.ReLU6()),
    "nn.Hardtanh": lambda: Net(lambda net, x: net.head(net.p(net.a(x))), p=nn.Hardtanh(0, 0.5)),
    "clamp": lambda: Net(lambda net, x: net.head(net.a(x).clamp(0, 0.5))),
    "clamp from below": lambda: Net(lambda net, x: net.head(torch.clamp(net.a(x), min=0))),
    "squeeze": lambda: Net(lambda net, x: net.fc(F.adaptive_avg_pool2d(F.relu(net.a(x)), 1).squeeze(-1).squeeze(-1))),
    "sum": lambda: Net(lambda net, x: net.fc(F.relu(net.a(x)).sum((2, 3)))),
    "stack": lambda: Net(lambda net, x: net.head(torch.stack([F.relu(net.a(x)), net.a(x)]).mean(0))),
    "clone and double": lambda: Net(lambda net, x: net.head(F.relu(net.a(x)).clone().double())),
    "interpolate": lambda: Net(
        lambda net, x: net.head(F.relu(net.b(F.interpolate(F.relu(net.a(x)), scale_factor=2, mode="bilinear"))))
    ),
    "pad": lambda: Net(lambda net, x: net.head(net.b(F.pad(F.relu(net.a(x)), (1, 1, 1, 1), mode="reflect")))),
    "parameters": lambda: Net(lambda net, x: net.head(net.w[0] * F.relu(net.a(x)) + net.w.softmax(0)[1] * net.a(x))),
    "matrix of parameters": lambda: Net(lambda net, x: F.relu(net.a(x)).mean((2, 3)) @ net.fc.weight.T),
    "F.linear": lambda: Net(lambda net, x: F.linear(F.relu(net.a(x)).mean((2, 3)), net.fc.weight * 2, net.fc.bias)),
    "F.conv2d": lambda: Net(lambda net, x: net.head(F.conv2d(F.relu(net.a(x)), net.b.weight - net.b.weight.mean()))),
    "features": lambda: Net(lambda net, x: F.adaptive_avg_pool2d(net.b(F.relu(net.a(x))), 1)),
    "a regression": lambda: Net(lambda net, x: net.head(F.relu(net.a(x)))[:, 0]),
    "SyncBatchNorm": lambda: Net(lambda net, x: net.head(F.relu(net.p(net.a(x)))), p=nn.SyncBatchNorm(6)),
    "1-D": lambda: Net(lambda net, x: net.fc(net.p(F.relu(net.a(x)).flatten(2)).mean(2)), p=nn.AvgPool1d(2)),
    "input by name": lambda: Net(lambda net, x: net.head(net.relu(input=net.a(input=x)))),
    "F.batch_norm": lambda: Net(
        lambda net, x: net.head(
            F.relu(F.batch_norm(net.a(x), net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias))
        )
    ),
    "a subclass of BatchNorm2d": lambda: Net(lambda net, x: net.head(F.relu(net.p(net.a(x)))), p=ShiftedNorm(6)),
    "a subclass of ReLU": lambda: Net(lambda net, x: net.head(net.p(net.a(x))), p=ShiftedReLU()),
    "zeros beside spikes": lambda: Net(
        lambda net, x: net.head(net.p(_widened(F.relu(net.a(x))))), p=nn.Conv2d(18, 6, 1)
    ),
    "squeeze before a layer": lambda: Net(lambda net, x: net.fc(F.adaptive_avg_pool2d(F.relu(net.a(x)), 1).squeeze())),
    "squeeze at the end": lambda: Net(lambda net, x: net.p(F.relu(net.a(x)).mean((2, 3))).squeeze(), p=nn.Linear(6, 1)),
    "a tensor as attribute": lambda: _with_mean(Net(lambda net, x: net.head(net.relu(net.a(x - net.plain))))),
    "a forward of the instance": lambda: _patched("net"),
    "a forward of a ReLU's instance": lambda: _patched("relu"),
    "a forward of a BN's instance": lambda: _patched("norm"),
    "an attribute image_shape": lambda: _shaped(Net(lambda net, x: net.head(F.relu(net.a(x * net.image_shape[0]))))),
    "a max-pooling that is not called": lambda: Net(lambda net, x: net.head(F.relu(net.a(x))), p=nn.MaxPool2d(2)),
}


class ShiftedNorm(nn.BatchNorm2d):
    """With a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1


class ShiftedReLU(nn.ReLU):
    """With a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x - 0.1)


def _widened(y: Tensor) -> Tensor:
    return torch.cat([y, torch.zeros_like(y), y.new_zeros(y.shape[0], 6, 8, 8)], 1)


def _with_mean(net: Net) -> Net:
    net.plain = torch.full((3, 1, 1), 0.2, dtype=torch.float64)
    return net


def _patched(which: str) -> Net:
    """``forward`` put on one object, as people do who do not want a subclass."""
    net = Net(lambda net, x: net.head(net.relu(net.norm(net.a(x)))))
    forwards: dict[str, Callable[..., Tensor]] = {
        "net": lambda self, x: self.head(F.relu(self.b(F.relu(self.a(x))))),
        "relu": lambda self, x: F.relu(2 * x),
        "norm": lambda self, x: 3 * x,
    }
    module = net if which == "net" else net.get_submodule(which)
    module.forward = types.MethodType(forwards[which], module)
    return net


def _shaped(net: Net) -> Net:
    net.image_shape = (2, 3)
    return net


@pytest.mark.parametrize("what", OPERATIONS)
def test_an_exact_operation_is_converted(what: str) -> None:
    assert_same_as_own_loop(OPERATIONS[what]())


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 2),
        nn.MaxPool2d(3, 2, 1),
        nn.AdaptiveMaxPool2d(2),
        lambda x: F.max_pool1d(x.flatten(2), 2).unsqueeze(3),
        lambda x: F.adaptive_max_pool2d(x, 3),
    ],
    ids=["F.max_pool2d", "nn.MaxPool2d", "adaptive", "1-D", "F.adaptive_max_pool2d"],
)
def test_max_pooling_however_it_is_written(pool: Callable[[Tensor], Tensor]) -> None:
    modules = {"pool": pool} if isinstance(pool, nn.Module) else {}
    body = (lambda net, x: net.head(net.pool(F.relu(net.a(x))))) if modules else (
        lambda net, x: net.head(pool(F.relu(net.a(x))))
    )  # fmt: skip
    assert_same_as_own_loop(Net(body, **modules), method="burst")


def test_a_neuron_that_may_send_more_than_its_threshold_does_not_stand_for_relu6() -> None:
    with refused(r"^p clips at 6, and a neuron of Burst"):
        convert(OPERATIONS["nn.ReLU6"](), "burst", CALIBRATION)


@pytest.mark.parametrize("method", [n for n, e in METHODS.items() if "relu" in e.sources and e.load().saturates])
def test_every_method_that_takes_relu6_keeps_its_ceiling(method: str) -> None:
    net, T = OPERATIONS["nn.ReLU6"](), 256
    options = {"ltb": {"batch": 8}, "snnc_ap": {"iterations": 20}, "ftbc": {"batch": 8}}.get(method, {})
    if METHODS[method].sources != ["relu"]:
        options["source"] = "relu"
    images = CALIBRATION[:8]
    snn = convert(net, method, images, T=T, **options)
    logits, expected = simulate(snn, images, T).mean(0), net.eval()(images)
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()


class LogSoftmax(nn.Module):
    """As a function."""

    def forward(self, y: Tensor) -> Tensor:
        return F.log_softmax(y, dim=1)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1), LogSoftmax()])
def test_a_softmax_at_the_end_is_left_out_and_said(last: nn.Module) -> None:
    net = Net(lambda net, x: net.p(net.head(F.relu(net.a(x)))), p=last)
    with pytest.warns(ConversionWarning, match="left out; this does not change the ranking"):
        snn = convert(net, "max_norm", CALIBRATION)
    rates = simulate(snn, IMAGES, 2000).mean(0)
    assert (last(rates) - net(IMAGES)).abs().max() < 0.02


def test_half_precision_is_raised_and_said() -> None:
    net = Net(lambda net, x: net.head(F.relu(net.a(x))))
    with pytest.warns(ConversionWarning, match="torch.float16.*single precision"):
        snn = convert(net.half(), "max_norm", CALIBRATION.half())
    assert simulate(snn, IMAGES.float(), 4).dtype == torch.float32
    assert next(net.parameters()).dtype == torch.float16


# --------------------------------------------------------------------------- one net for one size, options, wrappers


class Asks(Net):
    """Pads small images, and takes options."""

    def __init__(self) -> None:
        super().__init__(lambda net, x: x)

    def forward(
        self, x: Tensor, extra: Tensor | None = None, labels: Tensor | None = None, features: bool = False
    ) -> Tensor:
        if extra is not None:
            x = x * extra
        y = F.relu(self.a(x))
        if y.shape[-1] < 12:
            y = F.pad(y, (1, 1, 1, 1))
        y = self.relu(self.b(y))
        if labels is not None:
            return F.cross_entropy(self.head(y), labels)
        return y if features else self.head(y)


@pytest.mark.parametrize("method", ["max_norm", "snm", "snnc_lp", "burst", "opi"])
def test_questions_and_options_are_decided_by_the_calibration_images(method: str) -> None:
    net = Asks()
    options = {"T": 64} if method == "snnc_lp" else {}
    snn = convert(net, method, CALIBRATION, **options)
    rates = simulate(snn, IMAGES, 64).mean(0)
    assert (rates - net(IMAGES)).abs().max() < 0.2 * net(IMAGES).abs().max()
    with refused(r"asked for their shape.*\[3, 8, 8\]"):
        simulate(snn, normal(2, 3, 12, 12), 64)


def test_wrappers_are_taken_off() -> None:
    net = Net(lambda net, x: net.head(F.relu(net.a(x))))
    expected = simulate(convert(net, "max_norm", CALIBRATION), IMAGES, 4)
    for wrapped in (nn.DataParallel(net), torch.compile(net), torch.compile(nn.DataParallel(net))):
        assert torch.equal(simulate(convert(wrapped, "max_norm", CALIBRATION), IMAGES, 4), expected)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_of_a_part_are_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = Net(lambda net, x: net.head(net.p(x)), p=nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()))
    expected = simulate(convert(net, "max_norm", CALIBRATION), IMAGES, 4)
    net.p = wrap(net.p)
    assert torch.equal(simulate(convert(net, "max_norm", CALIBRATION), IMAGES, 4), expected)


def test_a_net_may_keep_what_it_saw() -> None:
    """An activation with a history cannot be copied as it is."""

    def keeps(net: Net, x: Tensor) -> Tensor:
        net.seen, net.all = net.a(x), [net.b(net.a(x))]
        return net.head(F.relu(net.seen))

    net = Net(keeps)
    expected = simulate(convert(net, "max_norm", CALIBRATION), IMAGES, 4)
    net(IMAGES)
    assert torch.equal(simulate(convert(net, "max_norm", CALIBRATION), IMAGES, 4), expected)
    assert net.seen.requires_grad


def test_a_net_without_parameters_and_one_made_in_inference_mode() -> None:
    bare = nn.Sequential(nn.ReLU(), nn.Flatten())
    images = CALIBRATION.float()
    rates = simulate(convert(bare, "max_norm", images), images, 1000).mean(0)
    assert (rates - bare(images)).abs().max() < 1e-3 * 4
    with torch.inference_mode():
        net = _sequential()
    expected = simulate(convert(_sequential(), "max_norm", CALIBRATION), IMAGES, 4)
    assert torch.equal(simulate(convert(net, "max_norm", CALIBRATION), IMAGES, 4), expected)


def test_a_converted_net_can_be_pickled() -> None:
    snn = convert(Net(lambda net, x: net.head(F.relu(net.a(x)))), "max_norm", CALIBRATION)
    assert torch.equal(simulate(pickle.loads(pickle.dumps(snn)), IMAGES, T), simulate(snn, IMAGES, T))


def test_hardtanh_in_place_is_a_clip() -> None:
    """The loop of the tests does not know it; so it is compared in the limit."""
    net = Net(lambda net, x: net.head(F.hardtanh_(net.a(x), 0.0, 0.5)))
    rates = simulate(convert(net, "max_norm", CALIBRATION), IMAGES, 2000).mean(0)
    assert (rates - net(IMAGES)).abs().max() < 0.01 * net(IMAGES).abs().max()


def test_a_converted_net_has_no_training_mode() -> None:
    net = _sequential(nn.ReLU(), nn.BatchNorm2d(6), nn.Dropout(0.5))
    snn = convert(net, "max_norm", CALIBRATION)
    before = simulate(snn, IMAGES, T)
    snn.train()
    assert torch.equal(simulate(snn, IMAGES, T), before)
    assert not any(module.training for module in snn.modules())
    snn.eval()
    assert torch.equal(simulate(snn, IMAGES, T), before)


# ------------------------------------------------------------------------------------ quantised nets of the user's


class TheirQuantiser(nn.Module):
    """As a repository of one's own has it: a threshold under another name, and levels."""

    def __init__(self, up: float, t: int) -> None:
        super().__init__()
        self.up, self.t = nn.Parameter(torch.tensor([up]).double()), t

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor((x / self.up).clamp(0, 1) * self.t + 0.5) / self.t * self.up


def _quantised() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), TheirQuantiser(1.1, 4), nn.Conv2d(6, 6, 3), TheirQuantiser(0.9, 8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    randomise(net.double(), 0)
    return net.eval()


GIVEN = {
    "by class": {TheirQuantiser: lambda module: (module.up, module.t)},
    "by name": {"2": (1.1, 4), "4": (torch.tensor([0.9]).double(), 8)},
}


@pytest.mark.parametrize("given", GIVEN)
def test_quantised_activations_of_ones_own_become_neurons(given: str) -> None:
    net = _quantised()
    neurons = {name: StepNeuron(torch.tensor(theta).double(), 0.5) for name, theta in (("2", 1.1), ("4", 0.9))}
    logits = simulate(convert(net, "qcfs", CALIBRATION, thresholds=GIVEN[given]), IMAGES, T)
    loop = copy.deepcopy(net)
    for name, neuron in neurons.items():
        loop.set_submodule(name, neuron)
    with torch.no_grad():
        assert torch.allclose(logits, torch.stack([loop(IMAGES) for _ in range(T)]))
    assert all(0.01 < torch.stack(neuron.spikes).double().mean() < 0.99 for neuron in neurons.values())


def test_thresholds_take_the_type_of_the_net() -> None:
    net = _quantised().float()
    as_double = {"2": (np.float64(1.1), 4), "4": (np.array([0.9]), 8)}
    found = [convert(net, "qcfs", thresholds=given) for given in (as_double, {"2": (1.1, 4), "4": (0.9, 8)})]
    logits, expected = (simulate(snn, IMAGES.float(), T) for snn in found)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, expected)


def test_a_conversion_that_trains_works_in_inference_mode() -> None:
    net = Net(lambda net, x: net.head(F.relu(net.a(x))))
    options = {"iterations": 3, "T": 4}
    with torch.inference_mode():
        inside = convert(net, "snnc_ap", CALIBRATION, **options)  # type: ignore[arg-type]
    outside = convert(net, "snnc_ap", CALIBRATION, **options)  # type: ignore[arg-type]
    assert torch.equal(simulate(inside, IMAGES, 4), simulate(outside, IMAGES, 4))


@pytest.mark.parametrize("name", ["class", "graph"])
def test_a_name_that_cannot_be_traced_is_refused(name: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.ReLU())
    net.add_module(name, nn.Linear(3, 3))
    with refused(f"a layer is called {name}, .*rename it"):
        convert(net, "max_norm", CALIBRATION)


@pytest.mark.parametrize("method", ["cos", "srp"])
def test_methods_on_quantised_nets_take_ones_own(method: str) -> None:
    """The same spikes as of a net of this suite with the same weights and thresholds."""
    net = _quantised()
    relu = nn.Sequential(*(nn.ReLU() if isinstance(m, TheirQuantiser) else copy.deepcopy(m) for m in net))
    ours = QCFS(relu, L=4).double().eval()
    for name in ("2", "4"):
        ours.net.get_submodule(name).threshold.data.copy_(net.get_submodule(name).up[0])
    snn = convert(net, method, thresholds=GIVEN["by class"])
    assert torch.equal(simulate(snn, IMAGES, T), simulate(convert(ours, method), IMAGES, T))


BAD_THRESHOLDS: dict[str, tuple[object, str]] = {
    "none": (None, "qcfs converts only nets that it has trained"),
    "another class": ({nn.GELU: (1.0, 4)}, "has no GELU"),
    "another name": ({"22": (1.0, 4)}, "has no 22"),
    "negative": ({TheirQuantiser: (-1.0, 4)}, "the threshold of 2 is -1, but must be positive"),
    "part of a level": ({TheirQuantiser: (1.0, 4.7)}, "no threshold and levels for 2 .*4.7 levels"),
    "no levels": ({TheirQuantiser: (1.0, 0)}, "has 0 levels"),
    "no attribute": ({TheirQuantiser: lambda module: (module.threshold, 4)}, "no threshold and levels for 2"),
    "one number": ({TheirQuantiser: 1.0}, "no threshold and levels for 2"),
    "a fault of one's own": ({TheirQuantiser: lambda module: (1 / 0, 4)}, "no threshold and levels for 2 .*division"),
    "NaN": ({TheirQuantiser: (float("nan"), 4)}, "the threshold of 2 is nan"),
    "some": ({"2": (1.1, 4)}, "floor, which is not linear"),
}


@pytest.mark.parametrize("what", BAD_THRESHOLDS)
def test_thresholds_that_do_not_fit_are_refused(what: str) -> None:
    thresholds, pattern = BAD_THRESHOLDS[what]
    with refused(pattern):
        convert(_quantised(), "qcfs", CALIBRATION, thresholds=thresholds)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- inputs


def test_batches_of_every_kind() -> None:
    net = _sequential()
    expected = simulate(convert(net, "max_norm", CALIBRATION), IMAGES, 4)
    sets: dict[str, list[object]] = {
        "dict": [{"image": image, "label": 0} for image in CALIBRATION],
        "index first": [(k, image, 0) for k, image in enumerate(CALIBRATION)],
        "path last": [(image, 0, "path") for image in CALIBRATION],
        "alone": list(CALIBRATION),
    }
    for name, images in sets.items():
        loader = DataLoader(images, batch_size=5)  # type: ignore[arg-type]  # a list is a data set to DataLoader
        assert torch.equal(simulate(convert(net, "max_norm", loader), IMAGES, 4), expected), name


def _snn() -> object:
    return convert(_sequential(), "max_norm", CALIBRATION)


INPUTS: dict[str, tuple[Callable[[], object], str]] = {
    "a list of images": (lambda: simulate(_snn(), list(IMAGES), 4), "x: is a list"),
    "an array": (lambda: simulate(_snn(), IMAGES.numpy(), 4), "x: is a ndarray"),
    "one image": (lambda: simulate(_snn(), IMAGES[0], 4), r"x: images of shape \[8, 8\] do not fit"),
    "frames": (lambda: simulate(_snn(), IMAGES[None], 4), r"x: images of shape \[3, 3, 8, 8\] do not fit"),
    "other channels": (lambda: simulate(_snn(), normal(2, 4, 8, 8), 4), r"x: images of shape \[4, 8, 8\] do not fit"),
    "a threshold for each neuron": (
        lambda: simulate(convert(_sequential(), "snm", CALIBRATION), normal(2, 3, 9, 9), 4), "do not fit"
    ),
    "no calibration images": (lambda: convert(_sequential(), "max_norm", CALIBRATION[:0]), "has no images"),
    "two images in a batch": (
        lambda: convert(_sequential(), "max_norm", [(CALIBRATION, CALIBRATION)]), "a batch has 2 of them"
    ),
    "frames to calibrate": (lambda: convert(_sequential(), "max_norm", CALIBRATION[None]), "does not take images"),
    "single images to calibrate": (lambda: convert(_sequential(), "max_norm", list(CALIBRATION)), "does not take"),
    "a NaN pixel": (lambda: simulate(_snn(), _spoilt(IMAGES, float("nan")), 4), "image 1 has a pixel that is NaN"),
    "an infinite pixel": (lambda: simulate(_snn(), _spoilt(IMAGES, float("inf")), 4), "image 1 has a pixel"),
    "half precision": (lambda: simulate(_snn().half(), IMAGES.half(), 4), "membranes need single precision"),
    "one number to calibrate": (lambda: convert(_sequential(), "max_norm", torch.tensor(1.0)), "^calibration: must be"),
    "T is a word": (lambda: convert(_sequential(), "max_norm", CALIBRATION, T="4"), "T = 4: must be an integer"),
    "a NaN to calibrate": (
        lambda: convert(_sequential(), "max_norm", _spoilt(CALIBRATION, float("nan"))), "^calibration: .*NaN"
    ),
}  # fmt: skip


def _spoilt(images: Tensor, value: float) -> Tensor:
    images = images.clone()
    images[1, 0, 4, 4] = value
    return images


@pytest.mark.parametrize("what", INPUTS)
def test_other_inputs_are_refused_in_one_line(what: str) -> None:
    act, pattern = INPUTS[what]
    with refused(pattern):
        act()


def test_numpys_integers_are_steps_and_no_warning_is_given() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert simulate(_snn(), IMAGES, np.int64(4)).shape == (4, 3, 5)
