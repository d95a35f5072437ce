"""Local threshold balancing against a scalar loop, and max-pooling that comes before the neurons."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from reference import LinearNet, refused, relu_net
from running import outputs, run
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bench.library import convert, simulate
from bench.snn.activations import Activation, ReLUActivation
from bench.snn.graph.fold import fold_batch_norm
from bench.snn.graph.pool_first import pool_first
from bench.snn.neurons import IFNode
from methods.ltb import LTB, BalancingActivation
from methods.relu import ReLU


def balanced_by_hand(net: tiny.TwoConvolutions, batches: list[np.ndarray], eta: float) -> list[list[float]]:
    """Thresholds of both layers, one number after the other."""
    thetas = [[0.0] * 4, [0.0] * 5]
    for x in batches:
        z = tiny.normalise(tiny.convolve(x, net.conv1), net.bn1)
        for layer, theta in enumerate(thetas):
            a = np.zeros_like(z)
            for c in range(z.shape[1]):
                values = z[:, c].ravel().tolist()
                excess = sum(value - theta[c] for value in values if value > theta[c])
                theta[c] += 2 * eta * excess / len(values)
                a[:, c] = np.clip(z[:, c], 0, theta[c])
            if layer == 0:
                z = tiny.normalise(tiny.convolve(tiny.average_pool(a), net.conv2), net.bn2)
    return thetas


@pytest.mark.parametrize("eta", [1.0, 0.25])
def test_thresholds_are_those_of_a_scalar_loop(eta: float) -> None:
    """Uneven batches, again and again, each layer on what the clipped layers before it send."""
    net, x = relu_net(), tiny.normal(5, 3, 8, 8)
    snn = LTB(net, calibration_images=5, iterations=7, batch=2, eta=eta).convert(4, tiny.batches(x, (3, 2)))
    parts = [x.numpy()[:2], x.numpy()[2:4], x.numpy()[4:]]
    expected = balanced_by_hand(net, [parts[i % 3] for i in range(7)], eta)  # type: ignore[arg-type]
    for neuron, theta in zip(snn.neurons.values(), expected, strict=True):
        assert type(neuron) is IFNode
        assert neuron.threshold.flatten().tolist() == pytest.approx(theta)
        assert neuron.v_init == 0.5


def test_one_threshold_for_a_layer() -> None:
    x = tiny.normal(4, 3, 8, 8)
    model = LTB(relu_net(), calibration_images=4, iterations=1, batch=4, granularity="layer")
    found = model.convert(4, tiny.batches(x, (4,))).neurons["act1"].threshold
    first, _ = tiny.activations(model.net, x.numpy())  # type: ignore[arg-type]
    assert float(found) == pytest.approx(2 * first.mean())


@pytest.mark.parametrize(("eta", "theta"), [(1.0, 6.0), (0.5, 3.0)])
def test_the_rule_overshoots_where_all_inputs_are_alike_and_stays(eta: float, theta: float) -> None:
    layer = BalancingActivation(eta, per_channel=True)
    for _ in range(3):
        layer(torch.full((4, 2, 3, 3), 3.0))
    assert layer.threshold is not None
    assert layer.threshold.shape == (2, 1, 1)
    assert layer.threshold.flatten().tolist() == [theta, theta]
    assert layer.change == 0


def test_a_trained_net_clipped_at_theta_keeps_its_accuracy_on_other_images_within_a_point() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for rows in torch.randint(1200, (100, 100)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
        optimizer.step()
    net.eval()
    snn = convert(net, method="ltb", calibration=images[:1200], iterations=1000)

    @torch.no_grad()
    def accuracy() -> float:
        return float((net(images[1200:]).argmax(1) == labels[1200:]).double().mean())

    plain = accuracy()
    assert plain > 0.9
    hits = 0
    for name, neuron in snn.neurons.items():

        def clip(_: nn.Module, __: tuple[Tensor, ...], a: Tensor, theta: Tensor = neuron.threshold) -> Tensor:
            nonlocal hits
            hits += int((a > theta).sum())
            return torch.minimum(a, theta)

        net.get_submodule(name).register_forward_hook(clip)
    assert abs(accuracy() - plain) <= 0.01
    assert hits > 0, "nothing was clipped, so nothing was tested"


def test_it_stops_where_theta_has_settled(monkeypatch) -> None:
    found, forward = [], BalancingActivation.forward

    def watched(layer: BalancingActivation, z: Tensor) -> Tensor:
        clipped = forward(layer, z)
        found.append(layer.change)
        return clipped

    monkeypatch.setattr(BalancingActivation, "forward", watched)
    model = LTB(relu_net(), calibration_images=8, iterations=1000, batch=8, tolerance=0.01)
    snn = model.convert(4, tiny.batches(tiny.normal(8, 3, 8, 8), (8,)))
    changes = torch.tensor(found).view(-1, len(snn.neurons)).mean(1).tolist()
    assert 1 < len(changes) < 1000
    assert changes[-1] < 0.01 <= min(changes[:-1])


def test_a_channel_that_is_never_active_sends_nothing() -> None:
    net, x = relu_net(), tiny.normal(6, 3, 8, 8)
    net.bn1.bias.data[2] = -50.0  # type: ignore[index, union-attr]
    snn = LTB(net, calibration_images=6, iterations=3, batch=6).convert(8, tiny.batches(x, (6,)))
    with outputs(snn.net, IFNode) as sent:
        run(snn, x * 1000, 8)
    assert not sent["act1"][:, 2].any()
    assert sent["act1"][:, [0, 1, 3]].any()
    assert not torch.isnan(snn.twin(8)(x)).any()


# ------------------------------------------------------------------------------------------------------ max-pooling


def test_pooling_first_changes_no_answer() -> None:
    net, x = relu_net(nn.MaxPool2d(2)), tiny.normal(5, 3, 8, 8)
    moved = pool_first(net)
    with outputs(net, nn.MaxPool2d) as pooled:
        plain = net(x)
    with outputs(moved, Activation) as sent:  # the modules are shared, so not at once
        assert torch.equal(moved(x), plain)
    assert torch.equal(sent["act1"], pooled["pool"]), "what was pooled last is now rectified last"
    assert list(moved.state_dict()) == list(net.state_dict())
    average = relu_net(nn.AvgPool2d(2))
    assert pool_first(average) is average


def test_the_neuron_gets_the_largest_current_of_its_window() -> None:
    net, x = relu_net(nn.MaxPool2d(2)), tiny.normal(3, 3, 8, 8)
    snn = LTB(net, calibration_images=3, iterations=50, batch=3).convert(6, tiny.batches(x, (3,)))
    folded = copy.deepcopy(net)
    fold_batch_norm(folded)
    with torch.no_grad():
        current = torch.nn.functional.max_pool2d(folded.conv1(x), 2)  # type: ignore[operator]
    neuron = snn.neurons["act1"]
    with outputs(snn.net, IFNode) as sent:
        run(snn, x, 6)
    theta = neuron.threshold.numpy()
    expected = tiny.spike_train(tiny.constant(current.numpy(), 6), theta, theta / 2)
    assert np.array_equal(sent["act1"].unflatten(0, (6, 3)).numpy() > 0, expected > 0)


class Inception(nn.Module):
    """The maximum of what two layers send."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.act1, self.act2 = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.ReLU(), nn.ReLU()
        self.branches, self.fc = nn.MaxPool2d(2), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.act1(self.conv1(x)), self.act2(self.conv2(x))], 1)
        return self.fc(self.branches(both).flatten(1))


def test_pooling_that_cannot_come_first_is_refused_by_name() -> None:
    with refused("^branches is a max-pooling"):
        convert(Inception().eval(), "ltb", torch.randn(4, 3, 8, 8))


def test_torchvision_s_resnet_converts() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net, x = torchvision.models.resnet18(num_classes=5).eval(), torch.randn(4, 3, 32, 32)
    snn = convert(net, "ltb", x, iterations=40, batch=4, calibration_images=4)
    logits = simulate(snn, x, 64)[32:].mean(0)
    with torch.no_grad():
        expected = net(x)
    assert (logits - expected).abs().max() < 0.35 * expected.abs().max()


@pytest.mark.parametrize(
    ("option", "value"),
    [("calibration_images", 0), ("calibration_images", 99), ("iterations", 0), ("batch", 0), ("eta", 0.0),
     ("eta", -1.0), ("eta", float("nan")), ("tolerance", -0.1), ("tolerance", 1.0)],
)  # fmt: skip
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with refused(f"--model.{option}"):
        LTB(ReLU(LinearNet()).net, **{option: value})  # type: ignore[arg-type]


def test_images_are_needed() -> None:
    with refused("calibration images and got none"):
        LTB(tiny.Wire(3, ReLUActivation())).convert(4, [])
