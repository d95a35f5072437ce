"""NQ: the noise, and the measurement of its size on held-out images."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from pathlib import Path

import pytest
import pytorch_lightning as pl
import tiny
import torch
from reference import PreActivationNet, calibrate, randomise, refused, step_by_step
from running import outputs
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.run.trainer import make_trainer
from bench.snn.activations import QCFSActivation, clip_floor_shift
from bench.snn.layerwise import layer_gaps
from bench.snn.simulate import SpikingNetwork
from methods.nq import NQ, NoisyQCFSActivation


class Images(pl.LightningDataModule):
    """Normal noise in single precision: one training batch, and uneven held-out ones."""

    def __init__(self, held_out: tuple[int, ...] = (5, 3, 4), side: int = 8) -> None:
        super().__init__()
        self.train = tiny.batches(tiny.normal(8, 3, side, side, seed=1).float(), (8,))
        self.val_augment = True
        self.held_out = tiny.batches(tiny.normal(sum(held_out), 3, side, side, seed=2).float(), held_out)

    def split(self, name: str) -> list[int]:
        return [0] * sum(len(x) for x, _ in (self.held_out if name == "val" else self.train))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.train, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> list[DataLoader[tuple[Tensor, Tensor]]]:
        return [DataLoader(self.held_out, batch_size=None)] if self.held_out else []  # type: ignore[arg-type]


class Sigmas(pl.Callback):
    """Each layer's sigma while an epoch trains."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, model: pl.LightningModule, *_: object) -> None:
        self.seen.append([layer.sigma.item() for layer in noisy(model)])


def noisy(model: nn.Module) -> list[NoisyQCFSActivation]:
    return [m for m in model.modules() if isinstance(m, NoisyQCFSActivation)]


def fit(model: NQ, data: Images, epochs: int, folder: Path) -> Sigmas:
    sigmas = Sigmas()
    make_trainer({"max_epochs": epochs, "accelerator": "cpu"}, [], [sigmas], folder).fit(model, datamodule=data)
    return sigmas


def made(net: nn.Module, **options: float) -> NQ:
    """As if trained; a learning rate of 0 keeps it so."""
    model = NQ(net, lr=0.0, **options)  # type: ignore[arg-type]
    randomise(model, 0)
    calibrate(model.net, tiny.normal(8, 3, 8, 8).float())
    return model.train()


def measured_by_hand(model: NQ, data: Images, T: int) -> list[float]:
    """Root of the mean variance, over the batches, of activation minus mean spike output, in double precision."""
    ann = copy.deepcopy(model.net).double().eval()
    variances: dict[str, list[float]] = {}
    for images, _ in data.held_out:
        with outputs(ann, QCFSActivation) as activations:
            ann(images.double())
        _, spikes = step_by_step(ann, images.double(), T)
        for name, a in activations.items():
            theta = ann.get_submodule(name).threshold
            gap = a - theta * spikes[name].double().mean(0)
            variances.setdefault(name, []).append(gap.var().item())
    return [math.sqrt(sum(found) / len(found)) for found in variances.values()]


@pytest.mark.parametrize(("net", "T"), [("convolutions", 4), ("convolutions", 3), ("preactivation", 4)])
def test_sigma_is_the_error_of_a_step_by_step_simulation(net: str, T: int, tmp_path: Path) -> None:
    """A real fit of two epochs: 0 while the first trains, and what was measured after it while the second does."""
    model, data = made(tiny.TwoConvolutions() if net == "convolutions" else PreActivationNet(), T_val=T), Images()
    sigmas = fit(model, data, 2, tmp_path)
    assert sigmas.seen[0] == [0.0] * len(noisy(model))
    last = [layer.sigma.item() for layer in noisy(model)]
    assert last == pytest.approx(measured_by_hand(model, data, T), rel=3e-3, abs=1e-5)
    assert last[-1] > 0.02 * noisy(model)[-1].threshold.item(), "or there would be nothing to measure"
    assert all(sigma > 0 for sigma in sigmas.seen[1][1:])
    # BN statistics moved by one epoch, and little else.
    assert sigmas.seen[1][-1] == pytest.approx(last[-1], rel=0.5)


def test_the_second_epoch_trains_with_what_the_first_has_measured(tmp_path: Path) -> None:
    model, data = made(tiny.TwoConvolutions()), Images()
    once = copy.deepcopy(model)
    fit(once, data, 1, tmp_path / "one")
    sigmas = fit(model, data, 2, tmp_path / "two")
    assert sigmas.seen[1] == [layer.sigma.item() for layer in noisy(once)]


def test_a_gap_that_is_known_by_construction(tmp_path: Path) -> None:
    """One layer, constant current: q at L levels minus q at T_val levels, in rational arithmetic."""
    L, T, theta = 4, 3, 2.0
    model = NQ(tiny.Wire(192, nn.ReLU()), L=L, T_val=T, lambda_init=theta, lr=0.0)
    data = Images((6, 2))
    fit(model, data, 1, tmp_path)

    def level(z: float, levels: int) -> Fraction:
        count = math.floor(Fraction(z) * levels / Fraction(theta) + Fraction(1, 2))
        return Fraction(theta) * min(max(count, 0), levels) / levels

    variances = []
    for images, _ in data.held_out:
        gaps = [float(level(z, L) - level(z, T)) for z in images.flatten().tolist()]
        mean = sum(gaps) / len(gaps)
        variances.append(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    expected = math.sqrt(sum(variances) / len(variances))
    assert noisy(model)[0].sigma.item() == pytest.approx(expected, rel=2e-3)


def test_measuring_leaves_the_net_and_its_mode_alone(tmp_path: Path) -> None:
    """With a learning rate of 0 only BN statistics and sigma change; the SNN is no part of the model."""
    model, data = made(tiny.TwoConvolutions()), Images()
    before = copy.deepcopy(model.state_dict())
    fit(model, data, 1, tmp_path)
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        if not any(part in name for part in ("running_", "num_batches", "sigma")):
            assert torch.equal(value, before[name]), name
    for layer in noisy(model):
        assert not layer.sigma.is_inference()
        assert layer.sigma.shape == ()


# ---------------------------------------------------------------------------------------------------------- noise


def layer(sigma: float, theta: float = 2.0, L: int = 4) -> NoisyQCFSActivation:
    act = NoisyQCFSActivation(L, theta, "clip_first").double()
    act.sigma.fill_(sigma)
    return act


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_noise_has_the_measured_deviation_and_mean_zero(layout: torch.memory_format) -> None:
    """Within five standard errors; below 0 and above theta as well, so it is not clipped."""
    torch.manual_seed(4321)
    n, sigma = 40_000, 0.3
    act, z = layer(sigma).train(), (tiny.normal(200, 4, 10, 5) * 2).contiguous(memory_format=layout)
    quantised = clip_floor_shift(z, act.threshold, 4)
    assert act(z).is_contiguous(memory_format=layout)
    torch.manual_seed(4321)
    noise = (act(z) - quantised).detach()
    assert noise.mean().item() == pytest.approx(0, abs=5 * sigma / n**0.5)
    assert noise.std().item() == pytest.approx(sigma, rel=5 / (2 * n) ** 0.5)
    assert len(noise.flatten().unique()) > n - 10, "one draw for each element"
    bottom, top = noise[quantised == 0], noise[quantised == 2.0]
    for part in (bottom, top):
        assert len(part) > 1000
        assert part.mean().item() == pytest.approx(0, abs=5 * sigma / len(part) ** 0.5)
    kurtosis = ((noise / sigma) ** 4).mean().item()
    assert kurtosis == pytest.approx(3, abs=0.15)


def test_noise_is_drawn_anew_for_each_step() -> None:
    torch.manual_seed(4321)
    act, z = layer(0.3).train(), tiny.normal(1000)
    first, second = act(z), act(z)
    correlation = torch.corrcoef(torch.stack([first - act.eval()(z), second - act(z)]).detach())[0, 1]
    assert abs(correlation.item()) < 5 / 1000**0.5


def test_there_is_no_noise_in_evaluation_nor_before_it_is_measured() -> None:
    z = tiny.normal(50, 4)
    expected = clip_floor_shift(z, torch.tensor(2.0, dtype=torch.float64), 4)
    assert torch.equal(layer(0.5).eval()(z), expected)
    assert torch.equal(NoisyQCFSActivation(4, 2.0, "clip_first").double().train()(z), expected)
    model = made(tiny.TwoConvolutions()).double().eval()
    x = tiny.normal(4, 3, 8, 8)
    clean = model(x)
    for act in noisy(model):
        act.sigma.fill_(10.0)
    assert torch.equal(model(x), clean)
    assert torch.equal(model.test_step((x, torch.zeros(4)), 0), clean), "ann is the accuracy without noise"
    a, b = (m.neurons["act1"].threshold for m in (model.convert(4, []), made(tiny.TwoConvolutions()).convert(4, [])))
    assert a.item() == pytest.approx(b.item())
    assert not torch.equal(model.train()(x), clean)


@pytest.mark.parametrize("region", ["clip_first", "floor_first"])
def test_the_gradient_does_not_see_the_noise(region: str) -> None:
    """Not even through lambda, whose gradient contains the activation."""
    z, upstream = tiny.normal(60, 4, seed=1) * 2, tiny.normal(60, 4, seed=2)
    found = []
    for sigma in (0.0, 0.7):
        act = NoisyQCFSActivation(4, 2.0, region).double().train()  # type: ignore[arg-type]
        act.sigma.fill_(sigma)
        x = z.clone().requires_grad_()
        act(x).backward(upstream)
        found.append((x.grad, act.threshold.grad))
        assert act.sigma.grad is None
    assert torch.equal(found[0][0], found[1][0])  # type: ignore[arg-type]
    assert torch.equal(found[0][1], found[1][1])  # type: ignore[arg-type]


def test_sigma_goes_with_the_weights() -> None:
    model = made(tiny.TwoConvolutions())
    noisy(model)[0].sigma.fill_(0.25)
    noisy(model)[1].sigma.fill_(0.5)
    state = model.state_dict()
    assert {"net.act1.sigma", "net.act2.sigma"} <= state.keys()
    assert not [name for name, _ in model.named_parameters() if "sigma" in name], "measured, not learnt"
    other = NQ(tiny.TwoConvolutions())
    assert [layer.sigma.item() for layer in noisy(other)] == [0.0, 0.0]
    other.load_state_dict(state)
    assert [layer.sigma.item() for layer in noisy(other)] == [0.25, 0.5]


def test_a_run_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    with refused("val_split"):
        fit(made(tiny.TwoConvolutions()), Images(()), 1, tmp_path)


def test_a_trainer_with_loaders_of_its_own_is_refused(tmp_path: Path) -> None:
    batches = tiny.batches(tiny.normal(8, 3, 8, 8).float(), (4, 4))
    trainer = make_trainer({"max_epochs": 1, "accelerator": "cpu"}, [], [], tmp_path)
    with refused("give Trainer.fit a data module"):
        trainer.fit(made(tiny.TwoConvolutions()), batches, batches)


def test_held_out_images_that_are_not_augmented_are_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for augmented in (True, False):
        data = Images()
        data.val_augment = augmented
        fit(made(tiny.TwoConvolutions()), data, 1, tmp_path / str(augmented))
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
        assert len(lines) == (0 if augmented else 1), lines
    assert "--data.val_augment true" in lines[0]


@pytest.mark.parametrize(
    ("precision", "measured"),
    [("bf16-mixed", torch.float32), ("64-true", torch.float64), ("bf16-true", torch.bfloat16)],
)
def test_sigma_is_measured_in_the_arithmetic_of_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, measured: torch.dtype
) -> None:
    """In a training with TF32 and half precision; a net of another type keeps its own."""
    seen = []

    def watched(net: nn.Module, snn: SpikingNetwork, images: Tensor, T: int) -> dict[str, Tensor]:
        backends = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        seen.append((*backends, torch.is_autocast_enabled("cpu"), images.dtype))
        return layer_gaps(net, snn, images, T)

    monkeypatch.setattr("methods.nq.layer_gaps", watched)
    trainer = make_trainer({"max_epochs": 1, "accelerator": "cpu", "precision": precision}, [], [], tmp_path)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        trainer.fit(made(tiny.TwoConvolutions()), datamodule=Images())
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32, "as the training goes on"
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    assert set(seen) == {(False, False, False, measured)}
