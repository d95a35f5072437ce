"""Parts of a network between activations, and the shapes that activations see."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import NETS, images_for, named_model, randomise
from running import inputs, outputs
from torch import Tensor, nn

from bench.snn.activations import Activation
from bench.snn.graph.trace import input_shapes, segment
from bench.snn.neurons import SpikingNeuron
from methods.relu import ReLU


class Concatenation(nn.Module):
    """The image and both earlier activations meet again before the last activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.conv3, self.act3 = nn.Conv2d(12, 6, 1), nn.ReLU()
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.act1(self.conv1(x))
        second = self.act2(self.conv2(first))
        joined = self.conv3(torch.cat([second, first * self.scale, x], 1))
        out = self.act3(joined.view(joined.size(0), 6, -1)).mean(-1)
        return self.fc(out)


def watched(net: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Input and output of each activation; the image is the output of ``""``."""
    with inputs(net, Activation, nn.ReLU) as got, outputs(net, Activation, nn.ReLU) as given:
        net(images)
    return got, {"": images, **given}


def nets() -> dict[str, tuple[nn.Module, Tensor]]:
    cases = {name: (named_model(name)[0].net, images_for(name)) for name in NETS}
    joined = ReLU(Concatenation()).double().eval().net
    randomise(joined, 1)
    cases["concatenation"] = (joined, images_for("preactivation"))
    return cases


@pytest.fixture(scope="module", params=[*NETS, "concatenation"])
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Tensor]:
    return request.param, *nets()[request.param]


def test_every_part_gives_the_pre_activation(case: tuple[str, nn.Module, Tensor]) -> None:
    """From the given of the activations before; exactly, since the operations are the same."""
    _, net, images = case
    got, given = watched(net, images)
    assert len(got) >= 2
    for name, z in got.items():
        part, sources = segment(net, name)
        assert len(sources) == len(set(sources))
        assert name not in sources
        with torch.no_grad():
            assert torch.equal(part(*(given[source] for source in sources)), z), name


def test_a_part_is_linear_and_holds_nothing_else(case: tuple[str, nn.Module, Tensor]) -> None:
    _, net, images = case
    got, _ = watched(net, images)
    owners = {id(parameter): name for name, parameter in net.named_parameters()}
    used: list[str] = []
    for name in got:
        part, _ = segment(net, name)
        assert not any(isinstance(m, (Activation, nn.ReLU)) for m in part.modules())
        assert not any(module.training for module in part.modules() if isinstance(module, nn.BatchNorm2d))
        used += {owners[id(parameter)] for parameter in part.parameters()}
    assert used
    assert len(used) == len(set(used)) or case[0] == "preactivation", "no weight feeds two activations"
    heads = {name for name in owners.values() if name.startswith(("fc.", "head.", "classifier.5."))}
    thresholds = {name for name in owners.values() if name.endswith("threshold")}
    assert set(used) == set(owners.values()) - heads - thresholds


def test_weights_are_shared(case: tuple[str, nn.Module, Tensor]) -> None:
    """A refit of the part is a refit of the net."""
    _, original, images = case
    net = copy.deepcopy(original)
    before, _ = watched(net, images)
    name = list(before)[-1]
    part, sources = segment(net, name)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(1.5)
    got, given = watched(net, images)
    with torch.no_grad():
        assert torch.equal(part(*(given[source] for source in sources)), got[name])
    assert not torch.allclose(before[name], got[name])


def test_sources_of_a_residual_net() -> None:
    net = nets()["resnet18"][0]
    names = [name for name, m in net.named_modules() if isinstance(m, Activation)]
    assert len(names) == 17
    assert segment(net, "act1")[1] == [""]
    assert segment(net, "stages.0.0.act1")[1] == ["act1"]
    assert segment(net, "stages.0.0.act2")[1] == ["act1", "stages.0.0.act1"], "shortcut first: in the order of the run"
    assert segment(net, "stages.1.0.act2")[1] == ["stages.0.1.act2", "stages.1.0.act1"]
    part, _ = segment(net, "stages.1.0.act2")
    assert len([m for m in part.modules() if isinstance(m, nn.Conv2d)]) == 2, "the block's convolution, the shortcut's"


def test_the_image_is_a_source_wherever_it_comes_in() -> None:
    cases = nets()
    assert segment(cases["concatenation"][0], "act3")[1] == ["", "act1", "act2"]
    net = cases["preactivation"][0]
    assert segment(net, "act2")[1] == ["act1"]
    assert segment(net, "act3")[1] == ["", "act2"]


def test_neurons_are_ends_as_activations_are() -> None:
    model, images = named_model("resnet18")
    snn = model.convert(4, [])
    got, given = watched(model.net, images)
    for name in got:
        part, sources = segment(snn.net, name)
        assert sources == segment(model.net, name)[1]
        assert not any(isinstance(m, SpikingNeuron) for m in part.modules())
        with torch.no_grad():
            z = part(*(given[source] for source in sources))
        assert torch.allclose(z, got[name], rtol=1e-9, atol=1e-9), "folded BN"


@pytest.mark.parametrize("name", ["vgg", "resnet18", "resnet20", "preactivation"])
def test_input_shapes(name: str) -> None:
    """Of one 32x32 image; statistics and mode of the net are untouched."""
    net = NETS[name]()
    net.train()
    before = copy.deepcopy(net.state_dict())
    found = input_shapes(net, nn.ReLU)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())
    got, _ = watched(net, torch.zeros(2, 3, 32, 32))
    assert found == {key: z.shape[1:] for key, z in got.items()}


def test_input_shapes_of_another_image_size() -> None:
    net = NETS["linear"]()
    assert input_shapes(net.double(), nn.ReLU, (3, 8, 8)) == {"act1": (12,), "act2": (9,)}
    net.pretrained_cfg = {"input_size": (3, 8, 8)}  # as timm writes it on its nets
    assert input_shapes(net, nn.Linear) == {"fc1": (192,), "fc2": (12,), "head": (9,)}
