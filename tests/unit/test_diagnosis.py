"""The diagnosis of a conversion: a net by hand, sums that must be exact, and an independent count of every part."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import NETS, StepNeuron, images_for, named_model, stepped
from running import inputs, outputs
from tiny import TwoConvolutions, normal
from torch import Tensor, nn

from bench.diagnose.pictures import draw, to_svg
from bench.errors import UserError
from bench.library import prepare
from bench.snn.activations import QCFSActivation, ReLUActivation
from bench.snn.diagnosis import EDGES, KINDS, VIEWS, Layer, _measure, decompose, diagnose
from bench.snn.neurons import IFNode
from bench.snn.simulate import SpikingNetwork
from methods.burst import Burst
from methods.cos import COS
from methods.qcfs import QCFS
from methods.robust_norm import RobustNorm
from methods.snm import SNM
from methods.snnc_lp import SNNCLight
from methods.srp import SRP

T = 4


def dense(weights: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights))
    return layer


def by_hand() -> tuple[nn.Module, SpikingNetwork, Tensor]:
    """Image (1): layer 1 gets 1.5, 0.6, -1 at each step; layer 2 gets z = r1 - 2 r2 of the first layer's spikes.

    Theta is 1 and v_0 is 0.5 everywhere.
    """
    first, second, head = dense([[1.5], [0.6], [-1.0]]), dense([[1.0, -2.0, 0.0]]), dense([[1.0], [-1.0]])
    ann = nn.Sequential(first, ReLUActivation(), second, ReLUActivation(), head)
    snn = copy.deepcopy(ann)
    snn[1], snn[3] = IFNode(torch.tensor(1.0).double(), 0.5), IFNode(torch.tensor(1.0).double(), 0.5)
    return ann, SpikingNetwork(snn), torch.tensor([[1.0]]).double()


def test_a_net_by_hand() -> None:
    """Four steps.

    Layer 1, a = (1.5, 0.6, 0). Neuron 1 fires at each step and keeps 0.5 + 4 * 1.5 - 4 = 2.5. Neuron 2 has u = 1.1, .7,
    1.3, .9 and fires at steps 1 and 3, keeping 0.9; its quantised value is floor(2.4 + 0.5) / 4 = 0.5. Neuron 3 stays
    silent and keeps 0.5 - 4 = -3.5. So clipping is (0.5, 0, 0), quantisation (0, 0.1, 0), unevenness 0.

    Layer 2 gets 1 - 2 s: -1, 1, -1, 1. Its potential goes -0.5, 0.5, -0.5, 0.5: no spike, residual 0.5. The ANN's value
    is relu(1.5 - 1.2) = 0.3. The mean input is 0, whose value is 0: on its own input the layer has no error.
    End to end the twin has relu(1 - 2 * 0.5) = 0: quantisation 0.3.
    """
    ann, snn, image = by_hand()
    found = diagnose(ann, snn, [(image, torch.tensor([0]))], T)
    one, two = found["layers"]
    assert [one["name"], two["name"]] == ["1", "3"]
    for view in VIEWS:
        means = {kind: one[view][kind]["mean"] for kind in KINDS}
        assert means == pytest.approx({"clipping": 0.5 / 3, "quantisation": 0.1 / 3, "unevenness": 0, "total": 0.2})
    assert {k: two["same_input"][k]["mean"] for k in KINDS} == pytest.approx(dict.fromkeys(KINDS, 0.0), abs=1e-12)
    end_to_end = {k: two["end_to_end"][k]["mean"] for k in KINDS}
    assert end_to_end == pytest.approx({"clipping": 0, "quantisation": 0.3, "unevenness": 0, "total": 0.3})
    assert (one["activation_mean"], one["firing_rate"]) == pytest.approx((0.7, 6 / 12))
    assert (one["offsets"], two["offsets"]) == ({"0": 3}, {"0": 1})
    assert (one["residual_below_zero"], one["residual_at_least_theta"]) == pytest.approx((1 / 3, 1 / 3))
    assert one["residuals"]["counts"][0] == 1  # -3.5
    # The head gives (0, -0): class 0 is right for all three nets but the ANN's is so with 0.3.
    assert found["top1"] == {"ann": 1.0, "quantised": 1.0, "snn": 1.0}
    assert (found["T"], found["warmup"], found["images"]) == (4, 0, 1)


def test_unevenness_and_an_offset_spike_by_hand() -> None:
    """Currents 1, 1, -2, 0 over four steps have the mean 0, and yet two spikes were sent: r = 0.5, two too many."""
    net = nn.Sequential(nn.Identity(), IFNode(torch.tensor(1.0).double(), 0.0))
    snn = SpikingNetwork(net)
    layer, neuron = Layer(), snn.neurons["1"]
    snn.clock.T, snn.clock.batch = 4, 1
    current = torch.tensor([[1.0], [1.0], [-2.0], [0.0]]).double()
    zero = torch.zeros(1, 1).double()
    _measure(layer, snn, "1", ReLUActivation(), current, neuron(current), 4, zero, zero)
    summary = layer.summary("act", 4)
    assert summary["offsets"] == {"2": 1}
    assert summary["same_input"]["unevenness"] == {"mean": -0.5, "mean_abs": 0.5, "rms": 0.5}
    assert summary["same_input"]["clipping"]["mean_abs"] == summary["same_input"]["quantisation"]["mean_abs"] == 0
    assert summary["residual_below_zero"] == 1
    assert summary["residuals"]["counts"][EDGES.index(-2.0) + 1] == 1


def test_the_three_errors_add_up_to_the_total() -> None:
    a, q, r = (normal(50, 7, seed=seed).abs() for seed in range(3))
    parts = decompose(a.float(), q.float(), r.float(), torch.tensor(0.8))
    total = parts["clipping"] + parts["quantisation"] + parts["unevenness"]
    assert torch.allclose(total, a.float().double() - r.float().double(), atol=1e-12, rtol=0)
    assert torch.equal(parts["total"], a.float().double() - r.float().double())
    assert torch.equal(parts["clipping"], (a.float().double() - torch.tensor(0.8).double()).clamp_min(0))


def models() -> dict[str, tuple[nn.Module, SpikingNetwork, Tensor, int]]:
    """Nets and methods of all kinds: residual, T-specific, with warm-up, with steps to look ahead, signed, burst."""
    found: dict[str, tuple[nn.Module, SpikingNetwork, Tensor, int]] = {}
    for name in ("resnet20", "preactivation"):
        model, images = named_model(name)
        found[f"qcfs {name}"] = (model.net, model.convert(T, []), images, T)
    model, images = named_model("linear")
    found["srp"] = (model.net, SRP(model.net, tau=3).convert(T, []), images, T)
    found["cos"] = (model.net, COS(model.net, rho=4).convert(T, []), images, T)
    found["cos, T below rho"] = (model.net, COS(model.net, rho=4).convert(T, []), images, 2)
    torch.manual_seed(0)
    net, images = prepare(TwoConvolutions().double()).net, normal(5, 3, 8, 8)
    batches = [(images, torch.zeros(5))]
    for kind in (SNM, Burst, SNNCLight):
        converter = kind(copy.deepcopy(net) if kind is not SNNCLight else copy.deepcopy(net).float())
        data = batches if kind is not SNNCLight else [(images.float(), torch.zeros(5))]
        found[kind.__name__] = (converter.net, converter.convert(T, data), data[0][0], T)
    return found


MODELS = ("qcfs resnet20", "qcfs preactivation", "srp", "cos", "cos, T below rho", "SNM", "Burst", "SNNCLight")


@pytest.mark.parametrize("name", MODELS)
def test_errors_add_up_and_every_neuron_is_counted_for_every_method(name: str) -> None:
    ann, snn, images, steps = models()[name]
    labels = torch.zeros(len(images), dtype=torch.long)
    found = diagnose(ann, snn, [(images, labels)], steps)
    assert [layer["name"] for layer in found["layers"]] == list(snn.neurons)
    for layer in found["layers"]:
        elements = layer["neurons"] * len(images)
        assert sum(layer["offsets"].values()) == sum(layer["residuals"]["counts"]) == elements
        for view in VIEWS:
            three = sum(layer[view][kind]["mean"] for kind in KINDS[:3])
            assert three == pytest.approx(layer[view]["total"]["mean"], abs=1e-9)
    # The parts of a batch change nothing.
    parts = diagnose(ann, snn, list(zip(images.split(2), labels.split(2), strict=True)), steps)
    assert parts["layers"][0]["offsets"] == found["layers"][0]["offsets"]
    assert parts["top1"] == found["top1"]


def test_a_whole_net_against_a_step_by_step_run() -> None:
    """Rates, residuals and offsets of each layer from neurons that are called once per step."""
    model, images = named_model("resnet20")
    found = diagnose(model.net, model.convert(T, []), [(images, torch.zeros(3, dtype=torch.long))], T)
    snn, neurons = stepped(model.net)
    currents: dict[str, list[Tensor]] = {name: [] for name in neurons}
    with outputs(model.net, QCFSActivation) as values:
        model.net(images)
    for _ in range(T):
        with inputs(snn, StepNeuron) as got:
            snn(images)
        for name, current in got.items():
            currents[name].append(current)
    for layer in found["layers"]:
        name = layer["name"]
        neuron, mean = neurons[name], torch.stack(currents[name]).mean(0)
        theta, counts = neuron.theta, torch.stack(neuron.spikes).sum(0)
        expected = torch.floor(mean * T / theta + 0.5).clamp(0, T)
        offsets = (counts - expected).long().flatten().tolist()
        assert layer["offsets"] == {str(n): offsets.count(n) for n in sorted(set(offsets))}
        assert layer["firing_rate"] == pytest.approx(counts.double().mean().item() / T)
        assert layer["end_to_end"]["total"]["mean_abs"] == pytest.approx(
            (values[name] - theta * counts / T).abs().mean().item()
        )
        assert layer["same_input"]["unevenness"]["mean_abs"] == pytest.approx(
            (theta * (expected - counts) / T).abs().mean().item()
        )
        assert neuron.potential is not None
        assert layer["residual_below_zero"] == pytest.approx((neuron.potential < 0).double().mean().item())
        assert layer["residual_at_least_theta"] == pytest.approx((neuron.potential >= theta).double().mean().item())


def fire(current_TBX: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Potentials before and after each step's reset, and spikes, of soft-reset IF neurons of threshold 1."""
    before, after, spikes = [], [], []
    for current in current_TBX:
        before.append(v + current)
        spikes.append((before[-1] >= 1).double())
        after.append(v := before[-1] - spikes[-1])
    return torch.stack(before), torch.stack(after), torch.stack(spikes)


def cos_by_hand(current_TBX: Tensor, rho: int) -> tuple[Tensor, Tensor]:
    """Spikes and potentials after each step; v_0 moves so that one spike of the first rho goes or comes."""
    half = torch.full_like(current_TBX[0], 0.5)
    before, after, spikes = fire(current_TBX[:rho], half)
    fired, silent = before.where(spikes > 0, torch.inf), before.where(spikes == 0, -torch.inf)
    down = (after[-1] < 0) & (spikes.sum(0) > 0)
    up = after[-1] >= 1
    start = half - (fired.amin(0) - 1 + 1e-3).clamp_min(1).where(down, 0)
    start = start + (1 + 1e-3 - silent.amax(0)).clamp_min(1).where(up, 0)
    _, after, spikes = fire(current_TBX, start)
    return spikes, after


def srp_by_hand(current_TBX: Tensor, tau: int) -> tuple[Tensor, Tensor]:
    """Spikes and potentials of all steps; after tau, only neurons with a residual above 0 fire, from theta / 2 on."""
    half = torch.full_like(current_TBX[0], 0.5)
    _, first, early = fire(current_TBX[:tau], half)
    _, then, late = fire(current_TBX[tau:], half)
    return torch.cat([early, late * (first[-1] > 1e-3)]), torch.cat([first, then])


@pytest.mark.parametrize(("kind", "steps"), [("cos", 2), ("cos", 4), ("cos", 7), ("srp", 1), ("srp", 5)])
def test_methods_with_warm_up_against_a_run_by_hand(kind: str, steps: int) -> None:
    """Layer by layer: only the counted steps matter, and residuals are those after the last of them."""
    model, images = named_model("linear")
    net = model.net
    early = 3  # tau and rho
    snn = (COS(net, rho=early) if kind == "cos" else SRP(net, tau=early)).convert(steps, [])
    found = diagnose(net, snn, [(images, torch.zeros(3, dtype=torch.long))], steps)
    layers = {layer["name"]: layer for layer in found["layers"]}
    total = max(steps, early) if kind == "cos" else early + steps
    counted = slice(steps) if kind == "cos" else slice(early, early + steps)
    sent = images.expand(total, *images.shape)
    parts = [
        ("act1", lambda x: net.fc1(net.flatten(x))),  # type: ignore[operator]
        ("act2", lambda x: net.norm(net.fc2(x))),  # type: ignore[operator]
    ]
    for name, linear in parts:
        theta = net.get_submodule(name).threshold.detach()
        current = torch.stack([linear(x) for x in sent]).detach()
        by_hand = cos_by_hand if kind == "cos" else srp_by_hand
        spikes, potentials = by_hand(current / theta, early)
        number, mean = spikes[counted].sum(0), current[counted].mean(0)
        offsets = (number - torch.floor(mean * steps / theta + 0.5).clamp(0, steps)).long().flatten().tolist()
        residual, layer = potentials[counted][-1], layers[name]
        assert layer["firing_rate"] == pytest.approx(spikes[counted].mean().item())
        assert layer["offsets"] == {str(n): offsets.count(n) for n in sorted(set(offsets))}
        assert layer["residual_below_zero"] == pytest.approx((residual < 0).double().mean().item())
        assert layer["residual_at_least_theta"] == pytest.approx((residual >= 1).double().mean().item())
        sent = spikes * theta


def test_L_equal_to_T_of_1_has_no_error_at_all() -> None:
    """QCFS's theorem for one step: the SNN is its ANN."""
    model, images = named_model("linear", L=1)
    found = diagnose(model.net, model.convert(1, []), [(images, torch.zeros(3, dtype=torch.long))], 1)
    for layer in found["layers"]:
        assert all(layer[view][kind]["mean_abs"] < 1e-12 for view in VIEWS for kind in KINDS)
        assert layer["offset_share"] == 0


def test_pictures_are_the_same_bytes_again_and_name_every_T() -> None:
    model, images = named_model("linear")
    batch = [(images, torch.zeros(3, dtype=torch.long))]
    found = [diagnose(model.net, model.convert(steps, []), batch, steps) for steps in (2, 4)]
    first, again = ({name: to_svg(figure) for name, figure in draw(found, "qcfs, linear").items()} for _ in range(2))
    assert list(first) == ["errors", "offsets", "membranes"]
    assert first == again
    for picture in first.values():
        assert picture.startswith(b"<?xml")
        assert b"T = 2" in picture
        assert b"T = 4" in picture


def test_nets_that_do_not_belong_together_and_no_images_are_refused() -> None:
    model, _ = named_model("linear")
    other = QCFS(NETS["preactivation"]()).double()
    with pytest.raises(UserError, match="layers are not those of the ANN"):
        diagnose(other.net, model.convert(2, []), [(images_for("linear"), torch.zeros(3))], 2)
    with pytest.raises(UserError, match="got none"):
        diagnose(model.net, model.convert(2, []), [], 2)


def test_a_neuron_that_never_fires_has_no_offset() -> None:
    """Its threshold is the smallest positive number, of which 8 steps' worth overflows."""
    net = nn.Sequential(dense([[1.0], [0.0]]), nn.ReLU(), dense([[1.0, 1.0]]))
    images = torch.tensor([[0.5], [1.0]]).double()
    model = RobustNorm(prepare(net).net, granularity="neuron", calibration_images=2)
    snn = model.convert(8, [(images, torch.zeros(2, dtype=torch.long))])
    [layer] = diagnose(model.net, snn, [(images, torch.zeros(2, dtype=torch.long))], 8)["layers"]
    assert set(map(int, layer["offsets"])) <= set(range(-8, 9))
    assert sum(layer["offsets"].values()) == 4
