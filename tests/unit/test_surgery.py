"""What conversion changes in a network, what it refuses, and the architectures it is meant for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from reference import (
    NETS,
    PreActivationNet,
    assert_lively,
    images_for,
    named_model,
    randomise,
    refused,
    step_by_step,
    trained,
)
from running import inputs, logits_of, outputs, run
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from bench.errors import UserError
from bench.nets import architectures
from bench.registry.nets import ARCHITECTURES
from bench.snn.activations import Activation, QCFSActivation
from bench.snn.graph.check import check_convertible, mixes_constant_input
from bench.snn.graph.fold import Scale, fold_batch_norm, fold_thresholds
from bench.snn.neurons import IFNode
from bench.snn.replace import replace, replace_max_pool, split_norm_act
from bench.snn.simulate import SpikingNetwork
from methods.qcfs import QCFS, set_thresholds_by_percentile
from methods.relu import ReLU

# ---------------------------------------------------------------------------------------------------- refusals


class Parts(nn.Module):
    """Two convolutions and a head; ``between`` says what happens to the first one's output."""

    def __init__(self, between: Callable[[Parts, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)
        for name, module in modules.items():
            self.add_module(name, module)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(x))
        x = self.between(self, x)
        x = self.act2(self.conv2(x))
        return self.fc(self.pool(x).flatten(1))


class Inner(nn.Module):
    """A functional ReLU one level down."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


def _statement(call: Callable[[Tensor], object]) -> Callable[[Parts, Tensor], Tensor]:
    """Works in place and throws the returned value away, as much published code does."""

    def between(net: Parts, x: Tensor) -> Tensor:
        x = net.conv2(x)
        call(x)
        return x

    return between


def _inplace_module(net: Parts, x: Tensor) -> Tensor:
    x = net.conv2(x)
    net.rectify(x)
    return x


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "F.relu": (lambda: Parts(lambda _, x: F.relu(x)), r"function relu.*nn\.ReLU module"),
    "torch.relu": (lambda: Parts(lambda _, x: torch.relu(x)), r"function relu.*nn\.ReLU module"),
    "x.relu()": (lambda: Parts(lambda _, x: x.relu()), r"function relu.*nn\.ReLU module"),
    "x.relu_()": (lambda: Parts(lambda _, x: x.relu_()), r"function relu_.*nn\.ReLU module"),
    "F.relu inside a submodule": (lambda: Parts(lambda net, x: net.inner(x), inner=Inner()), r"inner calls .*relu"),
    "x.clamp": (lambda: Parts(lambda _, x: x.clamp(min=0)), "clamp"),
    "torch.maximum": (lambda: Parts(lambda _, x: torch.maximum(x, -x)), "maximum"),
    "x.abs()": (lambda: Parts(lambda _, x: x.abs()), "abs"),
    "x ** 2": (lambda: Parts(lambda _, x: x**2), "pow"),
    "softmax": (lambda: Parts(lambda _, x: x.softmax(1)), "softmax"),
    "F.max_pool2d": (lambda: Parts(lambda _, x: F.max_pool2d(x, 2)), "function max_pool"),
    **{
        str(odd): (lambda odd=odd: Parts(lambda net, x: net.odd(x), odd=odd), rf"odd \({type(odd).__name__}\)")
        for odd in (
            nn.ReLU6(),
            nn.GELU(),
            nn.LeakyReLU(),
            nn.PReLU(),
            nn.Sigmoid(),
            nn.GroupNorm(2, 4),
            nn.InstanceNorm2d(4),
            nn.BatchNorm2d(4, track_running_stats=False),
        )
    },
    "dilated max-pool": (
        lambda: Parts(lambda net, x: net.odd(x), odd=nn.MaxPool2d(3, 1, 2, dilation=2)),
        "odd: max-pooling with dilation",
    ),
    "max-pool with indices": (
        lambda: Parts(lambda net, x: net.odd(x)[0], odd=nn.MaxPool2d(2, return_indices=True)),
        "odd .*indices",
    ),
    "gate by *": (lambda: Parts(lambda net, x: x * net.conv2(x)), "mul"),
    "gate by torch.mul": (lambda: Parts(lambda net, x: torch.mul(x, net.conv2(x))), "mul"),
    "gate by x.mul": (lambda: Parts(lambda net, x: x.mul(net.conv2(x))), "mul"),
    "quotient": (lambda: Parts(lambda net, x: x / net.conv2(x)), "truediv"),
    "attention by @": (lambda: Parts(lambda net, x: x @ net.conv2(x)), "matmul"),
    "nn.ReLU used twice": (lambda: Parts(lambda net, x: net.act1(net.conv2(x))), r"act1 \(ReLU\) is called from 2"),
    "control flow on values": (
        lambda: Parts(lambda net, x: net.conv2(x) if x.sum() > 0 else x),
        "depends on the values of the images",
    ),
    "control flow by item": (lambda: Parts(lambda net, x: x if x.mean().item() > 0 else -x), "."),
    "reciprocal": (lambda: Parts(lambda _, x: 1 / (x + 1)), "truediv"),
    "floor division": (lambda: Parts(lambda _, x: x // 0.5), "floordiv"),
    "torch.div that rounds": (lambda: Parts(lambda _, x: torch.div(x, 0.5, rounding_mode="floor")), "div"),
    "x.div that rounds": (lambda: Parts(lambda _, x: x.div(0.5, rounding_mode="trunc")), "div"),
    "a product with itself": (lambda: Parts(lambda _, x: x * x), "mul"),
    "a quotient by itself": (lambda: Parts(lambda _, x: x / x), "truediv"),
    "a layer that is a function": (
        lambda: Parts(lambda net, x: F.conv2d(x, net.conv2.weight)),
        "conv2d, .*make it a layer",
    ),
    "branch on a size nobody knows": (
        lambda: Parts(lambda net, x: net.conv2(x) if x.shape[-1] > 2 else x),
        "not known here",
    ),
    "an assertion": (lambda: Parts(_asserting), "cannot trace it"),
    "in place on what an identity also gives": (
        lambda: Parts(lambda net, x: net.odd(x) + net.rectify(x), odd=nn.Identity(), rectify=nn.ReLU(inplace=True)),
        "rectify .*in place",
    ),
    "in place on what was flattened before": (
        lambda: Parts(
            lambda net, x: (y := net.odd(x), net.rectify(y), x + y)[2], odd=nn.Dropout(), rectify=nn.ReLU(True)
        ),
        "rectify .*in place",
    ),
    "max-pooling used twice": (
        lambda: Parts(lambda net, x: net.odd(net.odd(x)), odd=nn.MaxPool2d(2, 1)),
        r"odd \(MaxPool2d\) is called from 2",
    ),
    "weights that depend on data": (lambda: Parts(lambda net, x: F.linear(x, net.conv2(x)[0, 0])), "linear"),
    "x.add_() in place, result dropped": (lambda: Parts(_statement(lambda x: x.add_(x))), "add_"),
    "F.relu in place, result dropped": (lambda: Parts(_statement(lambda x: F.relu(x, inplace=True))), "relu"),
    "x.relu_() in place, result dropped": (lambda: Parts(_statement(lambda x: x.relu_())), "relu"),
    "nn.ReLU in place, result dropped": (lambda: Parts(_inplace_module, rectify=nn.ReLU(inplace=True)), "rectify"),
}


def _asserting(net: nn.Module, x: Tensor) -> Tensor:
    raise KeyError("what a forward pass may raise")


@pytest.mark.parametrize("what", REFUSED)
def test_what_conversion_would_get_wrong_is_refused_by_name(what: str) -> None:
    make, pattern = REFUSED[what]
    with refused(pattern):
        QCFS(make())


def test_a_net_without_relu_is_refused() -> None:
    with pytest.raises(UserError, match=r"Sequential cannot be converted: it has no nn\.ReLU"):
        QCFS(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))


class Alias(nn.Module):
    """One ReLU under two names; only the second is called (as in ``self.body = Sequential(self.conv, self.act)``)."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.last = nn.ReLU(), nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), self.act)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.body(x)).mean((2, 3)))


def test_a_relu_with_two_names_is_replaced_under_both() -> None:
    """Left under one name, it would stay a ReLU in silence."""
    model = QCFS(Alias())
    assert not any(isinstance(m, nn.ReLU) for m in model.net.modules())
    assert isinstance(model.net.body[1], QCFSActivation)


def test_all_problems_are_counted_and_the_first_three_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.ReLU())
    with pytest.raises(UserError, match=r"1 \(GELU\).*2 \(SiLU\).*3 \(Tanh\).*and 1 more"):
        check_convertible(net)


LINEAR: dict[str, Callable[[Parts, Tensor], Tensor]] = {
    "sum": lambda net, x: x + net.conv2(x),
    "difference": lambda net, x: x - net.conv2(x),
    "torch.add": lambda net, x: torch.add(x, net.conv2(x)),
    "add_": lambda net, x: net.conv2(x).add_(x),
    "concatenation and slice": lambda net, x: torch.cat([x, net.conv2(x)], 1)[:, :4],
    "times a number": lambda net, x: x * 0.5,
    "a number times": lambda net, x: 2 * x,
    "over a number": lambda net, x: x / 4,
    "minus": lambda net, x: -x,
    "F.avg_pool2d": lambda net, x: F.avg_pool2d(x, 2),
    "strided slice": lambda net, x: x[:, :, ::2, ::2],
    "view by sizes": lambda net, x: x.view(x.size(0), 4, x.shape[2] * 2, x.shape[3] // 2),
    "branch on a size": lambda net, x: net.conv2(x) if x.shape[-1] > 2 else x,
    "module called by keyword": lambda net, x: net.conv2(input=x),
    "function called by keyword": lambda net, x: F.avg_pool2d(input=x, kernel_size=2),
    "a dropout and its input": lambda net, x: x + F.dropout(x, training=False),
}


@pytest.mark.parametrize("what", LINEAR)
def test_linear_code_is_let_through_and_simulated_right(what: str) -> None:
    images = images_for("resnet20", batch=2)[:, :, :8, :8]
    model = trained(Parts(LINEAR[what]), images)
    logits = logits_of(model.convert(3, []), images, 3)
    expected, spikes = step_by_step(model.net, images, 3)
    assert torch.allclose(logits, expected, rtol=1e-9, atol=1e-9)
    assert spikes["act2"].any()


@pytest.mark.parametrize("bad", [0.0, -0.25, math.nan, math.inf])
def test_a_bad_threshold_is_refused_at_conversion_with_the_name_of_its_layer(bad: float) -> None:
    model = QCFS(NETS["resnet20"]())
    model.net.stages[1][0].act2.threshold.data.fill_(bad)
    with pytest.raises(UserError, match=r"stages\.1\.0\.act2: threshold .*must be positive and finite"):
        model.convert(4, [])


# ----------------------------------------------------------------------------------------------- replacements


def test_every_relu_becomes_an_activation_of_its_own() -> None:
    for make in NETS.values():
        net = make()
        relus = sum(isinstance(m, nn.ReLU) for m in net.modules())
        model = QCFS(net, L=3, lambda_init=0.5, region="floor_first")
        found = [m for m in model.net.modules() if isinstance(m, QCFSActivation)]
        assert len(found) == relus > 0
        assert len({id(m.threshold) for m in found}) == relus
        assert {(m.L, m.threshold.item(), m.region) for m in found} == {(3, 0.5, "floor_first")}
        assert not any(isinstance(m, nn.ReLU) for m in model.net.modules())
        names = dict(model.named_parameters())
        assert sum(name.endswith(".threshold") for name in names) == relus, "thresholds must be trained"


def test_max_pooling_becomes_average_pooling_of_the_same_shape() -> None:
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), (1, 2), ceil_mode=True)]
    kinds = {nn.MaxPool2d: nn.AvgPool2d, nn.AdaptiveMaxPool2d: nn.AdaptiveAvgPool2d}
    for pool in [*pools, nn.AdaptiveMaxPool2d(3)]:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(2))
        x = torch.randn(2, 3, 12, 13)
        shape = net[:3](x).shape
        net[4] = nn.Linear(shape[1:].numel(), 2)
        model = QCFS(net)
        assert type(model.net[2]) is kinds[type(pool)]
        assert model.net[:3](x).shape == shape
    constant = nn.Sequential(nn.MaxPool2d(2, 2))
    replace_max_pool(constant)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert constant(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_replace_names_the_module_that_was_refused_and_keeps_the_mode() -> None:
    net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()).eval()
    assert replace(net, nn.ReLU, lambda name, _: nn.Tanh()) == 2
    assert not any(m.training for m in net.modules())

    def refuse(name: str, _: nn.Module) -> nn.Module:
        raise UserError("no")

    with pytest.raises(UserError, match=r"^0\.0: no$"):
        replace(net, nn.Tanh, refuse)


def test_norm_and_activation_that_timm_fuses_are_taken_apart() -> None:
    """The same function, with a ReLU that conversion can see; without ReLU nothing is invented."""
    torch.manual_seed(0)
    for apply_act in (True, False):
        net = nn.Sequential(nn.Conv2d(3, 6, 3), BatchNormAct2d(6, eps=0.01, apply_act=apply_act))
        randomise(net, 1)
        x = torch.randn(4, 3, 8, 8)
        for training in (True, False):
            before, after = copy.deepcopy(net).train(training), copy.deepcopy(net).train(training)
            assert split_norm_act(after) == 1
            assert torch.allclose(before(x), after(x), atol=1e-6)
            assert torch.allclose(before[1].running_var, after[1].norm.running_var)
            assert sum(isinstance(m, nn.ReLU) for m in after.modules()) == apply_act
            assert not any(isinstance(m, BatchNormAct2d) for m in after.modules())


# --------------------------------------------------------------------------------------------------- BN folding


@pytest.mark.parametrize(
    ("name", "left"), [("resnet20", 0), ("resnet18", 0), ("vgg", 0), ("linear", 0), ("preactivation", 2)]
)
def test_folding_batch_norm_changes_nothing(name: str, left: int) -> None:
    """In the pre-activation net two BN stay: one follows a stem that the shortcut reads too, one an addition."""
    model, images = named_model(name)
    folded = copy.deepcopy(model.net)
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    norms = sum(isinstance(m, kinds) for m in folded.modules())
    assert fold_batch_norm(folded) == norms - left
    assert sum(isinstance(m, kinds) for m in folded.modules()) == left
    # Compared without quantisation, which would hide small differences and enlarge others.
    one, other = (_with_relu(net) for net in (model.net, folded))
    with torch.no_grad():
        assert torch.allclose(one(images), other(images), rtol=1e-10, atol=1e-10)
        assert one(images).std(0).min() > 1e-6


def _with_relu(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    replace(net, Activation, lambda *_: nn.ReLU())
    return net


class SharedProducers(nn.Module):
    """BN that must stay: its convolution is read twice, is called twice, or the BN itself is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, groups=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv4, self.bn4 = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        once = self.conv1(x)
        x = self.bn1(once) + once
        x = self.conv2(self.bn2(self.conv2(x)))
        x = self.bn3(self.bn3(self.conv3(x)))
        return self.act(self.bn4(self.conv4(x))).mean((2, 3))


def test_batch_norm_with_another_reader_or_caller_is_not_folded() -> None:
    net = SharedProducers().double().eval()
    randomise(net, 3)
    folded = copy.deepcopy(net)
    assert fold_batch_norm(folded) == 1
    assert [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)] == ["bn1", "bn2", "bn3"]
    x = images_for("resnet20")
    with torch.no_grad():
        assert torch.allclose(net(x), folded(x), rtol=1e-11, atol=1e-11)


class TwoNames(nn.Module):
    """The convolution has two names and runs under the second; its BN has one; the BN is called by keyword."""

    def __init__(self, keyword: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.body, self.fc = nn.Sequential(self.conv), nn.Linear(4, 5)
        self.keyword = keyword

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(input=self.conv(x)) if self.keyword else self.bn(self.body(x))
        return self.fc(self.act(x).mean((2, 3)))


@pytest.mark.parametrize("keyword", [False, True])
def test_batch_norm_is_not_lost_where_its_convolution_has_two_names(keyword: bool) -> None:
    net = TwoNames(keyword).double().eval()
    randomise(net, 4)
    folded = copy.deepcopy(net)
    fold_batch_norm(folded)
    x = images_for("resnet20")
    with torch.no_grad():
        assert torch.allclose(net(x), folded(x), rtol=1e-11, atol=1e-11)


# --------------------------------------------------------------------------------------------- threshold folding


class PostNorm(nn.Module):
    """Edges without weights: neuron -> BN, neuron -> pool -> BN, neuron -> output, concatenation, a doubled edge."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4)
        self.pool = nn.AvgPool2d(2)
        self.conv2, self.act2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4)
        self.conv3, self.act3 = nn.Conv2d(8, 4, 3, padding=1), nn.ReLU()
        self.conv4, self.act4 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.act1(self.conv1(x)))
        x = self.act2(self.conv2(x))
        x = torch.cat([self.bn2(self.pool(x)), self.pool(x)], 1)
        x = self.act3(self.conv3(x))
        return self.act4(self.conv4(x + x)).mean((2, 3))


@pytest.mark.parametrize("name", [*NETS, "post-norm"])
def test_folding_thresholds_changes_nothing_and_spikes_become_one(name: str) -> None:
    """Same logits, same counts; what a weighted layer reads is 0 or 1, or a mean of those behind average pooling."""
    if name == "post-norm":
        images = images_for("resnet20", batch=2)
        model = trained(PostNorm(), images)
    else:
        model, images = named_model(name)
    T = 5
    snn = model.convert(T, [])
    expected, spikes = run(snn, images, T)
    unit = SpikingNetwork(fold_thresholds(snn.net))
    with outputs(unit.net, IFNode) as sent, inputs(unit.net, nn.Conv2d, nn.Linear) as read:
        logits, unit_spikes = run(unit, images, T)
    assert torch.allclose(logits, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(unit_spikes, spikes)
    assert sent.keys() == snn.neurons.keys()
    for values in sent.values():
        assert values.unique().tolist() == [0, 1]
    binary = {layer for layer, values in read.items() if torch.isin(values, torch.tensor([0.0, 1.0])).all()}
    assert set(read) - binary == NOT_BINARY[name]
    again, _ = run(snn, images, T)
    assert torch.equal(again, expected), "the converted net itself must stay as it was"


# The first layer reads the image; the last one, and those behind a pooling, read means.
NOT_BINARY = {
    "resnet20": {"conv1", "fc"},
    "resnet18": {"conv1", "fc"},
    "vgg": {"features.0", "features.7", "features.11", "features.18", "features.22", "classifier.1"},
    "preactivation": {"stem", "fc"},
    "linear": {"fc1"},
    "post-norm": {"conv1", "conv2", "conv3", "conv4"},
}


@pytest.mark.parametrize("name", ["resnet20", "vgg"])
def test_folding_thresholds_twice_is_folding_them_once(name: str) -> None:
    """Two users of one net (the cost, the export) must not scale its weights twice."""
    model, images = named_model(name)
    snn = model.convert(3, [])
    expected, _ = run(snn, images, 3)
    twice, _ = run(SpikingNetwork(fold_thresholds(fold_thresholds(snn.net))), images, 3)
    assert torch.allclose(twice, expected, rtol=1e-10, atol=1e-10)


def test_an_identity_shortcut_keeps_its_threshold_as_one_factor() -> None:
    """Of the nine blocks of a ResNet-20, seven have an identity shortcut."""
    model, _ = named_model("resnet20")
    folded = fold_thresholds(model.convert(1, []).net)
    scales = [m for m in folded.modules() if isinstance(m, Scale)]
    assert len(scales) == 7
    thresholds = [m.threshold.item() for m in folded.modules() if isinstance(m, IFNode)]
    assert all(scale.factor.item() in thresholds for scale in scales)


def test_thresholds_that_cannot_be_folded_are_refused_by_name() -> None:
    model, _ = named_model("resnet20")
    net = model.convert(1, []).net
    net.set_submodule("stages.0.0.act1", IFNode(torch.tensor([1.0, 2.0, 1.0, 1.0]).view(4, 1, 1)))
    with pytest.raises(UserError, match=r"stages\.0\.0\.act1: only a scalar"):
        fold_thresholds(net)

    class SharedWeights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.act(self.conv(x))).mean((2, 3))

    shared = QCFS(SharedWeights()).convert(1, []).net
    with pytest.raises(UserError, match="conv: shared by several inputs"):
        fold_thresholds(shared)


# ------------------------------------------------------------------------------------------- constant meets time


def test_a_shortcut_that_leaves_before_the_first_neuron_is_seen() -> None:
    for name in NETS:
        model, _ = named_model(name)
        assert mixes_constant_input(model.convert(1, []).net) == (name == "preactivation")


class LateMeeting(nn.Module):
    """The image itself comes back at the very end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1, self.conv2, self.act2 = nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return (self.act2(self.conv2(self.act1(self.conv1(x)))) + x).mean((2, 3))


@pytest.mark.parametrize("make", [PreActivationNet, LateMeeting])
@pytest.mark.parametrize(("batch", "T"), [(3, 4), (2, 5), (1, 3)])
def test_nets_that_mix_constant_and_timed_input_equal_the_reference(
    make: Callable[[], nn.Module], batch: int, T: int
) -> None:
    images = images_for("preactivation", batch)
    model = trained(make(), images)
    snn = model.convert(T, [])
    assert snn.repeat_input
    logits, spikes = run(snn, images, T)
    expected, expected_spikes = step_by_step(model.net, images, T)
    assert torch.allclose(logits, expected, rtol=1e-10, atol=1e-10)
    assert spikes.tolist() == [sum(int(fired[t].sum()) for fired in expected_spikes.values()) for t in range(T)]


class SizeOfTheImage(nn.Module):
    """The batch size is asked of the image and used behind the neurons, as ``view(b, -1)`` often does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Linear(4 * 49, 5)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        return self.fc(self.act(self.conv(x)).view(b, -1))


def test_a_net_that_asks_the_image_for_the_batch_size_equals_the_reference() -> None:
    """Behind the neurons a batch is T times as large."""
    images = images_for("resnet20", batch=2)
    model = trained(SizeOfTheImage(), images)
    logits, _ = run(model.convert(3, []), images, 3)
    assert torch.allclose(logits, step_by_step(model.net, images, 3)[0], rtol=1e-10, atol=1e-10)


# --------------------------------------------------------------------------------------------------- nets of timm


@pytest.mark.parametrize(
    ("name", "activations", "repeat"),
    [("resnet18", 17, False), ("regnetx_002", 40, False), ("test_resnet", 12, False), ("resnetv2_18", 17, True)],
)
def test_nets_of_timm_are_converted_and_equal_the_reference(name: str, activations: int, repeat: bool) -> None:
    """Max-pooling stems, grouped convolutions, and pre-activation with fused BN, at 64x64."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    model = trained(architectures.create(name, num_classes=7), images)
    snn = model.convert(2, [])
    assert len(snn.neurons) == activations
    assert snn.repeat_input == repeat
    assert not any(isinstance(m, (nn.ReLU, nn.MaxPool2d, BatchNormAct2d)) for m in snn.net.modules())
    logits, spikes = run(snn, images, 2)
    expected, expected_spikes = step_by_step(model.net, images, 2)
    assert torch.allclose(logits, expected, rtol=1e-8, atol=1e-8)
    assert spikes.tolist() == [sum(int(fired[t].sum()) for fired in expected_spikes.values()) for t in range(2)]
    assert all(fired.any() for fired in expected_spikes.values())
    assert logits.std() > 1e-6


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("test_efficientnet", "SiLU"),
        ("test_vit", r"LayerNorm|GELU|attention|function"),
        ("regnety_002", r"se.*(Sigmoid|sigmoid)"),
        ("mobilenetv2_035", "ReLU6"),
        ("test_convnext", r"LayerNorm|GELU|function"),
    ],
)
def test_nets_of_timm_with_other_nonlinearities_are_refused(name: str, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        QCFS(architectures.create(name, num_classes=7))


# ---------------------------------------------------------------------------------------------- start from data


def test_lambda_starts_at_the_percentile_of_positive_inputs_layer_by_layer() -> None:
    """With ReLU in the activations' place and BN in training mode, as the first training step will see it."""
    net = NETS["resnet20"]()
    randomise(net, 5)
    relu_net = copy.deepcopy(net).train()
    images = images_for("resnet20").float()
    model = QCFS(net, lambda_percentile=90.0)
    buffers = {name: b.clone() for name, b in model.net.named_buffers()}
    model.prepare([(images, torch.zeros(3, dtype=torch.long))])

    with inputs(relu_net, nn.ReLU) as seen:
        relu_net(images)
    assert len(seen) == 19
    for name, z in seen.items():
        positive = z[z > 0].sort().values
        rank = max(1, round(len(positive) * 0.9))
        threshold = model.net.get_submodule(name).threshold
        assert threshold.item() == pytest.approx(positive[rank - 1].item(), rel=1e-5), name
        assert threshold.requires_grad
    assert all(torch.equal(b, buffers[name]) for name, b in model.net.named_buffers())


def test_without_a_percentile_lambda_stays_at_its_start_and_no_data_is_read() -> None:
    model = QCFS(PreActivationNet(), lambda_init=3.0)
    model.prepare(iter(()))
    assert {m.threshold.item() for m in model.net.modules() if isinstance(m, QCFSActivation)} == {3.0}


def test_a_silent_layer_starts_at_a_positive_threshold() -> None:
    net = QCFS(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 2))).net
    nn.init.constant_(net[1].weight, 0)
    nn.init.constant_(net[1].bias, -1)
    set_thresholds_by_percentile(net, torch.rand(4, 3, 2, 2), 99.0)
    assert net[2].threshold > 0


# -------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("name", "activations", "by_hand", "millions"),
    [
        ("cifar_resnet20", 19, (272_474, 40_813_184), 0.27),
        ("cifar_resnet18", 17, (11_173_962, 555_422_720), 11.2),
        ("cifar_vgg16", 15, (33_646_666, 332_111_872), 33.6),
    ],
)
def test_architectures_are_those_of_the_papers(
    name: str, activations: int, by_hand: tuple[int, int], millions: float
) -> None:
    with torch.device("meta"):
        net = architectures.create(name, 10)
    assert sum(isinstance(m, nn.ReLU) for m in net.modules()) == activations
    assert (architectures.count_parameters(net), architectures.count_macs(net, (3, 32, 32))) == by_hand
    assert sum(p.numel() for p in net.parameters()) == by_hand[0]
    assert by_hand[0] / 1e6 == pytest.approx(millions, rel=0.02)
    assert not any(isinstance(m, nn.MaxPool2d) for m in net.modules())
    assert (ARCHITECTURES[name].activations, ARCHITECTURES[name].weights) == (activations, millions)


def test_the_number_of_classes_reaches_the_head() -> None:
    with torch.device("meta"):
        for name in ARCHITECTURES:
            net = architectures.create(name, 100)
            assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
            assert net.num_classes == 100


def test_thresholds_are_not_counted_as_weights() -> None:
    net = NETS["resnet20"]()
    before = architectures.count_parameters(net)
    model = QCFS(net)
    assert architectures.count_parameters(model.net) == before
    assert sum(p.numel() for p in model.parameters()) == before + 19


def test_macs_of_single_layers() -> None:
    """Strides, groups, rectangles; the hooks are gone afterwards."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=2, padding=1, bias=True),  # [8, 8, 7] out
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(16 * 56, 5),
    )
    expected = 8 * 8 * 7 * 15 * 3 + 16 * 56 * 9 * 2 + 16 * 56 * 5
    assert architectures.count_macs(net, (3, 16, 16)) == expected
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("frozen", [[], [0, 1, 2], [1]])
def test_counting_leaves_the_mode_of_every_module_as_it_was(frozen: list[int]) -> None:
    """Also of a net in training whose BN is frozen in evaluation mode; and BN statistics do not move."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    net.train(len(frozen) < 3)
    for index in frozen:
        net[index].eval()
    modes = [m.training for m in net.modules()]
    architectures.count_macs(net, (3, 8, 8))
    assert [m.training for m in net.modules()] == modes
    assert net[1].num_batches_tracked == 0


def test_timms_resnet18_has_its_known_cost() -> None:
    with torch.device("meta"):
        net = timm.create_model("resnet18", num_classes=1000)
    assert architectures.count_parameters(net) == 11_689_512
    assert architectures.count_macs(net, (3, 224, 224)) == 1_814_073_344


def test_the_average_pooling_vgg_keeps_convolution_biases_and_has_no_dropout() -> None:
    with torch.device("meta"):
        net = architectures.create("cifar_vgg16", 10)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 13
    assert all(m.bias is not None for m in convolutions)
    assert sum(isinstance(m, nn.AvgPool2d) for m in net.modules()) == 5
    assert not any(isinstance(m, nn.Dropout) for m in net.modules())


@pytest.mark.parametrize(
    ("arch", "init", "kaiming"),
    [
        ("cifar_resnet20", "default", False),
        ("cifar_resnet20", "kaiming_normal", True),
        ("cifar_vgg16", "default", True),
    ],
)
def test_weights_start_as_in_the_papers_code(arch: str, init: Any, kaiming: bool) -> None:
    """PyTorch's default for a convolution is uniform with a variance of 1 / (3 fan_in)."""
    torch.manual_seed(0)
    net = ReLU(architectures.create(arch, 10), init=init).net
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] * module.kernel_size[1]
            expected = 2 / (module.out_channels * area) if kaiming else 1 / (3 * module.in_channels * area)
            assert module.weight.std().item() == pytest.approx(expected**0.5, rel=5 / module.weight.numel() ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Linear):
            assert bool((module.bias == 0).all()) == kaiming


@pytest.mark.parametrize(
    ("typed", "registered"),
    [
        ("resnet20", "cifar_resnet20"),
        ("resnet18", "cifar_resnet18"),
        ("vgg16", "cifar_vgg16"),
        ("cifar_vgg16", "cifar_vgg16"),
        ("timm/resnet18", "resnet18"),
        ("timm/regnetx_002", "regnetx_002"),
    ],
)
def test_what_a_user_types_becomes_an_unambiguous_name(typed: str, registered: str) -> None:
    """The short resnet18 is the papers' 32x32 net; timm's own needs its prefix."""
    assert architectures.resolve(typed, "cifar") == registered
    assert timm.is_model(registered)


@pytest.mark.parametrize(
    ("typed", "pattern"),
    [
        ("resnt20", r"resnt20: unknown .*choose from .*resnet18.*resnet20.*vgg16.*did you mean resnet20\?"),
        ("", "unknown"),
        ("regnetx_002", "unknown architecture.*timm/"),
        ("timm/resnet81", r"timm/resnet81: not found in timm .*did you mean resnet\d+"),
        ("timm/", "not found in timm"),
    ],
)
def test_an_unknown_name_is_refused_with_the_choices_and_the_nearest(typed: str, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        architectures.resolve(typed, "cifar")


def test_logits_of_the_small_nets_are_lively() -> None:
    """The nets of reference.py must not be degenerate, or the tests that use them prove nothing."""
    for name in NETS:
        model, images = named_model(name)
        assert_lively(*step_by_step(model.net, images, 8))
