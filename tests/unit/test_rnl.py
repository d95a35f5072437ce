"""RNL and RIL: rate norm layers, their SNN, and the two stages of training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import tiny
import torch
from reference import LinearNet, randomise, refused
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.run.trainer import make_trainer
from methods.rnl import RNL, RateNorm


def plain() -> nn.Module:
    """Two layers of neurons on six numbers, without BN."""
    return tiny.Layers((6, 9, 8, 4), activation=nn.ReLU).float()


def ready(net: nn.Module, images: Tensor, **options: float) -> RNL:
    """M from a pass in training mode, BN statistics as of a trained net, in double precision."""
    model = RNL(net, **options)  # type: ignore[arg-type]
    randomise(model, 0)
    model.train()
    model(images.float())
    randomise(model, 0)
    return model.double().eval()


def theta_of(q: float, M: float) -> float:
    return M / (1 + math.exp(-q)) + 1e-6


# ---------------------------------------------------------------------------------------------------- activations


def test_rates_are_those_of_the_formula_and_between_0_and_1() -> None:
    act = RateNorm().double().eval()
    act.M.fill_(2.5)
    for q in (10.0, 4.0, -1.0):
        act.q = torch.tensor(q, dtype=torch.float64)
        z = tiny.normal(400) * 3
        rates = act(z)
        theta = theta_of(q, 2.5)
        expected = [min(max(value, 0.0) / theta, 1.0) for value in z.tolist()]
        assert rates.tolist() == pytest.approx(expected, rel=1e-12)
        assert rates.min() == 0
        assert rates.max() == 1


def test_M_is_an_exponential_average_of_the_batch_maximum() -> None:
    """Momentum 0.1; in training only."""
    act = RateNorm().train()
    average: float | None = None
    for seed in range(6):
        z = tiny.normal(5, 3, 2, 2, seed=seed).float() * (seed + 1)
        act(z)
        largest = max(0.0, z.max().item())
        average = largest if average is None else 0.9 * average + 0.1 * largest
        assert act.M.item() == pytest.approx(average, rel=1e-6)
    before = act.M.clone()
    act.eval()
    act(torch.full((3, 3), 1e6))
    assert torch.equal(act.M, before)


def test_M_sees_no_negative_numbers_and_no_gradient() -> None:
    act = RateNorm().train()
    act(torch.ones(4, 2))
    z = (-torch.ones(4, 2)).requires_grad_()
    act(z).sum().backward()
    assert act.M.item() == pytest.approx(0.9)
    assert not act.M.requires_grad


# ------------------------------------------------------------------------------------------------------------ SNN


def test_the_snn_is_one_of_unit_spikes_with_the_weights_as_they_are() -> None:
    """Spike for spike a numpy simulation with theta = sigmoid(q) M + 1e-6 and the ANN's own weights."""
    x, T = tiny.normal(7, 6), 10
    model = ready(plain(), x)
    model.set_q(torch.tensor(1.5))
    snn = model.convert(T, [])
    seen: dict[str, Tensor] = {}
    for name, neuron in snn.neurons.items():
        neuron.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.unflatten(0, (T, 7))}))
    logits = snn(x, T)
    spikes = torch.stack([neuron.spike_counts for neuron in snn.neurons.values()]).sum(0)
    arriving, total = tiny.constant(x.numpy(), T), np.zeros(T)
    for index in (1, 2):
        layer = model.net.get_submodule(f"fc{index}")
        assert torch.equal(snn.net.get_submodule(f"fc{index}").weight, layer.weight)
        theta = theta_of(1.5, model.net.get_submodule(f"act{index}").M.item())
        current = arriving @ tiny.numpy(layer.weight).T + tiny.numpy(layer.bias)
        arriving = (tiny.spike_train(current, theta, 0.0) > 0).astype(float)
        np.testing.assert_array_equal(seen[f"act{index}"].numpy(), arriving)
        assert 0.05 < arriving.mean() < 0.9
        total += arriving.sum((1, 2))
    head = model.net.fc3
    np.testing.assert_allclose(logits.numpy(), arriving @ tiny.numpy(head.weight).T + tiny.numpy(head.bias), atol=1e-9)
    assert spikes.tolist() == total.tolist()


@pytest.mark.parametrize("q", [10.0, 1.0])
def test_the_rate_goes_to_the_ann_s(q: float) -> None:
    x = tiny.normal(6, 3, 8, 8)
    model = ready(LinearNet(), x)
    model.set_q(torch.tensor(q))
    rates: list[Tensor] = []
    model.net.act1.register_forward_hook(lambda _, __, out: rates.append(out))
    ann = model(x).detach()
    errors = []
    for T in (8, 32, 512):
        snn = model.convert(T, [])
        sent: list[Tensor] = []
        snn.neurons["act1"].register_forward_hook(lambda _, __, out, sent=sent: sent.append(out))
        logits = snn(x, T)
        lacking = rates[0].detach() - sent[0].unflatten(0, (T, 6)).mean(0)
        assert lacking.min() > -1e-9
        assert lacking.max() < 1 / T + 1e-9, "v_0 = 0 rounds down"
        errors.append((logits.mean(0) - ann).norm().item())
    assert errors[0] > 1.5 * errors[1] > 8 * errors[2]
    assert errors[2] < 0.03 * ann.norm().item()


def test_the_twin_speaks_in_rates_too() -> None:
    x = tiny.normal(6, 3, 8, 8)
    model = ready(LinearNet(), x)
    twin = model.convert(4, []).twin(2**16)
    assert torch.allclose(twin(x), model(x), atol=1e-3)


# --------------------------------------------------------------------------------------------------------- stage 2


class OwnRate(nn.Module):
    """The formula, of numbers."""

    def __init__(self, q: float, M: float) -> None:
        super().__init__()
        self.theta = theta_of(q, M)
        self.rates = torch.zeros(0)

    def forward(self, z: Tensor) -> Tensor:
        self.rates = (z.relu() / self.theta).clamp(0, 1)
        return self.rates


def at_q(model: RNL, q: float, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and rates of a copy whose layers have this q."""
    net = copy.deepcopy(model.net).eval()
    own = []
    for name, layer in model.net.named_modules():
        if isinstance(layer, RateNorm):
            own.append(OwnRate(q, layer.M.item()))
            net.set_submodule(name, own[-1])
    with torch.no_grad():
        logits = net(images)
    return logits, [layer.rates for layer in own]


def loss_by_hand(model: RNL, q: float, images: Tensor, beta: float) -> float:
    """1 - cos(teacher, student) + beta mean Omega, the teacher being the net at q = 10."""
    teacher, _ = at_q(model, 10.0, images)
    logits, rates = at_q(model, q, images)
    cosines = [
        sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
        for one, other in zip(teacher.tolist(), logits.tolist(), strict=True)
    ]
    positive = logits.relu()
    omegas = [r.abs().sum().item() / (r.square().sum().item() + 1e-5) for r in [*rates, positive / positive.max()]]
    return 1 - sum(cosines) / len(cosines) + beta * sum(omegas) / len(omegas)


@pytest.mark.parametrize("net", [plain, LinearNet, tiny.TwoConvolutions])
@pytest.mark.parametrize("beta", [0.1, 0.0])
def test_the_loss_and_its_derivative(net: Callable[[], nn.Module], beta: float) -> None:
    """A teacher at q = 10, and a gradient for q that is the numerical derivative."""
    x = tiny.normal(8, 6) if net is plain else tiny.normal(8, 3, 8, 8)
    model = ready(net(), x, beta=beta, q_init=0.5)
    same = copy.deepcopy(model)
    model.q.requires_grad_(True)
    loss = model.speed_loss(x)
    loss.backward()
    assert loss.item() == pytest.approx(loss_by_hand(same, 0.5, x, beta), rel=2e-5, abs=1e-7)
    step = 1e-4
    slope = (loss_by_hand(same, 0.5 + step, x, beta) - loss_by_hand(same, 0.5 - step, x, beta)) / (2 * step)
    assert abs(slope) > 1e-4, "or the test could not fail"
    assert model.q.grad is not None
    assert model.q.grad.item() == pytest.approx(slope, rel=2e-3)


def test_the_teacher_is_not_the_student() -> None:
    """The cosine term of the released code vanishes; this one must not."""
    x = tiny.normal(8, 3, 8, 8)
    model = ready(LinearNet(), x, beta=0.0, q_init=-2.0)
    assert model.speed_loss(x).item() > 1e-3
    model = ready(LinearNet(), x, beta=0.0, q_init=10.0)
    assert abs(model.speed_loss(x).item()) < 1e-6


# ---------------------------------------------------------------------------------------------------------- a real fit


class Images(pl.LightningDataModule):
    """Labels that can be learnt."""

    def __init__(self) -> None:
        super().__init__()
        x = tiny.normal(24, 3, 8, 8, seed=1).float()
        self.data = [(part, part[:, 0].mean((1, 2)).gt(0).long()) for part in torch.split(x, 6)]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.data, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.data[:1], batch_size=None)  # type: ignore[arg-type]


class Diary(pl.Callback):
    """Everything that the model holds, at the beginning and behind each batch."""

    def __init__(self) -> None:
        self.pages: list[tuple[int, dict[str, Tensor]]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, model: pl.LightningModule, *_: object) -> None:
        if not self.pages:
            self.note(trainer, model)

    def on_train_batch_end(self, trainer: pl.Trainer, model: pl.LightningModule, *_: object) -> None:
        self.note(trainer, model)

    def note(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.pages.append((trainer.current_epoch, state))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RNL, Diary]:
    """Three epochs for accuracy, two for speed, four batches each."""
    torch.manual_seed(0)
    model, diary = RNL(tiny.TwoConvolutions(), stage2_epochs=2, q_lr=0.5, lr=0.05), Diary()
    trainer = make_trainer({"max_epochs": 5, "accelerator": "cpu"}, [], [diary], tmp_path_factory.mktemp("rnl"))
    trainer.fit(model, datamodule=Images())
    assert [epoch for epoch, _ in diary.pages] == [0] + [e for e in range(5) for _ in range(4)]
    return model, diary


def layer_q(state: dict[str, Tensor]) -> list[float]:
    return [value.item() for name, value in state.items() if name.startswith("net.") and name.endswith(".q")]


def test_stage_1_trains_the_weights_at_q_10(run: tuple[RNL, Diary]) -> None:
    _, diary = run
    first = [state for epoch, state in diary.pages if epoch < 3]
    for before, after in pairwise(first):
        for name in ("net.conv1.weight", "net.fc.bias", "net.act1.M", "net.bn1.running_mean", "net.bn2.weight"):
            assert not torch.equal(before[name], after[name]), name
        assert layer_q(before) == layer_q(after) == [10.0, 10.0]
        assert after["q"].item() == 4.0


def test_stage_2_moves_q_and_nothing_else(run: tuple[RNL, Diary]) -> None:
    """Weights, BN statistics and M are the same to the last bit, momentum and weight decay notwithstanding."""
    _, diary = run
    end = next(index for index, (epoch, _) in enumerate(diary.pages) if epoch == 3)
    frozen = diary.pages[end - 1][1]
    for _, state in diary.pages[end:]:
        for name, value in state.items():
            if name != "q" and not name.endswith(".q"):
                assert torch.equal(value, frozen[name]), name
    moves = [state["q"].item() for _, state in diary.pages[end - 1 :]]
    assert moves[0] == 4.0
    assert all(a != b for a, b in pairwise(moves)), moves


def test_what_was_learnt_goes_into_layers_and_conversion(run: tuple[RNL, Diary]) -> None:
    model, diary = run
    q = model.q.item()
    assert q == diary.pages[-1][1]["q"].item()
    assert [layer.q.item() for layer in model.layers] == [q, q]
    assert not any(layer.q.requires_grad for layer in model.layers)
    snn = model.convert(4, [])
    for name, neuron in snn.neurons.items():
        assert neuron.threshold.item() == pytest.approx(theta_of(q, model.net.get_submodule(name).M.item()), rel=1e-6)
    other = RNL(tiny.TwoConvolutions())
    other.load_state_dict(model.state_dict())
    x = tiny.normal(4, 3, 8, 8).float()
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_q_has_the_momentum_of_the_authors_code_and_no_decay() -> None:
    model = RNL(LinearNet(), q_lr=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RNL, "stage1_epochs", 4)
        (optimizer,), _ = model.configure_optimizers()
    weights, q = optimizer.param_groups
    assert (q["lr"], q["momentum"], q["weight_decay"]) == (0.01, 0.9, 0.0)
    assert weights["weight_decay"] == 1e-4


def test_a_stage_without_stage_2_stays_at_10(tmp_path: Path) -> None:
    model = RNL(tiny.TwoConvolutions(), stage2_epochs=0, lr=0.05)
    make_trainer({"max_epochs": 1, "accelerator": "cpu"}, [], [], tmp_path).fit(model, datamodule=Images())
    assert [layer.q.item() for layer in model.layers] == [10.0, 10.0]
    assert model.q.item() == 4.0


@pytest.mark.parametrize("stage2", [2, 3])
def test_a_run_without_stage_1_is_refused(stage2: int, tmp_path: Path) -> None:
    model = RNL(tiny.TwoConvolutions(), stage2_epochs=stage2)
    with refused("stage2_epochs"):
        make_trainer({"max_epochs": 2, "accelerator": "cpu"}, [], [], tmp_path).fit(model, datamodule=Images())


def rates_of_learning(epochs: int, stage2: int) -> list[tuple[float, float]]:
    """Of the weights and of q, in each epoch."""
    model = RNL(tiny.TwoConvolutions(), stage2_epochs=stage2, lr=0.1, q_lr=0.02)
    model._trainer = SimpleNamespace(max_epochs=epochs)  # type: ignore[assignment]
    [optimizer], [schedule] = model.configure_optimizers()
    rates = []
    for _ in range(epochs):
        weights, q = (group["lr"] for group in optimizer.param_groups)
        rates.append((weights, q))
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(("stage1", "drops"), [(8, (4, 6)), (200, (100, 150)), (4, (2, 3))])
def test_the_learning_rate_falls_at_a_half_and_at_three_quarters(stage1: int, drops: tuple[int, int]) -> None:
    found = rates_of_learning(stage1 + 2, 2)
    for epoch, (weights, q) in enumerate(found[:stage1]):
        assert weights == pytest.approx(0.1 * 0.1 ** sum(epoch >= drop for drop in drops))
        assert q == pytest.approx(0.02)
    assert all(q == pytest.approx(0.02) for _, q in found)


@pytest.mark.parametrize("stage1", [1, 2, 3])
def test_even_a_short_run_starts_at_the_full_learning_rate(stage1: int) -> None:
    assert rates_of_learning(stage1 + 1, 1)[0][0] == pytest.approx(0.1)
