"""Foreign files of weights: what is read, under which of our names, and what is refused."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from running import spikes_of
from torch import Tensor, nn

from bench.errors import UserError
from bench.nets import architectures
from bench.nets.layouts import BY_ORDER, find_places, require_complete, weights_for
from bench.nets.weight_files import read_weights
from methods.qcfs import QCFS

State = dict[str, Tensor]


def random_net(arch: str = "cifar_resnet20", classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    net = architectures.create(arch, classes)
    for name, buffer in net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return net


def with_thresholds(net: nn.Module, leaf: str) -> State:
    """The state in the order of modules, each activation with a threshold of its own."""
    state: State = {}
    for index, (name, module) in enumerate(net.named_modules()):
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items() if "." not in key}
        if isinstance(module, nn.ReLU):
            state[f"{name}.{leaf}"] = torch.tensor([1 + index / 100])
    return state


def torchvision_name(name: str) -> str:
    name = re.sub(r"^stages\.(\d)", lambda m: f"layer{int(m[1]) + 1}", name)
    return name.replace("shortcut", "downsample")


def akamaster_name(name: str) -> str:
    return "module." + re.sub(r"^stages\.(\d)", lambda m: f"layer{int(m[1]) + 1}", name).replace("fc.", "linear.")


def qcfs_name(name: str) -> str:
    name = re.sub(r"^(conv1|bn1|act1)\.", lambda m: f"conv1.{('conv1', 'bn1', 'act1').index(m[1])}.", name)
    name = re.sub(r"^stages\.(\d)", lambda m: f"conv{int(m[1]) + 2}_x", name)
    inner = ("conv1", "bn1", "act1", "conv2", "bn2")
    name = re.sub(rf"(_x\.\d)\.({'|'.join(inner)})\.", lambda m: f"{m[1]}.residual_function.{inner.index(m[2])}.", name)
    return name.replace(".act2.", ".relu.")


LAYOUTS: dict[str, tuple[str, Callable[[str], str], str | None]] = {
    "ours": ("cifar_resnet20", lambda name: "_orig_mod.module." + name, None),
    "torchvision": ("cifar_resnet32", torchvision_name, None),
    "akamaster": ("cifar_resnet20a", akamaster_name, None),
    "qcfs": ("cifar_resnet20", qcfs_name, "thresh"),
    "srp": ("cifar_resnet32", qcfs_name, "up"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_known_repositories_go_where_they_belong(layout: str, tmp_path: Path) -> None:
    arch, renamed, leaf = LAYOUTS[layout]
    net = random_net(arch)
    ours = with_thresholds(net, leaf or "unused")
    theirs = {renamed(name): value for name, value in ours.items() if leaf or not name.endswith("unused")}
    path = tmp_path / "net.pth"
    torch.save({"state_dict": theirs, "epoch": 3, "args": argparse.Namespace(lr=0.1), "best": np.float64(91.7)}, path)
    file = read_weights(path)
    found = find_places(file, net, thresholds=leaf is not None)
    require_complete(found, file, arch, 10)
    assert found.by != BY_ORDER
    layers, thresholds = weights_for(file, found)
    expected = {name: value for name, value in net.state_dict().items() if "num_batches" not in name}
    assert set(layers) == set(expected) and all(torch.equal(layers[name], expected[name]) for name in expected)
    assert thresholds == {
        name.rpartition(".")[0]: value for name, value in ours.items() if leaf and name.endswith(f".{leaf}")
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_every_kind_of_file_holds_the_same(suffix: str, tmp_path: Path) -> None:
    state, path = random_net().state_dict(), tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    elif suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        net = {f"model.{name}": value.half() for name, value in state.items()}
        torch.save({"best_acc1": torch.tensor(69.7), "net": net}, path)
    file = read_weights(path)
    assert set(file.tensors) == {name for name in state if "num_batches" not in name}
    close = {"rtol": 1e-3, "atol": 1e-3} if suffix == ".pt" else {"rtol": 0, "atol": 0}
    assert all(torch.allclose(value, state[name], **close) for name, value in file.tensors.items())


def test_names_of_one_s_own_go_by_order_and_shape(tmp_path: Path) -> None:
    """As those of QCFS's VGG, numbered otherwise because dropout stands between its layers."""
    net = random_net()
    ours = with_thresholds(net, "thresh")
    modules = {name.rpartition(".")[0]: f"part{index}" for index, name in enumerate(dict.fromkeys(ours))}
    theirs = {f"{modules[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in ours.items()}
    torch.save(theirs, tmp_path / "net.pth")
    file = read_weights(tmp_path / "net.pth")
    found = find_places(file, net, thresholds=True)
    assert found.complete and found.by == BY_ORDER
    layers, thresholds = weights_for(file, found)
    assert all(torch.equal(value, ours[name]) for name, value in layers.items())
    assert all(torch.equal(value, ours[f"{name}.thresh"]) for name, value in thresholds.items())


def test_what_could_go_to_two_places_is_named(tmp_path: Path) -> None:
    state = {f"x{name}": value for name, value in reversed(random_net().state_dict().items())}
    torch.save(state, tmp_path / "net.pth")
    file = read_weights(tmp_path / "net.pth")
    found = find_places(file, random_net(), thresholds=False)
    with pytest.raises(UserError, match=r"stages\.2\.2\S+ could be stages\.\S+ or stages\.\S+, .* another order"):
        require_complete(found, file, "cifar_resnet20", 10)


@pytest.mark.parametrize(
    ("classes", "arch", "words"),
    [
        (100, "cifar_resnet20", "100 classes, but the data set has 10"),
        (10, "cifar_resnet32", "fits --arch cifar_resnet32"),
    ],
)
def test_a_file_of_another_net_says_what_it_is_of(classes: int, arch: str, words: str, tmp_path: Path) -> None:
    state = {torchvision_name(name): value for name, value in random_net(arch, classes).state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    file = read_weights(tmp_path / "net.pth")
    with pytest.raises(UserError, match=words):
        require_complete(find_places(file, random_net(), thresholds=False), file, "cifar_resnet20", 10)


def write(path: Path, content: object) -> None:
    torch.save(content, path)


def truncated(path: Path) -> None:
    torch.save(random_net().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: write(path, random_net()), r"pickled object.*CifarResNet.*torch.save\(model.state_dict\(\)"),
        (truncated, "truncated"),
        (lambda path: path.write_bytes(b""), "truncated"),
        (
            lambda path: write(path, {"module.a.weight": torch.ones(1), "b.weight": torch.ones(1)}),
            "begin with module., but b.",
        ),
        (lambda path: write(path, {"a.weight": torch.tensor([1.0, float("nan")])}), "a.weight has .*NaN"),
        (lambda path: write(path, {"optimizer": {"lr": 0.1}}), "no named tensors.*it has optimizer"),
        (lambda path: write(path, [torch.ones(1)]), "holds a list"),
        (lambda path: write(path, {"bench": {}, "state_dict": {}}), "of this suite.*--ckpt"),
        (lambda path: None, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_sound_net_is_refused(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    make(tmp_path / "net.pth")
    with pytest.raises(UserError, match=words) as refused:
        read_weights(tmp_path / "net.pth")
    assert "\n" not in str(refused.value)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": {"a.weight": torch.ones(1)}, "extra": Payload()}, tmp_path / "net.pth")
    with pytest.raises(UserError, match="pickled"):
        read_weights(tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_option_a_has_the_weights_that_he_et_al_print(depth: int, millions: float) -> None:
    """Table 6 of Deep Residual Learning for Image Recognition."""
    net = architectures.create(f"cifar_resnet{depth}a", 10)
    assert round(architectures.count_parameters(net) / 1e6, 2) == millions
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) + 1 == depth


def test_a_padded_shortcut_converts_exactly() -> None:
    """With nothing beside it, a block's neurons send just what the shortcut brings: every second spike, and none."""
    torch.manual_seed(0)
    net = architectures.CifarResNet((4, 8), 1, 3, option="A")
    block = net.stages[1][0]
    nn.init.zeros_(block.bn2.weight)
    model = QCFS(net, L=4, lambda_init=1.0).eval()
    images = torch.rand(5, 3, 8, 8)
    _, spikes = spikes_of(model.convert(8, []), images, 8)
    before, after = spikes["stages.0.0.act2"], spikes["stages.1.0.act2"]
    assert before.any()
    assert torch.equal(after[:, :, 2:6], before[..., ::2, ::2])
    assert not after[:, :, [0, 1, 6, 7]].any()
