"""Methods that train through spikes: their spikes are those of the evaluation, their gradients those of the papers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from reference import NETS, LinearNet, StepNeuron, images_for, randomise, refused
from running import outputs, run
from torch import Tensor, nn

from bench.snn.activations import ClippedReLU, QCFSActivation, ReLUActivation
from bench.snn.calibration import activation_percentiles
from bench.snn.neurons import Clock, IFNode
from datamodules.digits import DigitsDataModule
from methods.dsr import DSR
from methods.lasnn import LaSNN, attention, distillation
from methods.relu import ReLU
from methods.snn2ann import SNN2ANN, HardResetNode, SwappedActivation, swap
from methods.spike_training import SpikeTrainingModule, SpikingActivation, rate_gradient
from methods.surrogate import Surrogate, through_time
from methods.tandem import Tandem

METHODS: dict[str, Callable[..., SpikeTrainingModule]] = {
    "surrogate": Surrogate, "dsr": DSR, "tandem": Tandem, "lasnn": LaSNN, "snn2ann": SNN2ANN,
}  # fmt: skip


def ready(method: str, net: nn.Module, images: Tensor, T: int = 4, **options: float) -> SpikeTrainingModule:
    """A model in double precision as of a trained net, whose layers all spike now and then."""
    model = METHODS[method](net, T=T, image=images.shape[1:], **options).double().eval()
    randomise(model, 0)
    source = copy.deepcopy(model.net)
    for name in model.layers:
        source.set_submodule(name, ReLUActivation())
    data = [(images, torch.zeros(len(images), dtype=torch.long))]
    SpikeTrainingModule.start_at(model, activation_percentiles(source, data, 60.0))
    return model


@pytest.mark.parametrize("net", ["resnet20", "vgg", "preactivation", "linear"])
@pytest.mark.parametrize("method", METHODS)
def test_training_sends_the_spikes_that_are_evaluated(method: str, net: str) -> None:
    x, T = images_for(net), 5
    model = ready(method, NETS[net](), x, T)
    with outputs(model.net, SpikingActivation) as trained:
        logits = model.unrolled(x)
    snn = model.convert(T, [])
    with outputs(snn.net, *{type(neuron) for neuron in snn.neurons.values()}) as evaluated:
        found, _ = run(snn, x, T)
    assert set(trained) == set(evaluated) and len(trained) >= 2
    for name, out in trained.items():
        assert torch.equal(out, evaluated[name]), name
    busy = [0 < (out != 0).double().mean() < 1 for out in trained.values()]
    assert sum(busy) > len(busy) / 2, "and there are spikes to compare"
    assert torch.allclose(logits, found, atol=1e-10)
    assert model.clock.T == 0, "outside of the pass it is an ANN again"


@pytest.mark.parametrize("method", ["surrogate", "dsr", "tandem", "lasnn"])
def test_these_spikes_are_those_of_a_network_that_is_called_once_per_step(method: str) -> None:
    x, T = images_for("resnet20"), 4
    model = ready(method, NETS["resnet20"](), x, T)
    stepped = copy.deepcopy(model.net)
    for name, layer in model.layers.items():
        stepped.set_submodule(name, StepNeuron(layer.threshold, layer.v_init))
    with torch.no_grad():
        expected = torch.stack([stepped(x) for _ in range(T)])
        assert torch.allclose(model.unrolled(x), expected, atol=1e-12)


def test_batch_normalisation_sees_images_and_steps_together() -> None:
    x, T = images_for("linear", 6), 3
    model = ready("dsr", LinearNet(), x, T).train()
    norm = model.net.norm
    assert isinstance(norm, nn.BatchNorm1d)
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    norm.momentum = 1.0
    model.unrolled(x)
    assert seen[0].shape == (T * 6, 9)
    assert torch.allclose(norm.running_mean, seen[0].mean(0))  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, seen[0].var(0))  # type: ignore[arg-type]


def test_a_net_given_is_taken_over_with_its_thresholds() -> None:
    x = images_for("linear", 20)
    data = [(x, torch.zeros(20, dtype=torch.long))]
    source = ReLU(LinearNet(), image=x.shape[1:]).double().eval()
    randomise(source, 3)
    model = Surrogate(LinearNet(), percentile=75.0, image=x.shape[1:]).double()
    model.start_from(source.net, data)
    with outputs(source.net, ReLUActivation) as a:
        logits = source(x)
    for name, layer in model.layers.items():
        assert layer.threshold.item() == pytest.approx(np.percentile(a[name].numpy(), 75.0), rel=1e-6)
        layer.threshold.fill_(1e6)
    assert torch.allclose(model.eval()(x), logits), "with high thresholds its rates are the ReLU net's activations"
    for activation, theta in ((ClippedReLU(0.75, trainable=True), 0.75), (QCFSActivation(4, 1.5), 1.5)):
        for name in model.layers:
            source.net.set_submodule(name, copy.deepcopy(activation))
        model.start_from(source.net, data)
        assert [layer.threshold.item() for layer in model.layers.values()] == [theta, theta]
    name = next(iter(model.layers))
    source.net.get_submodule(name).threshold = nn.Parameter(torch.ones(9))
    with refused(f"^--ckpt: {name} has 9 thresholds, but Surrogate"):
        model.start_from(source.net, data)


# ---------------------------------------------------------------------------------------------------------- dsr


def finite_differences(function: Callable[[Tensor], float], at: Tensor, step: float = 1e-6) -> Tensor:
    """The gradient of a scalar function, element by element."""
    grad = torch.zeros_like(at)
    for index in range(at.numel()):
        shifted = [at.clone(), at.clone()]
        for sign, point in zip((1, -1), shifted, strict=True):
            point.view(-1)[index] += sign * step
        grad.view(-1)[index] = (function(shifted[0]) - function(shifted[1])) / (2 * step)
    return grad


@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_dsr_gradients_are_finite_differences_of_the_rate(shape: tuple[int, ...]) -> None:
    T = 5
    x, weights = 2 * tiny.normal(T, 3, 4, 2, seed=1), tiny.normal(3, 4, 2, seed=2)
    theta = (tiny.normal(*shape, seed=3).abs() / 2 + 0.3).requires_grad_()

    def rate_loss(x: Tensor, theta: Tensor) -> float:
        mean = x.mean(0)
        rate = torch.where(mean <= 0, 0.0, torch.where(mean >= theta, theta.expand_as(mean), mean))
        return float((weights * rate).sum())

    mean = x.mean(0)
    assert set(((mean > 0).int() + (mean > theta).int()).unique().tolist()) == {0, 1, 2}, "below, inside and above"
    given = x.clone().requires_grad_()
    out = rate_gradient(given, theta, lambda x_TBX: IFNode(theta).run(x_TBX))
    assert set(torch.unique(out.detach() / theta.detach()).tolist()) == {0.0, 1.0}
    dx, dtheta = torch.autograd.grad((weights * out.mean(0)).sum(), (given, theta))
    assert torch.allclose(dx, finite_differences(lambda at: rate_loss(at, theta.detach()), x), atol=1e-8)
    assert torch.allclose(dtheta, finite_differences(lambda at: rate_loss(x, at), theta.detach()), atol=1e-8)


def test_dsr_trains_weights_by_the_gradient_of_the_rate_network() -> None:
    """One hidden layer: the logits are linear in its rates, so the gradient is that of the network of rates."""
    x, upstream, T = tiny.normal(5, 6), tiny.normal(5, 4, seed=9), 6
    model = DSR(tiny.Layers((6, 8, 4), activation=nn.ReLU), T=T, theta_init=0.5, image=(6,)).double()
    (model.unrolled(x).mean(0) * upstream).sum().backward()
    first, layer = model.net.get_submodule("fc1"), model.layers["act1"]
    assert isinstance(first, nn.Linear)

    def loss(weight: Tensor, theta: Tensor) -> float:
        with torch.no_grad():
            z = x @ weight.T + first.bias
            rate = torch.minimum(z.clamp(min=0), theta)
            return float((model.net.get_submodule("fc2")(rate) * upstream).sum())

    weight, theta = first.weight.detach(), layer.threshold.detach()
    assert torch.allclose(first.weight.grad, finite_differences(lambda at: loss(at, theta), weight), atol=1e-7)  # type: ignore[arg-type]
    assert torch.allclose(layer.threshold.grad, finite_differences(lambda at: loss(weight, at), theta), atol=1e-7)  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_dsr_fires_at_alpha_theta_from_empty(alpha: float) -> None:
    """The paper's neuron, as a scalar loop; numbers of few bits, so that ties count."""
    theta, T = 2.0, 8
    model = DSR(LinearNet(), T=T, alpha=alpha, theta_init=theta).double()
    currents = [k / 8 for k in range(-4, 24)]
    out = model.layers["act1"].emit(torch.tensor([[currents]] * T, dtype=torch.float64))
    for index, current in enumerate(currents):
        v, sent = 0.0, []
        for _ in range(T):
            v += current
            spike = v >= alpha * theta
            v -= theta * spike
            sent.append(theta * spike)
        assert out[:, 0, index].tolist() == sent


def test_dsr_keeps_its_thresholds_above_the_bound() -> None:
    model = DSR(LinearNet(), theta_bound=0.25)
    with torch.no_grad():
        model.layers["act1"].threshold.fill_(-3.0)
    model.on_train_batch_end(None, (torch.zeros(0), torch.zeros(0)), 0)
    assert [layer.threshold.item() for layer in model.layers.values()] == [0.25, 6.0]


# ---------------------------------------------------------------------------------------------------- surrogate


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize(("theta", "alpha"), [(1.0, 10.0), (0.4, 2.0)])
def test_surrogate_gradients_are_those_of_autograd_through_time(theta: float, alpha: float, detach_reset: bool) -> None:
    """Autograd unrolls a neuron whose spike has the value of the step and the slope of ``x / (1 + alpha |x|)``."""
    T = 6
    x, upstream = tiny.normal(T, 3, 4, seed=1) * theta, tiny.normal(T, 3, 4, seed=2)
    level, start = torch.tensor(theta, dtype=torch.float64), torch.tensor(theta / 2, dtype=torch.float64)

    def by_autograd(x: Tensor) -> Tensor:
        v, sent = start.expand(3, 4), []
        for current in x:
            u = v + current
            distance = u / theta - 1
            smooth = distance / (1 + alpha * distance.abs())
            spike = (u >= theta).double() + smooth - smooth.detach()
            out = theta * spike
            v = u - (out.detach() if detach_reset else out)
            sent.append(out)
        return torch.stack(sent)

    def ours(x: Tensor) -> Tensor:
        return through_time(x, start, level, lambda x_TBX: IFNode(level).run(x_TBX), alpha, detach_reset)

    found = []
    for function in (ours, by_autograd):
        given = x.clone().requires_grad_()
        out = function(given)
        found.append((out.detach(), *torch.autograd.grad(out, given, upstream)))
    assert torch.allclose(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-10, atol=1e-12)
    assert found[0][1][0].abs().min() > 0, "the first step hears of the last"


def test_the_derivative_of_one_step_is_the_formula_s() -> None:
    u = torch.tensor([[[-1.0, 0.0, 0.5, 1.0, 1.5, 3.0]]], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor(1.0, dtype=torch.float64)
    out = through_time(u, 0 * theta, theta, lambda x: IFNode(theta, 0.0).run(x), 10.0)
    out.sum().backward()
    expected = [1 / (1 + 10 * abs(value - 1)) ** 2 for value in u.flatten().tolist()]
    assert u.grad is not None
    assert u.grad.flatten().tolist() == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------------- tandem


def test_tandem_sends_counts_and_has_the_gradient_of_relu() -> None:
    T, theta = 7, 0.5
    model = Tandem(tiny.Wire(12, nn.ReLU()), T=T).double()
    layer = model.layers["act"]
    layer.threshold.fill_(theta)
    model.clock.T, model.clock.batch = T, 3
    x = tiny.normal(T, 3, 12, seed=4).requires_grad_()
    out = layer(x.flatten(0, 1)).unflatten(0, (T, 3))  # type: ignore[no-untyped-call]
    for b in range(3):
        for f in range(12):
            v, count = 0.0, 0
            for t in range(T):
                v += x[t, b, f].item()
                if v >= theta:
                    v, count = v - theta, count + 1
            assert out[:, b, f].sum().item() == pytest.approx(count * theta)
    upstream = tiny.normal(3, 12, seed=5)
    (found,) = torch.autograd.grad((out.mean(0) * upstream).sum(), x)
    (expected,) = torch.autograd.grad((x.mean(0).relu() * upstream).sum(), x)
    assert torch.allclose(found, expected, atol=1e-15)
    assert (x.mean(0) > theta).any(), "ReLU does not clip there"


def test_a_tandem_layer_that_is_not_converted_is_relu_of_the_mean() -> None:
    T, x = 3, tiny.normal(3, 2, 12)
    model = Tandem(tiny.Wire(12, nn.ReLU()), T=T).double()
    model.clock.T, model.clock.batch = T, 2
    out = model.layers["act"](x.flatten(0, 1)).unflatten(0, (T, 2))  # type: ignore[no-untyped-call]
    assert torch.equal(out, x.mean(0).clamp(min=0).expand(3, 2, 12))


def trainer_of(model: SpikeTrainingModule, **settings: object) -> SimpleNamespace:
    """What the hooks ask of a trainer."""
    usual = {"world_size": 1, "num_training_batches": 4, "limit_val_batches": 1.0, "max_epochs": 8, "current_epoch": 0}
    trainer = SimpleNamespace(**{**usual, **settings})
    model._trainer = trainer  # type: ignore[assignment]
    model.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return trainer


@pytest.fixture
def tandem() -> Tandem:
    """On the smallest net with two layers of neurons; 2 epochs of ReLU, then 1.5 for each layer."""
    model = Tandem(LinearNet(), T=4, ann_epochs=2, epochs_per_layer=1.5, image=(3, 8, 8)).double()
    randomise(model, 0)
    trainer_of(model)
    return model


def test_tandem_converts_one_layer_after_the_other(tandem: Tandem) -> None:
    stages = []
    for epoch in range(6):
        tandem.trainer.current_epoch = epoch  # type: ignore[misc]
        stages += [tandem.stage_of(batch) for batch in range(4)]
    assert stages == [0] * 8 + [1] * 6 + [2] * 10
    assert tandem.order == ["act1", "act2"]


def test_tandem_freezes_what_lies_before_and_reads_theta_from_spikes(tandem: Tandem) -> None:
    batch = (images_for("linear", 20), torch.arange(20) % 4)
    tandem.percentile = 80.0
    thetas: list[list[float]] = []
    trained: list[set[str]] = []
    for epoch in (0, 2, 4):
        tandem.trainer.current_epoch = epoch  # type: ignore[misc]
        tandem.train()
        tandem.zero_grad()
        before = copy.deepcopy(tandem.net.norm.running_mean)
        tandem.training_step(batch, 0).backward()
        trained.append({name for name, p in tandem.net.named_parameters() if p.grad is not None})
        thetas.append([layer.threshold.item() for layer in tandem.layers.values()])
        assert not torch.equal(before, tandem.net.norm.running_mean)  # type: ignore[arg-type]
    assert thetas[0] == [math.inf, math.inf]
    assert math.isfinite(thetas[1][0]) and thetas[1][1] == math.inf
    assert thetas[2][0] == thetas[1][0] and math.isfinite(thetas[2][1])
    assert trained[0] == trained[1] == {name for name, _ in tandem.net.named_parameters()}
    assert trained[2] == {name for name in trained[0] if not name.startswith("fc1")}
    with torch.no_grad():
        a = tandem.net.fc1(tandem.net.flatten(batch[0])).relu()  # type: ignore[operator]
    rank = math.ceil(a.numel() * 0.8)
    assert thetas[1][0] == pytest.approx(a.flatten().sort().values[rank - 1].item(), rel=1e-6)


def test_batch_normalisation_of_a_frozen_layer_stays() -> None:
    model = Tandem(tiny.TwoConvolutions(), T=2, epochs_per_layer=0.25, image=(3, 8, 8)).double()
    trainer_of(model)
    model.train()
    model.training_step((tiny.normal(4, 3, 8, 8), torch.arange(4) % 3), 3)
    frozen, free = model.net.bn1, model.net.bn2
    assert not frozen.training and free.training  # type: ignore[union-attr]


def test_tandem_by_the_paper_s_rule() -> None:
    """A stage ends after so many epochs without a rise; in the last epoch all layers spike."""
    model = Tandem(LinearNet(), patience=2, image=(3, 8, 8)).double()
    trainer = trainer_of(model)
    stages = []
    for epoch, accuracy in enumerate([0.5, 0.6, 0.6, 0.55, 0.3, 0.2, 0.1, 0.1]):
        trainer.current_epoch = epoch
        stages.append(model.stage_of(0))
        trainer.callback_metrics = {"val/acc": torch.tensor(accuracy)}
        model.on_train_epoch_end()
    assert stages == [1, 1, 1, 1, 2, 2, 2, 2]
    fresh = Tandem(LinearNet(), image=(3, 8, 8))
    trainer_of(fresh, current_epoch=7)
    assert fresh.stage_of(0) == 2


# -------------------------------------------------------------------------------------------------------- lasnn


def test_the_distillation_is_the_distance_of_unit_attention_maps() -> None:
    teacher = {"conv": tiny.normal(4, 3, 2, 5, seed=1), "fc": tiny.normal(4, 7, seed=2)}
    student = {"conv": tiny.normal(4, 3, 2, 5, seed=3), "fc": tiny.normal(4, 7, seed=4)}

    def unit(a: np.ndarray) -> np.ndarray:
        energy = (a**2).sum(0).ravel() if a.ndim > 1 else a**2
        return np.asarray(energy / np.sqrt((energy**2).sum()))

    expected = sum(
        np.mean([
            np.linalg.norm(unit(t) - unit(s)) for t, s in zip(teacher[n].numpy(), student[n].numpy(), strict=True)
        ])
        for n in teacher
    )  # fmt: skip
    assert distillation(teacher, student).item() == pytest.approx(expected, rel=1e-12)
    assert distillation(teacher, teacher).item() == 0
    assert torch.allclose(attention(teacher["conv"]), attention(teacher["conv"] * 3)), "the scale of activity is free"


def test_lasnn_adds_the_distillation_to_the_cross_entropy() -> None:
    x, labels = images_for("linear", 12), torch.arange(12) % 4
    losses = {}
    for beta in (0.0, 1.0, 3.0):
        model = ready("lasnn", LinearNet(), x, beta=beta)
        assert isinstance(model, LaSNN)
        model.teacher.load_state_dict(model.net.state_dict())
        trainer_of(model)
        losses[beta] = model.training_step((x, labels), 0).item()
    model.eval()
    with outputs(model.net, SpikingActivation) as spikes, outputs(model.teacher, SpikingActivation) as activations:
        logits = model.unrolled(x).mean(0)
        model.teacher(x)
    rates = {name: out.unflatten(0, (4, 12)).mean(0) for name, out in spikes.items()}  # type: ignore[no-untyped-call]
    distance = distillation(activations, rates).item()
    assert distance > 0.01
    assert losses[0.0] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert losses[1.0] - losses[0.0] == pytest.approx(distance, rel=1e-6)
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * distance, rel=1e-6)


def test_the_teacher_of_a_run_from_scratch_is_what_its_first_epochs_trained() -> None:
    x, labels = images_for("linear", 12), torch.arange(12) % 4
    model = LaSNN(LinearNet(), ann_epochs=1, image=x.shape[1:]).double()
    trainer = trainer_of(model)
    model.training_step((x, labels), 0).backward()
    assert all(layer.threshold.item() == math.inf for layer in model.layers.values())
    with torch.no_grad():
        for p in model.net.parameters():
            p.add_(0.01)
    trainer.current_epoch = 1
    trained = {name: p.detach().clone() for name, p in model.net.named_parameters()}
    model.training_step((x, labels), 0)
    assert all(math.isfinite(layer.threshold.item()) for layer in model.layers.values())
    for name, p in model.teacher.named_parameters():
        assert torch.equal(p, trained[name]) and not p.requires_grad


# ------------------------------------------------------------------------------------------------------ snn2ann


@pytest.mark.parametrize("unit", ["stsu", "resu"])
def test_the_swapped_unit_has_the_spikes_value_and_relu_s_gradient(unit: str) -> None:
    z = torch.tensor([-1.0, -0.5, 0.0, 0.5, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.75, 1.0], dtype=torch.float64)
    upstream = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], dtype=torch.float64)
    value = swap(z, rate, unit)  # type: ignore[arg-type]
    assert value.tolist() == ([0, 0.25, 0.5, 0, 0.75, 1] if unit == "stsu" else [0, 0, 0, 0, 0.75, 1])
    value.backward(upstream)
    assert z.grad is not None and z.grad.tolist() == [0, 0, 0, 8, 16, 32]


def test_hard_reset_forgets_what_is_above() -> None:
    T, theta = 12, 0.7
    node = HardResetNode(torch.tensor(theta, dtype=torch.float64), 0.0)
    node.clock = Clock(T, 4)
    x = tiny.normal(T, 4, 9)
    out = node.run(x)
    for b in range(4):
        for f in range(9):
            v = 0.0
            for t in range(T):
                v += x[t, b, f].item()
                assert out[t, b, f].item() == (theta if v > theta else 0)
                v = 0.0 if v > theta else v


@pytest.mark.parametrize("unit_spikes", [True, False])
@pytest.mark.parametrize("T", [1, 4, 9])
def test_the_twin_of_a_hard_reset_is_its_answer_to_a_constant_current(T: int, unit_spikes: bool) -> None:
    node = HardResetNode(torch.tensor(0.5, dtype=torch.float64), 0.0)
    node.unit_spikes, node.clock = unit_spikes, Clock(T, 1)
    z = torch.tensor([[k / 8 for k in range(-8, 24)]], dtype=torch.float64)
    assert torch.allclose(node(z).unflatten(0, (T, 1)).mean(0), node.twin(T)(z), atol=1e-15)  # type: ignore[no-untyped-call]


def test_spikes_weigh_one_from_scratch_and_theta_in_a_converted_net() -> None:
    x = images_for("linear", 20)
    model = ready("snn2ann", LinearNet(), x, 3)
    for start, weight in ((False, 1.0), (True, 0.25)):
        if start:
            model.start_at(dict.fromkeys(model.layers, torch.tensor(0.25)))
        with outputs(model.net, SpikingActivation) as sent:
            model.unrolled(x)
        assert {float(value) for out in sent.values() for value in out.unique()} == {0.0, weight}
        with outputs(model.net, SpikingActivation) as rates:
            model(100 * x)
        assert max(float(rate.max()) for rate in rates.values()) == weight


def test_snn2ann_trains_the_ann_at_the_spikes_of_the_snn() -> None:
    x, T = images_for("linear", 6), 5
    model = ready("snn2ann", LinearNet(), x, T)
    with outputs(model.net, SpikingActivation) as spikes:
        model.unrolled(x)
    rates = {name: out.unflatten(0, (T, 6)).mean(0) for name, out in spikes.items()}  # type: ignore[no-untyped-call]
    with outputs(model.net, SpikingActivation) as swapped, torch.no_grad():
        logits = model.training_logits(x)
    for name, rate in rates.items():
        assert torch.equal(swapped[name], rate), name
    assert torch.allclose(logits, model.net.head(rates["act2"]))  # type: ignore[operator]
    assert model.net.act1.sent is None, "outside of training it is the clipped rate"  # type: ignore[union-attr]


def test_thresholds_rise_where_the_branches_disagree() -> None:
    layer = SwappedActivation(torch.full((10,), 0.5), "stsu")
    rate = torch.tensor([[0.5] * 10])
    for silent, expected in ((1, 0.5), (2, 0.51), (9, 0.52)):
        layer.sent = rate
        layer(torch.tensor([[-1.0] * silent + [1.0] * (10 - silent)], requires_grad=True))
        assert layer.threshold.tolist() == pytest.approx([expected] * 10)


def test_normalisation_starts_with_what_the_spikes_give() -> None:
    """Measured once more, with the spikes that these statistics cause, they are the same."""
    torch.manual_seed(0)
    x = images_for("resnet20", 12)
    model = SNN2ANN(NETS["resnet20"](), image=x.shape[1:]).double()
    norms = [norm for norm in model.net.modules() if isinstance(norm, nn.BatchNorm2d)]
    thresholds = {name: layer.threshold.clone() for name, layer in model.layers.items()}
    model.prepare(tiny.batches(x, (8, 4)))
    measured = [norm.running_mean.clone() for norm in norms]  # type: ignore[union-attr]
    assert {norm.momentum for norm in norms} == {0.1}
    assert all(torch.equal(layer.threshold, thresholds[name]) for name, layer in model.layers.items())
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train().training_logits(x)
    for norm, mean in zip(norms, measured, strict=True):
        assert mean.abs().max() > 0.01 and torch.allclose(norm.running_mean, mean, atol=1e-6)  # type: ignore[arg-type]


def test_thresholds_are_drawn_for_each_neuron() -> None:
    torch.manual_seed(0)
    model = SNN2ANN(tiny.TwoConvolutions(), image=(3, 8, 8))
    theta = model.layers["act1"].threshold
    assert theta.shape == (4, 8, 8)
    assert 0.4 < theta.mean() < 0.6 and theta.min() >= 0.01 and theta.max() <= 1
    assert len(theta.unique()) > 200


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("T", [0, -3])
def test_no_steps_are_refused(method: str, T: int) -> None:
    with refused(rf"--model.T {T}: must be at least 1"):
        METHODS[method](LinearNet(), T=T)


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("surrogate", "alpha", 0.0), ("surrogate", "alpha", -1.0), ("surrogate", "theta", -1.0),
        ("surrogate", "v_init", 1.0), ("surrogate", "percentile", 0.0), ("surrogate", "lr", -0.1),
        ("dsr", "alpha", 0.0), ("dsr", "theta_bound", -0.1), ("dsr", "theta_init", 0.001),
        ("dsr", "theta_lr_scale", -1),
        ("tandem", "ann_epochs", -1), ("tandem", "epochs_per_layer", 0.0), ("tandem", "patience", 0),
        ("lasnn", "beta", -1.0), ("lasnn", "ann_epochs", -1), ("lasnn", "alpha", math.inf),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(method: str, option: str, value: float) -> None:
    with refused(rf"--model\.{option} "):
        METHODS[method](LinearNet(), **{option: value})


@pytest.mark.parametrize("method", ["tandem", "lasnn"])
def test_methods_that_need_a_trained_net_say_so(method: str) -> None:
    with refused(f"{method}.*--ckpt.*--model.ann_epochs N"):
        METHODS[method](LinearNet()).check_beginning(given=False)
    model = METHODS[method](LinearNet(), ann_epochs=3)
    with refused("--model.ann_epochs 3: the net that --ckpt gives is trained; give 0"):
        model.check_beginning(given=True)
    model.check_beginning(given=False)
    with refused("--model.ann_epochs 3: leaves none of 3 epochs"):
        model.check_training(trainer_of(model, max_epochs=3), DigitsDataModule())


def test_a_schedule_that_does_not_come_to_its_end_is_refused() -> None:
    model, datamodule = Tandem(LinearNet(), epochs_per_layer=8.0), DigitsDataModule()
    with refused("--model.epochs_per_layer 8: 2 layers do not fit into 8 epochs"):
        model.check_training(trainer_of(model), datamodule)
    model = Tandem(LinearNet())
    with refused("give --data.val_split N, or --model.epochs_per_layer E"):
        model.check_training(trainer_of(model, limit_val_batches=0), datamodule)
    with refused("one process"):
        model.check_training(trainer_of(model, world_size=2), datamodule)


def test_a_net_that_kept_its_max_pooling_is_no_start() -> None:
    source = ReLU(tiny.TwoConvolutions(nn.MaxPool2d(2)), max_pool="keep", image=(3, 8, 8))
    with refused("max-pooling"):
        DSR(tiny.TwoConvolutions(), image=(3, 8, 8)).start_from(source.net, [])
