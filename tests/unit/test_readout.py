"""The delayed read-out, and spikes that go on in another order."""

from __future__ import annotations

import inspect

import pytest
import tiny
import torch
from pydantic import JsonValue
from reference import named_model, refused, relu_net
from running import logits_of, outputs, run, spikes_of
from torch import nn

from bench.library import convert, simulate
from bench.registry.methods import METHODS
from bench.run.build import readout_of
from bench.snn.neurons import IFNode
from bench.snn.readout import Readout, delay_of
from bench.snn.simulate import SpikingNetwork
from methods.cos import COS
from methods.max_norm import MaxNorm


@pytest.mark.parametrize(
    ("delay", "T", "read"),
    [(0, 3, [1, 2, 3]), (2, 6, [3, 4, 5, 6]), (2, 7, [3, 4, 5, 6, 7]), (2, 5, [2, 3, 4, 5]), (9, 5, [2, 3, 4, 5]),
     (9, 3, [1, 2, 3])],
)  # fmt: skip
def test_the_answer_leaves_the_delay_out_or_reads_the_last_four(delay: int, T: int, read: list[int]) -> None:
    model, x = named_model("linear")
    model.use(Readout(delay=delay))
    snn = model.convert(T, [])
    logits = logits_of(snn, x, T)
    expected = torch.stack([logits[step - 1] for step in read]).sum(0)
    assert torch.allclose(snn.score(logits, T), expected, atol=1e-12)
    assert snn.window(T) == slice(read[0] - 1, T)


def test_the_estimate_is_what_the_most_driven_neurons_need() -> None:
    """With layer thresholds, those are the ones with the largest mean; v_0 = 0 here."""
    net, x = tiny.Layers(), tiny.normal(20, 6)
    rule = MaxNorm(net)
    rule.use(Readout(delay="auto"))
    snn = rule.convert(8, tiny.batches(x, (12, 8)))
    a, total = x.numpy(), 0.0
    for weight, bias in net.arrays()[:-1]:
        a = (a @ weight.T + bias).clip(0)
        total += a.max() / a.mean(0).max()
    assert snn.delay == int(total) > 3
    by_library = convert(net_of_relus(net), "max_norm", x, delay="auto")
    assert by_library.delay == snn.delay


def test_the_estimate_does_not_depend_on_where_theta_is_kept() -> None:
    """In the spikes, or in the next weights: then the mean of a layer is a rate."""
    theta, delays = torch.tensor([13.0, 0.4], dtype=torch.float64), []
    current = torch.tensor([2.0, 0.03], dtype=torch.float64)
    for unit in (False, True):
        neuron = IFNode(theta, v_init=0.5)
        neuron.unit_spikes = unit
        snn = SpikingNetwork(nn.Sequential(neuron, nn.Linear(2, 2).double()))
        delays.append(delay_of(snn, {"0": current / theta if unit else current}))
    assert delays == [3, 3], "0.5 * 13 / 2 = 3.25, and 0.5 * 0.4 / 0.03 = 6.7"


def test_a_constant_current_of_the_neuron_shortens_the_estimate() -> None:
    theta, mean = torch.tensor([2.0, 2.0]).double(), torch.tensor([0.5, 0.0]).double()
    for bias, expected in ((None, 4), (0.3, 2), (-0.3, 10), (-0.6, 0)):
        neuron = IFNode(theta, 0.0, None if bias is None else torch.tensor([bias, 9.0]).double())
        snn = SpikingNetwork(nn.Sequential(neuron, nn.Linear(2, 2).double()))
        assert delay_of(snn, {"0": mean}) == expected, "a neuron that is silent in the ANN does not count"


def net_of_relus(net: tiny.Layers) -> nn.Module:
    layers = [module if isinstance(module, nn.Linear) else nn.ReLU() for module in net.children()]
    order = [layers[0], nn.ReLU(), layers[2], nn.ReLU(), layers[4]]
    return nn.Sequential(*order).eval()


def test_a_method_without_images_gets_some_for_the_estimate() -> None:
    model, x = named_model("linear")
    assert model.calibration_images == 0
    model.use(Readout(delay="auto"))
    assert model.calibration_images > 0
    assert model.convert(4, tiny.batches(x, (3,))).delay > 0


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# Not of methods whose layers wait, nor of tandem, whose thresholds are set in training.
DELAYED = [name for name, entry in METHODS.items() if not (entry.waits or entry.warmup or name == "tandem")]


@pytest.mark.parametrize("name", DELAYED)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def test_any_method_obeys_the_options_on_any_device(name: str, device: str) -> None:
    images, entry, T = tiny.normal(8, 3, 8, 8), METHODS[name], 4
    training = METHODS[entry.sources[0] if entry.sources else name].load()
    net = training(tiny.TwoConvolutions(None), image=images.shape[1:]).double()
    if entry.begins_from:
        net.start_from(relu_net(), tiny.batches(images, (8,)))
    else:
        net.prepare(tiny.batches(images, (8,)))
    if name == "rnl":
        net.train()(images)  # its thresholds are averages over batches
    kind, few = entry.load(), {"calibration_images": 8, "batch": 4}
    taken = inspect.signature(kind).parameters.keys() & few.keys()
    model = kind(net.net, **{option: few[option] for option in taken}) if entry.sources else net
    model.to(device).use(Readout(delay=2))
    snn = model.convert(T, tiny.batches(images.to(device), (8,)))
    assert snn.delay == 2 and (snn.only_T == T) == entry.per_T == model.per_T
    assert logits_of(snn, images.to(device), T).isfinite().all()


@pytest.mark.parametrize("T", [3, 8])
def test_permuted_spikes_are_the_same_spikes_in_another_order(T: int) -> None:
    """Of the first layer, whose input no permutation changes; no neuron follows another."""
    model, x = named_model("resnet20")
    _, plain = spikes_of(model.convert(T, []), x, T)
    model.use(Readout(permute=True))
    snn = model.convert(T, [])
    logits, moved = spikes_of(snn, x, T)
    first = next(iter(plain))
    assert torch.equal(moved[first].sum(0), plain[first].sum(0))
    assert not torch.equal(moved[first], plain[first])
    mixed = (moved[first].sum(0) > 0) & (moved[first].sum(0) < T)
    orders = torch.unique(moved[first][:, mixed], dim=1).shape[1]
    assert orders > 2, "each neuron has an order of its own"
    assert snn.only_T == T and snn.lookahead == T
    assert snn.wait == 19 * T, "each of 19 layers waits"
    again, other = model.convert(T, []), model
    assert torch.equal(logits_of(again, x, T), logits), "a new conversion draws the same"
    assert not torch.equal(logits_of(again, x, T), logits), "a second run draws others"
    other.use(Readout(permute=True, draw_seed=1))
    assert not torch.equal(logits_of(other.convert(T, []), x, T), logits)


def test_permuting_waits_but_pays_nothing_twice() -> None:
    model, x = named_model("linear")
    model.use(Readout(permute=True))
    snn = model.convert(6, [])
    with outputs(snn.net, IFNode) as sent:
        run(snn, x, 6)
    assert snn.heard == set()
    fan_outs = {"act1": 9, "act2": 4}
    synops = sum(int((out != 0).sum()) * fan_outs[name] for name, out in sent.items())
    assert synops == sum(int(n.synop_counts.sum()) for n in snn.neurons.values())


def test_the_estimate_is_never_negative() -> None:
    """A potential that starts above theta needs no step."""
    net, x = net_of_relus(tiny.Layers()), tiny.normal(20, 6)
    snn = convert(net, "opi", x)
    means = {name: torch.ones_like(neuron.threshold) for name, neuron in snn.neurons.items()}
    assert delay_of(snn, means) > 0
    for neuron in snn.neurons.values():
        neuron.v_init = 3.0
    assert delay_of(snn, means) == 0


def test_a_graded_neuron_fires_at_its_lowest_level() -> None:
    net, x = net_of_relus(tiny.Layers()), tiny.normal(20, 6)
    delays = {}
    means = {"1": (a := net[:2](x).detach()).mean(0), "3": net[2:4](a).detach().mean(0)}
    for levels in (1, 4):
        snn = convert(net, "dcgs", x, levels=levels, delay="auto")
        needed = 0.0
        for neuron, mean in zip(snn.neurons.values(), means.values(), strict=True):
            lowest = 0.75 * neuron.threshold / 2 ** (levels - 1)
            needed += float((lowest / mean)[mean > 0].min())
        delays[levels] = snn.delay
        assert snn.delay == int(needed)
    assert delays[4] <= delays[1]


@pytest.mark.parametrize("method", ["parallel", "tpp", "bitplane", "pascal", "ttfs"])
def test_a_net_whose_layers_wait_has_no_early_steps_to_leave_out(method: str) -> None:
    model, x = named_model("linear")
    with refused("--snn.delay 2: each layer waits"):
        source = {"source": "qcfs"} if method == "ttfs" else {}
        convert(model, method, torch.cat([x] * 99), T=4, delay=2, **source)


def test_changes_cannot_be_permuted() -> None:
    with refused("--snn.permute true: .* change"):
        convert(net_of_relus(tiny.Layers()), "dcgs", tiny.normal(20, 6), T=4, permute=True)


def test_the_library_takes_the_seed_of_the_permutation() -> None:
    model, x = named_model("resnet20")
    first, again, other = (
        logits_of(convert(model, "qcfs", T=4, permute=True, draw_seed=seed), x, 4) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_no_option_is_refused() -> None:
    with refused("--snn.delay -1"):
        Readout(delay=-1)
    with refused("--snn.draw_seed -3"):
        Readout(permute=True, draw_seed=-3)
    model, x = named_model("linear")
    for wrong in ({"delay": "foo"}, {"delay": 1.5}, {"permute": "foo", "T": 4}):
        with refused(f"^qcfs: {next(iter(wrong))} = "):
            convert(model, "qcfs", x, **wrong)  # type: ignore[arg-type]
    with refused("--snn.draw_seed 3"):
        Readout(draw_seed=3)
    model, x = named_model("linear")
    cos = COS(model.net, rho=2)
    with refused("--snn.permute"):
        cos.use(Readout(permute=True))
    with refused("T"):
        convert(model, "qcfs", permute=True)
    assert simulate(convert(model, "qcfs", permute=True, T=4), x, 4).shape == (4, 3, 4)


class HeaderLike:
    """The read-out options of a header."""

    def __init__(self, snn: dict[str, JsonValue]) -> None:
        self.snn, self.recipe = snn, self

    def part(self, name: str) -> dict[str, JsonValue]:
        assert name == "snn"
        return self.snn


def test_spikes_that_are_no_longer_permuted_have_no_draws() -> None:
    permuted = HeaderLike({"permute": True, "draws": 2, "draw_seed": 3, "delay": 4})
    assert readout_of(permuted, {"permute": False}).changes == {"delay": 4}  # type: ignore[arg-type]
    assert readout_of(permuted, {"draws": 1}).changes == {**permuted.snn, "draws": 1}  # type: ignore[arg-type]
    drawing = HeaderLike({"draws": 2})  # a method that draws numbers itself
    assert readout_of(drawing, {"permute": False}).changes == {"draws": 2}  # type: ignore[arg-type]
