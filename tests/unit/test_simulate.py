"""A whole converted network: against a step-by-step reference, in parts of time and batch, and at L = T = 1."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import NETS, PreActivationNet, assert_lively, images_for, named_model, step_by_step, trained
from running import EVERYTHING, run, spikes_of
from torch import Tensor, nn

from bench.errors import UserError
from bench.nets import architectures
from bench.snn.activations import QCFSActivation
from bench.snn.neurons import IFNode
from bench.snn.simulate import SpikingNetwork, simulate
from methods.qcfs import QCFS


@pytest.fixture(scope="module", params=NETS)
def case(request: pytest.FixtureRequest) -> tuple[QCFS, SpikingNetwork, Tensor]:
    model, images = named_model(request.param)
    return model, model.convert(8, []), images


@pytest.fixture(scope="module")
def small() -> tuple[QCFS, SpikingNetwork, Tensor]:
    """A net cheap enough to be run many times."""
    images = images_for("preactivation", batch=5)[:, :, :8, :8]
    model = trained(PreActivationNet(), images)
    return model, model.convert(8, []), images


@pytest.mark.parametrize("T", [1, 3, 8])
def test_spike_for_spike_equal_to_a_step_by_step_simulation(case: tuple[QCFS, SpikingNetwork, Tensor], T: int) -> None:
    """Every layer, every step, every neuron; B differs from T so that time and batch cannot be confused."""
    model, snn, images = case
    if len(images) == T:
        images = images[:2]
    logits, spikes = spikes_of(snn, images, T)
    expected_logits, expected = step_by_step(model.net, images, T)
    assert spikes.keys() == expected.keys()
    assert len(spikes) == sum(isinstance(m, QCFSActivation) for m in model.net.modules())
    for name in expected:
        assert torch.equal(spikes[name], expected[name]), name
    assert torch.allclose(logits, expected_logits, rtol=1e-9, atol=1e-9)
    if T == 8:
        assert_lively(logits, spikes)


def test_the_reported_spikes_are_those_of_the_reference(case: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    model, snn, images = case
    _, expected = step_by_step(model.net, images, 5)
    per_step = torch.stack([fired.flatten(1).sum(1) for fired in expected.values()]).sum(0)
    for limit in (EVERYTHING, 7, 2):
        _, spikes = run(snn, images, 5, limit)
        assert spikes.tolist() == per_step.tolist()
    assert snn.num_neurons == sum(fired[0, 0].numel() for fired in expected.values())


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet20", "resnet18", "vgg", "preactivation", "linear"])
def test_with_one_level_and_one_step_the_snn_is_its_ann(name: str) -> None:
    """L = T = 1: both fire where z >= theta / 2, through the whole network."""
    if name in NETS:
        model, images = named_model(name, L=1)
    else:
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        model = trained(architectures.create(name, 10), images, L=1)
    snn = model.convert(1, [])
    logits, spikes = spikes_of(snn, images, 1)
    with torch.no_grad():
        assert torch.allclose(logits[0], model(images), rtol=1e-9, atol=1e-9)
    assert_lively(logits, spikes)


def test_accuracy_of_the_approximation_grows_with_T(case: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    """The mean logits come closer to those of the unquantised net."""
    model, snn, images = case
    with torch.no_grad():
        smooth = _unquantised(model.net)(images)
    logits, _ = run(snn, images, 64)
    mean = logits.cumsum(0) / torch.arange(1, 65, dtype=torch.float64)[:, None, None]
    errors = [(mean[T - 1] - smooth).norm().item() for T in (2, 8, 64)]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]


class _Clip(nn.Module):
    def __init__(self, ceiling: Tensor) -> None:
        super().__init__()
        self.ceiling = ceiling.detach()

    def forward(self, z: Tensor) -> Tensor:
        return z.clamp(min=0).minimum(self.ceiling)


def _unquantised(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    for name, module in list(net.named_modules()):
        if isinstance(module, QCFSActivation):
            net.set_submodule(name, _Clip(module.threshold))
    return net


@pytest.mark.parametrize("image_steps", [1, 3, 5, 8, 11, 16, 17, 40, EVERYTHING])
def test_a_long_run_holds_every_shorter_run(small: tuple[QCFS, SpikingNetwork, Tensor], image_steps: int) -> None:
    """Prefix property, whether the limit cuts the run in time (below 8), in batch (8 to 39) or not at all."""
    _, snn, images = small
    reference, _ = run(snn, images, 8)
    long, _ = run(snn, images, 8, image_steps)
    assert torch.allclose(long, reference, rtol=1e-12, atol=1e-12)
    for T in range(1, 8):
        short, _ = run(snn, images, T, image_steps)
        assert short.shape == (T, 5, 4)
        assert torch.allclose(short, long[:T], rtol=1e-12, atol=1e-12)


def test_the_prefix_property_holds_on_every_net(case: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    _, snn, images = case
    long, spikes = run(snn, images, 6)
    for T, limit in ((1, None), (4, 3), (4, 9)):
        short, short_spikes = run(snn, images, T, limit)
        assert torch.allclose(short, long[:T], rtol=1e-11, atol=1e-11)
        assert torch.equal(short_spikes, spikes[:T])


@pytest.mark.parametrize("limit", [2, 6, 9, EVERYTHING])
def test_the_limit_bounds_the_images_times_steps_of_each_pass(
    small: tuple[QCFS, SpikingNetwork, Tensor], limit: int
) -> None:
    _, snn, images = small
    passes = []
    hook = snn.register_forward_pre_hook(lambda _, inputs: passes.append((len(inputs[0]), inputs[1])))
    run(snn, images, 4, limit)
    hook.remove()
    assert sum(batch * steps for batch, steps in passes) == 4 * len(images)
    assert max(batch * steps for batch, steps in passes) <= limit
    if limit == 2:
        assert passes == [(1, 2)] * 10
    if limit == 9:
        assert passes == [(2, 4), (2, 4), (1, 4)]


def test_batch_size_and_order_do_not_matter(case: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    _, snn, images = case
    together, _ = run(snn, images, 4)
    alone = torch.cat([run(snn, image[None], 4)[0] for image in images], 1)
    assert torch.allclose(together, alone, rtol=1e-11, atol=1e-11)
    order = torch.tensor([2, 0, 1])
    shuffled, _ = run(snn, images[order], 4)
    assert torch.allclose(shuffled, together[:, order], rtol=1e-11, atol=1e-11)


def test_nothing_is_left_from_one_batch_to_the_next(small: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    _, snn, images = small
    first, second = images[:3], images[2:] * 1.5
    expected, _ = run(snn, second, 5)
    again, _ = run(snn, second, 5)
    assert torch.equal(expected, again)
    for limit in (EVERYTHING, 3):
        run(snn, first, 7, limit)
        after, _ = run(snn, second, 5)
        assert torch.equal(after, expected)
    assert all(neuron.v is None for neuron in snn.neurons.values())


def test_an_abandoned_run_does_not_disturb_the_next(small: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    _, snn, images = small
    expected, _ = run(snn, images, 4)
    next(iter(simulate(snn, images, 6, 6)))
    again, _ = run(snn, images, 4)
    assert torch.equal(again, expected)


def test_a_network_continues_until_it_is_reset(small: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    _, snn, images = small
    expected, _ = run(snn, images, 5)
    snn.reset()
    with torch.no_grad():
        parts = torch.cat([snn(images, 2), snn(images, 3)])
        more = snn(images, 2)
    assert torch.allclose(parts, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(more, expected[:2])
    snn.reset()


def test_warm_up_steps_are_run_and_not_counted(small: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    model, snn, images = small
    expected, expected_spikes = run(snn, images, 6)
    late = SpikingNetwork(model.convert(6, []).net, warmup=2)
    for limit in (1, 13, EVERYTHING):
        logits, spikes = run(late, images, 4, limit)
        assert torch.allclose(logits, expected[2:], rtol=1e-12, atol=1e-12)
        assert torch.equal(spikes, expected_spikes[2:])


class _Waits(IFNode):
    lookahead = 6

    def run(self, x_TBX: Tensor) -> Tensor:
        assert len(x_TBX) >= 6 or self.v is not None, "a neuron that looks ahead must see as much at once"
        return super().run(x_TBX)


@pytest.mark.parametrize("T", [1, 6, 13])
def test_a_neuron_that_looks_ahead_gets_its_first_steps_at_once(T: int) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), _Waits(torch.tensor(1.0)), nn.Linear(5, 3))
    snn = SpikingNetwork(net)
    assert snn.lookahead == 6
    assert [logits.shape for logits, _ in simulate(snn, torch.randn(2, 3, 2, 2), T, 1)] == [(T, 1, 3)] * 2


def test_the_twin_is_the_quantised_net(case: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    """At T = L the twin of a QCFS net is the ANN itself; making it leaves the SNN as it was."""
    model, snn, images = case
    before, _ = run(snn, images, 2)
    with torch.no_grad():
        assert torch.allclose(snn.twin(4)(images), model(images), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(snn.twin(1)(images), model(images), rtol=1e-3)
    after, _ = run(snn, images, 2)
    assert torch.equal(before, after)


def test_conversion_leaves_the_trained_network_as_it_was(small: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    model, _, images = small
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    snn = model.convert(4, [])
    assert model.training
    assert not any(m.training for m in snn.net.modules())
    model.eval()
    run(snn, images, 4)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg", "linear"])
def test_a_converted_net_has_its_batch_norm_folded(name: str) -> None:
    """So the weights that are counted, priced and exported are those that spikes meet."""
    model, _ = named_model(name)
    assert any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model.net.modules())
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model.convert(1, []).net.modules())


def test_all_neurons_share_one_clock_and_copies_have_their_own(small: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    _, snn, images = small
    other = copy.deepcopy(snn)
    assert all(neuron.clock is other.clock for neuron in other.neurons.values())
    assert other.clock is not snn.clock
    assert torch.equal(run(snn, images, 3)[0], run(other, images, 3)[0])


def test_a_long_run_is_done_without_gradients(small: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    _, snn, images = small
    logits, counts = next(simulate(snn, images, 2))
    assert torch.is_grad_enabled()
    assert not logits.requires_grad
    assert not any(kind.is_floating_point() for kind in counts)


def test_a_net_without_neurons_is_refused() -> None:
    with pytest.raises(UserError, match="no spiking neuron"):
        SpikingNetwork(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("T", [0, -3])
def test_fewer_than_one_step_is_refused(small: tuple[QCFS, SpikingNetwork, Tensor], T: int) -> None:
    _, snn, images = small
    with pytest.raises(UserError, match=f"T = {T}"):
        next(iter(simulate(snn, images, T)))


def test_the_converted_net_cannot_be_called_by_hand(small: tuple[QCFS, SpikingNetwork, Tensor]) -> None:
    """A batch without its steps would give wrong logits in silence."""
    model, _, images = small
    snn = model.convert(4, [])
    with pytest.raises(UserError, match="simulate"):
        snn.net(images)
