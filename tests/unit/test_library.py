"""``from bench import convert, simulate`` on nets as people write them: converted right, or refused by name."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from reference import StepNeuron, randomise, refused
from running import logits_of
from tiny import TwoConvolutions, normal
from torch import Tensor, nn

import bench
from bench import convert, simulate
from bench.errors import UserError
from bench.library import prepare
from bench.registry.methods import METHODS
from bench.snn.activations import ReLUActivation
from bench.snn.calibration import CALIBRATION_BATCH
from bench.snn.simulate import simulate as simulate_parts
from methods.burst import BurstIFNode
from methods.opi import OPI
from methods.qcfs import QCFS
from methods.snnc_lp import SNNCLight

T = 16


class Convolutions(nn.Module):
    """Two convolutions, a shortcut and a head. ``rectify`` says how its forward spells ReLU."""

    def __init__(self, rectify: Callable[[Convolutions, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.conv3 = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(6 * 16, 5)
        self.rectify = rectify
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectify(self, self.bn(self.conv1(x)))
        x = x + self.conv3(self.rectify(self, self.conv2(x)))
        x = self.pool(self.rectify(self, x))
        return self.fc(x.flatten(1))


class Inside(nn.Module):
    """A module of the user's own whose forward calls the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True)


SPELLINGS: dict[str, Callable[[], nn.Module]] = {
    "F.relu": lambda: Convolutions(lambda _, x: F.relu(x)),
    "F.relu in place": lambda: Convolutions(lambda _, x: F.relu(x, inplace=True)),
    "torch.relu": lambda: Convolutions(lambda _, x: torch.relu(x)),
    "x.relu()": lambda: Convolutions(lambda _, x: x.relu()),
    "x.relu_()": lambda: Convolutions(lambda _, x: x.relu_()),
    "one nn.ReLU for all": lambda: Convolutions(lambda net, x: net.relu(x), relu=nn.ReLU()),
    "one nn.ReLU in place": lambda: Convolutions(lambda net, x: net.relu(x), relu=nn.ReLU(inplace=True)),
    "F.relu beside a module": lambda: Convolutions(lambda net, x: net.act(x) + 0 * F.relu(x), act=nn.ReLU()),
    "in a submodule": lambda: Convolutions(lambda net, x: net.inside(x), inside=Inside()),
}


def ready(net: nn.Module) -> nn.Module:
    net = net.double().eval()
    randomise(net, 0)
    return net


def reference(net: Convolutions, images: Tensor, thresholds: list[Tensor], v_init: float = 0.0) -> Tensor:
    """Once per step through the net as written, each call of ReLU by the neuron that has its turn."""
    neurons = [StepNeuron(theta, v_init) for theta in thresholds]
    turn = itertools.cycle(neurons)
    twin = copy.deepcopy(net)
    twin.rectify = lambda _, x: next(turn)(x)
    with torch.no_grad():
        return torch.stack([twin(images) for _ in range(T)])


def percentiles(net: Convolutions, images: Tensor) -> list[Tensor]:
    """The 99.9th percentile of each ReLU's output, in the order of the calls."""
    found: list[Tensor] = []
    plain = copy.deepcopy(net)

    def see(_: Convolutions, x: Tensor) -> Tensor:
        found.append(x.relu().quantile(0.999, interpolation="linear"))
        return x.relu()

    plain.rectify = see
    with torch.no_grad():
        plain(images)
    return found


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if name != "F.relu beside a module"])
def test_relu_however_it_is_written_becomes_neurons(spelling: str) -> None:
    net = ready(SPELLINGS[spelling]())
    images, calibration = normal(5, 3, 8, 8), normal(8, 3, 8, 8, seed=1)
    before, attributes = {name: value.clone() for name, value in net.state_dict().items()}, set(vars(net))
    snn = convert(net, method="robust_norm", calibration=calibration)
    logits_TBK = simulate(snn, images, T)
    thresholds = [theta.float() for theta in percentiles(net, calibration)]
    expected = reference(net, images, thresholds)
    assert len(snn.neurons) == 3
    assert torch.equal(torch.stack([n.threshold for n in snn.neurons.values()]), torch.stack(thresholds))
    assert torch.allclose(logits_TBK, expected)
    assert expected.sum(0).std(0).min() > 1e-6
    # The user's net is as it was.
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert set(vars(net)) == attributes
    assert torch.equal(net(images), ready(SPELLINGS[spelling]())(images))


def test_new_modules_do_not_take_names_that_are_there() -> None:
    net = ready(Convolutions(lambda net, x: net.relu_2(F.relu(net.relu(x))), relu=nn.ReLU(), relu_2=nn.Identity()))
    snn = convert(net, calibration=normal(4, 3, 8, 8))
    assert sorted(snn.neurons) == ["relu", *(f"relu_{n}" for n in range(3, 8))]
    assert isinstance(snn.net.relu_2, nn.Identity)


def test_the_average_of_many_steps_is_the_networks_answer() -> None:
    net = ready(SPELLINGS["F.relu"]())
    images = normal(6, 3, 8, 8)
    rate = simulate(convert(net, "max_norm", images), images, 2000).mean(0)
    with torch.no_grad():
        logits = net(images)
    assert (rate - logits).abs().max() < 0.02 * logits.abs().max()


def test_torchvisions_resnet_reuses_its_relu_and_has_max_pooling() -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=5).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"^maxpool is max-pooling, which RobustNorm cannot convert.*burst"):
        convert(net, calibration=images)
    snn = convert(net, "burst", images, percentile=100)
    assert len(snn.neurons) == 17
    assert all(isinstance(neuron, BurstIFNode) for neuron in snn.neurons.values())
    with torch.no_grad():
        logits = net(images)
    rates = simulate(snn, images, 160).cumsum(0) / torch.arange(1, 161)[:, None, None]
    errors = (rates - logits).abs().amax((1, 2)) / logits.abs().max()
    assert errors[-1] < errors[15] / 5


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "GELU": (lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)), r"1 \(GELU\)"),
    "max-pool module": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)),
        "^2 is max-pooling",
    ),
    "no ReLU": (lambda: nn.Sequential(nn.Linear(4, 4)), "no nn.ReLU"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_converted_wrong_is_refused_by_name(what: str) -> None:
    make, pattern = REFUSED[what]
    images = torch.randn(2, 4) if what == "GELU" else torch.randn(2, 3, 8, 8)
    with refused(pattern):
        convert(make(), calibration=images)


# Less than the defaults where these take long, or are for more images.
OPTIONS = {"snnc_ap": {"iterations": 2}, "ltb": {"iterations": 60, "batch": 6}}


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.source == "relu"])
def test_every_method_for_relu_nets_takes_ones_own(method: str) -> None:
    net, images = ready(SPELLINGS["one nn.ReLU for all"]()).float(), normal(6, 3, 8, 8).float()
    options = OPTIONS.get(method, {})
    snn = convert(net, method, images, T=64, **options)
    with torch.no_grad():
        logits = net(images)
    assert (simulate(snn, images, 64).mean(0) - logits).abs().max() < 0.35 * logits.abs().max()


def test_a_net_of_the_suite_and_the_methods_that_build_on_it() -> None:
    images = normal(6, 3, 8, 8)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3))
    trained = QCFS(ready(layers), L=4, lambda_init=1.0).eval()
    plain, srp = convert(trained, "qcfs"), convert(trained, "srp", tau=3)
    expected = logits_of(trained.convert(4, []), images, 4)
    assert torch.equal(simulate(plain, images, 4), expected)
    assert (srp.warmup, plain.warmup) == (3, 0)
    assert simulate(srp, images, 4).shape == (4, 6, 3)
    # The net alone is enough for a method that builds on it.
    assert torch.equal(simulate(convert(trained.net, "srp", tau=3), images, 4), simulate(srp, images, 4))


def test_a_trained_net_of_the_suite_that_is_still_in_training_mode_is_converted_and_stays_as_it_was() -> None:
    images = normal(6, 3, 8, 8).float()
    model = QCFS(TwoConvolutions(), lambda_init=1.0)
    randomise(model, 0)
    before = copy.deepcopy(model.train().state_dict())
    snn = convert(model, "cos", images, rho=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    expected = simulate(convert(copy.deepcopy(model).eval(), "cos", images, rho=2), images, 4)
    assert torch.equal(simulate(snn, images, 4), expected)


def test_tf32_is_off_while_the_library_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images, seen = ready(SPELLINGS["one nn.ReLU for all"]()).float(), normal(6, 3, 8, 8).float(), []
    original = torch.conv2d

    def watched(*args: Tensor, **kwargs: object) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "conv2d", watched)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    simulate(convert(net, "opi", images), images, 2)
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


def loader(images: Tensor, labels: bool) -> Iterator[object]:
    for part in images.split(3):
        yield (part, torch.zeros(len(part))) if labels else part


def test_calibration_as_tensor_as_batches_and_as_batches_with_labels() -> None:
    net, images = ready(SPELLINGS["F.relu"]()), normal(8, 3, 8, 8)

    def thresholds(calibration: object, **options: object) -> list[float]:
        return [float(n.threshold) for n in convert(net, "max_norm", calibration, **options).neurons.values()]

    whole = thresholds(images)
    assert whole == thresholds(loader(images, labels=True)) == thresholds(list(loader(images, labels=False)))
    first = thresholds(loader(images, labels=True), calibration_images=4)
    assert first == thresholds(images[:4])
    assert first != whole


def test_thresholds_do_not_depend_on_how_the_images_came() -> None:
    """SNNC averages over batches, and finds what it finds on the command line."""
    net, images = ready(SPELLINGS["F.relu"]()), normal(120, 3, 8, 8)
    batches = [(part, torch.zeros(len(part))) for part in images.split(CALIBRATION_BATCH)]
    expected = SNNCLight(prepare(net).net).convert(4, batches)
    for calibration in (images, images.split(7)):
        snn = convert(net, "snnc_lp", calibration, T=4)
        for name, neuron in snn.neurons.items():
            assert torch.equal(neuron.threshold, expected.neurons[name].threshold), name


ARGUMENTS: dict[str, tuple[dict[str, object], str]] = {
    "unknown method": ({"method": "robust-norm"}, r"^method robust-norm: unknown.*did you mean robust_norm"),
    "no calibration": ({"calibration": None}, r"^robust_norm needs training images"),
    "empty calibration": ({"calibration": []}, "got none"),
    "calibration of whole numbers": ({"calibration": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "^calibration:"),
    "calibration of two shapes": ({"calibration": [torch.zeros(2, 3, n, n).double() for n in (8, 6)]}, "^calibration:"),
    "calibration of words": ({"calibration": ["digits"]}, "^calibration:"),
    "inherited option": ({"method": "snnc_ap", "T": 4, "calibration_images": "many"}, r"^snnc_ap: calibration_images"),
    "unknown option": ({"percent": 99}, r"^robust_norm: unknown option percent;.*did you mean percentile"),
    "number that is no integer": ({"method": "dcgs", "levels": 2.5}, "^dcgs: levels = 2.5"),
    "unknown choice": ({"method": "dcgs", "neuron": "foo"}, "^dcgs: neuron = 'foo'"),
    "choice of another kind": ({"method": "ftbc", "source": "foo", "T": 4}, "^ftbc: source = 'foo'"),
    "fewer images than a batch": ({"method": "ltb"}, "^2 calibration images: fewer than one batch of 100"),
    "option out of range": ({"percentile": 0}, "percentile 0"),
    "T of 0": ({"T": 0}, "T = 0"),
    "no T where it is needed": ({"method": "snnc_lp"}, "snnc_lp converts for one T"),
    "method that trains": ({"method": "qcfs"}, "qcfs converts only nets that it has trained.*robust_norm"),
    "method for another net": ({"method": "srp"}, "SRP converts a QCFS net"),
}


@pytest.mark.parametrize("what", ARGUMENTS)
def test_arguments_that_do_not_fit_are_refused_in_one_line(what: str) -> None:
    arguments, pattern = ARGUMENTS[what]
    net = ready(SPELLINGS["F.relu"]())
    with refused(pattern):
        convert(net, **{"calibration": normal(2, 3, 8, 8), **arguments})  # type: ignore[arg-type]


def test_importing_bench_imports_no_torch() -> None:
    code = "import sys, bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match=r"bench.*converts"):
        _ = bench.converts


def test_no_module_of_the_suite_hides_a_function_of_the_library() -> None:
    """A module ``bench/convert.py`` would take the function's place as soon as anything imported it."""
    modules = {path.stem for path in Path(bench.__file__).parent.iterdir()}
    assert not modules & set(bench.__all__)


class SharedPool(nn.Module):
    """As PyTorch's own tutorial writes it."""

    def __init__(self, pool: nn.MaxPool2d, separate: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.pool = pool
        self.pool2 = copy.deepcopy(pool) if separate else pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        return self.fc(self.pool2(F.relu(self.conv2(x))).mean((2, 3)))


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1)], ids=["smaller", "same size"])
def test_a_max_pooling_called_twice_is_as_good_as_two(pool: nn.MaxPool2d) -> None:
    images = normal(3, 3, 8, 8)
    shared, separate = ready(SharedPool(pool, False)), ready(SharedPool(pool, True))
    separate.load_state_dict(shared.state_dict())
    logits = [simulate(convert(net, "burst", images), images, T) for net in (shared, separate)]
    assert torch.equal(*logits)


class Asks(nn.Module):
    """Does something else with large images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] >= 32:
            x = x[:, :, ::2, ::2]
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def test_questions_about_shapes_are_answered_from_the_calibration_images() -> None:
    net, images = ready(Asks()), normal(3, 3, 8, 8)
    rates = simulate(convert(net, "max_norm", images), images, 400).mean(0)
    assert (rates - net(images)).abs().max() < 0.02 * net(images).abs().max()


class Tokens(nn.Module):
    """BN over tokens, not over what the linear layer before it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.act = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()
        self.flatten, self.fc2 = nn.Flatten(), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.flatten(self.act(self.norm(self.fc1(x)))))


def test_bn_over_tokens_is_not_folded_into_features() -> None:
    net, images = ready(Tokens()), normal(6, 8, 8)
    rates = simulate(convert(net, "max_norm", images), images, 400).mean(0)
    assert (rates - net(images)).abs().max() < 0.02 * net(images).abs().max()


def test_a_relu_that_is_never_called_is_no_neuron() -> None:
    net, images = ready(SPELLINGS["F.relu"]()), normal(3, 3, 8, 8)
    net.unused = nn.ReLU()
    snn = convert(net, "robust_norm", images)
    assert "unused" not in snn.neurons and simulate(snn, images, 4).isfinite().all()


def test_images_of_another_size_are_simulated_and_counted_as_by_a_new_network() -> None:
    net, images = ready(SharedPool(nn.MaxPool2d(2), True)), normal(2, 3, 8, 8)
    snn, new = (convert(net, "burst", images) for _ in range(2))
    large = normal(2, 3, 16, 16)
    simulate(snn, images, 4)
    [(logits, counts)], [(expected, new_counts)] = (simulate_parts(network, large, 4) for network in (snn, new))
    assert torch.equal(logits, expected)
    assert torch.equal(counts.synops, new_counts.synops) and torch.equal(counts.macs, new_counts.macs)


def plain() -> nn.Module:
    return ready(SPELLINGS["F.relu"]())


class Pair(nn.Module):
    """Answers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SPELLINGS["F.relu"]()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), x


@pytest.mark.parametrize(("method", "rule"), [("hmt", "q999"), ("dcgs", "percentile")])
def test_the_rule_of_thresholds_is_an_option_of_these_methods(method: str, rule: str) -> None:
    images = normal(8, 3, 8, 8)
    chosen, default = (convert(plain(), method, images, T=4, **given) for given in ({"thresholds": rule}, {}))
    pairs = zip(chosen.neurons.values(), default.neurons.values(), strict=True)
    assert not any(torch.equal(one.threshold, other.threshold) for one, other in pairs)


EIGHT = normal(2, 3, 8, 8)
ODD: dict[str, tuple[Callable[[], object], str]] = {
    "parametrized": (lambda: convert(parametrized(), "max_norm", EIGHT), "conv1 is parametrized"),
    "two answers": (lambda: convert(Pair(), "max_norm", EIGHT), "returns several tensors"),
    "images of another size": (lambda: convert(ready(Tokens()), "max_norm", normal(2, 3, 5)), "does not take images"),
    "single images": (lambda: convert(ready(Tokens()), "max_norm", normal(2, 8, 8).float()), "torch.float32"),
    "a data set": (lambda: convert(plain(), "max_norm", torch.utils.data.TensorDataset(EIGHT)), "DataLoader"),
    "a number": (lambda: convert(plain(), "max_norm", 3), "is a int"),  # type: ignore[arg-type]
    "an ANN": (lambda: simulate(plain(), EIGHT, 4), "takes the network that convert returns"),
    "T of several numbers": (lambda: convert(plain(), "ftbc", EIGHT, T=torch.tensor([1, 2])), "must be an integer"),
    "options of a model that has them": (lambda: convert(converter(), "opi", EIGHT, percentile=99.0), "^percentile: "),
    "thresholds of a model that knows its own": (
        lambda: convert(converter(), "opi", EIGHT, thresholds={"conv1": (1.0, 4)}), "^thresholds: OPI knows its own"
    ),
    "thresholds of another kind": (
        lambda: convert(plain(), "qcfs", EIGHT, thresholds=[1.0, 4]), "^thresholds: must be a mapping"  # type: ignore[arg-type]
    ),
    "a rule of thresholds that is not known": (
        lambda: convert(plain(), "hmt", EIGHT, T=4, thresholds="q99"), "thresholds"
    ),
    "no margin": (lambda: convert(converter(), "srp", EIGHT, epsilon=math.nan), "^--model.epsilon nan: "),
    "a recurrent layer": (lambda: convert(nn.Sequential(nn.LSTM(4, 4)), "opi", normal(2, 3, 4)), "LSTM"),
    "T that is no integer": (lambda: simulate(convert(plain(), "max_norm", EIGHT), EIGHT, 4.0), "must be an integer"),
    "no image": (lambda: simulate(convert(plain(), "max_norm", EIGHT), normal(0, 3, 8, 8), 4), "has no images"),
}  # fmt: skip


def converter() -> OPI:
    return OPI(nn.Sequential(nn.Flatten(), nn.Linear(192, 4).double(), ReLUActivation(), nn.Linear(4, 2).double()))


def parametrized() -> nn.Module:
    net = plain()
    nn.utils.parametrizations.weight_norm(net.conv1)
    return net


@pytest.mark.parametrize("what", ODD)
def test_what_cannot_be_run_is_refused_in_one_line(what: str) -> None:
    act, pattern = ODD[what]
    with refused(pattern):
        act()
