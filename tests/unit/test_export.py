"""ONNX, NIR and the model card: what is read back answers as what was written, step by step."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import yaml
from record_factory import make_record
from reference import PreActivationNet, named_model, step_by_step
from tiny import TwoConvolutions
from torch import Tensor, nn

from bench import convert, simulate
from bench.errors import UserError
from bench.records.record import Imported
from bench.snn.graph.fold import fold_currents
from bench.snn.neurons import IFNode
from bench.snn.simulate import SpikingNetwork
from bench.snn.simulate import simulate as simulate_parts
from methods.cos import COS
from methods.cs_qcfs import CSQCFS
from methods.srp import SRP

onnx = pytest.importorskip("onnx")
nir = pytest.importorskip("nir")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from bench.export.nir_format import to_nir  # noqa: E402
from bench.export.nir_reader import from_nir  # noqa: E402
from bench.export.onnx_format import LOGITS, SCORES, predict, to_onnx  # noqa: E402

T = 6


def noise(like: Tensor, number: int, seed: int = 7) -> Tensor:
    return torch.randn(number, *like.shape[1:], generator=torch.Generator().manual_seed(seed))


def own(method: str) -> Callable[[], tuple[SpikingNetwork, Tensor]]:
    def make() -> tuple[SpikingNetwork, Tensor]:
        torch.manual_seed(0)
        net, images = TwoConvolutions().eval(), torch.randn(12, 3, 8, 8)
        options = {"iterations": 2} if method == "snnc_ap" else {"granularity": "layer"} if method == "snm" else {}
        return convert(net, method, images, T=T, **options), images

    return make


def named(name: str) -> Callable[[], tuple[SpikingNetwork, Tensor]]:
    def make() -> tuple[SpikingNetwork, Tensor]:
        model, images = named_model(name)
        return model.float().convert(T, []), images.float()

    return make


def two_phase(kind: type) -> Callable[[], tuple[SpikingNetwork, Tensor]]:
    def make() -> tuple[SpikingNetwork, Tensor]:
        model, images = named_model("linear")
        return kind(model.float().net).convert(T, []), images.float()

    return make


PLAIN = {name: named(name) for name in ("resnet20", "vgg", "linear")} | {
    method: own(method) for method in ("robust_norm", "snnc_lp", "snnc_ap", "opi")
}
OTHERS = {"preactivation": named("preactivation"), "snm": own("snm"), "burst": own("burst"), "srp": two_phase(SRP),
          "cos": two_phase(COS)}  # fmt: skip


def agree(logits_TBK: Tensor, again_TBK: Tensor) -> None:
    """All but the few images in which a rounding moved a spike have the same logits at every step."""
    assert logits_TBK.shape == again_TBK.shape
    off = ((logits_TBK - again_TBK).abs() > 1e-4 * logits_TBK.abs().max()).any(2).any(0)
    assert off.double().mean() <= 0.02
    assert logits_TBK.sum(0).std(0).min() > 1e-6


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet20", "vgg")]


@pytest.mark.parametrize("name", [*LARGE, "snnc_lp", *OTHERS])
def test_onnx_gives_every_steps_logits_for_any_number_of_images(name: str) -> None:
    snn, images = (PLAIN | OTHERS)[name]()
    many = noise(images, 100)
    expected = simulate(snn, many, T)
    model = to_onnx(snn, images[:1], T)
    onnx.checker.check_model(onnx.load_model_from_string(model))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores, logits = session.run([SCORES, LOGITS], {"images": many.numpy()})
    agree(expected, torch.from_numpy(logits))
    assert torch.allclose(torch.from_numpy(scores), torch.from_numpy(logits).sum(0), atol=1e-4)
    one = session.run([LOGITS], {"images": many[:1].numpy()})[0]
    assert torch.allclose(torch.from_numpy(one), torch.from_numpy(logits[:, :1]), atol=1e-4)
    answers = expected.sum(0).argmax(1)
    assert (predict(model, [many[:30], many[30:]]).argmax(1) == answers).double().mean() >= 0.99
    # The network is as it was: it still counts.
    assert torch.equal(simulate(snn, many, T), expected)
    assert int(next(simulate_parts(snn, many, T)).counts.spikes.sum()) > 0


def test_onnx_at_one_step() -> None:
    snn, images = named("linear")()
    many = noise(images, 50)
    assert torch.equal(predict(to_onnx(snn, images[:1], 1), [many]).argmax(1), simulate(snn, many, 1).sum(0).argmax(1))


@pytest.mark.parametrize("name", PLAIN)
def test_nir_read_back_gives_every_steps_logits(name: str) -> None:
    snn, images = PLAIN[name]()
    many = noise(images, 100)
    content = to_nir(snn, images[:1], {"method": name})
    again = from_nir(content)
    agree(simulate(snn, many, T), simulate(again, many, T))
    graph = nir.read(io.BytesIO(content))
    neurons = [node for node in graph.nodes.values() if isinstance(node, nir.IF)]
    assert len(neurons) == len(snn.neurons)
    assert {node.metadata["reset"] for node in neurons} == {"subtract"}
    assert graph.metadata["method"] == name
    assert "subtract" in graph.metadata["reset"]


def test_nir_against_the_papers_net_run_step_by_step() -> None:
    """The file alone, by the rules in its metadata, in numpy."""
    model, images = named_model("linear")
    graph = nir.read(io.BytesIO(to_nir(model.float().convert(T, []), images[:1].float(), {})))
    order = ["x"]
    following = dict(graph.edges)
    while order[-1] in following:
        order.append(following[order[-1]])
    potentials: dict[str, object] = {}
    sums = 0
    for _ in range(T):
        value = images.float().numpy()
        for name in order:
            node = graph.nodes[name]
            if isinstance(node, nir.Flatten):
                value = value.reshape(len(value), -1)
            elif isinstance(node, nir.Affine):
                value = value @ node.weight.T + node.bias
            elif isinstance(node, nir.IF):
                charged = potentials.get(name, node.metadata["v_init"]) + node.r * value
                value = (charged >= node.v_threshold).astype(value.dtype)
                potentials[name] = charged - node.v_threshold * value
            else:
                assert isinstance(node, (nir.Input, nir.Output))
        sums = sums + value
    expected, _ = step_by_step(model.net.float(), images.float(), T)
    assert torch.allclose(torch.from_numpy(sums), expected.sum(0), atol=1e-4)


class Doubles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 4), IFNode(torch.tensor(1.0)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        return self.fc2(x + x)


def channels() -> tuple[SpikingNetwork, Tensor]:
    model = CSQCFS(TwoConvolutions(), lambda_init=1.0).eval()
    model.net.get_submodule("act1").s.data += torch.arange(4.0).view(4, 1, 1)
    return model.convert(T, []), torch.zeros(1, 3, 8, 8)


REFUSED = {
    "burst": (OTHERS["burst"], r"act1 is a BurstIFNode"),
    "cos": (OTHERS["cos"], r"act1 is a COSNode"),
    "srp": (OTHERS["srp"], r"act1 is a SRPNode"),
    "BN that cannot be folded": (OTHERS["preactivation"], r"BatchNorm2d"),
    "a value added to itself": (lambda: (SpikingNetwork(Doubles()), torch.zeros(1, 4)), "adds a value to itself"),
    "one threshold per channel": (channels, "act1: only a scalar threshold"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_nir_cannot_express_is_refused_by_name(what: str) -> None:
    make, pattern = REFUSED[what]
    snn, images = make()
    with pytest.raises(UserError, match=pattern) as caught:
        to_nir(snn, images[:1], {})
    assert "\n" not in str(caught.value)


def test_a_nir_file_that_does_not_say_how_it_resets_is_refused() -> None:
    one = torch.ones(3).numpy()
    nodes = {"i": nir.Input({"input": one.astype(int)[:1] * 3}), "n": nir.IF(one, one),
             "o": nir.Output({"output": one.astype(int)[:1] * 3})}  # fmt: skip
    buffer = io.BytesIO()
    nir.write(buffer, nir.NIRGraph(nodes, [("i", "n"), ("n", "o")]))
    with pytest.raises(UserError, match="n: an IF node without the metadata"):
        from_nir(buffer.getvalue())
    with pytest.raises(UserError, match="not a NIR file"):
        from_nir(b"nothing of the kind")


def test_folding_constant_currents_changes_nothing_and_leaves_none() -> None:
    snn, images = own("snnc_lp")()
    expected = simulate(snn, images, T)
    net = fold_currents(snn.net)
    neurons = [module for module in net.modules() if isinstance(module, IFNode)]
    assert all(neuron.bias is not None for neuron in snn.neurons.values())
    assert [neuron.bias for neuron in neurons] == [None, None]
    assert torch.allclose(simulate(SpikingNetwork(net, only_T=T), images, T), expected, atol=1e-5)


def test_a_current_that_no_bias_can_take_is_refused_by_name() -> None:
    net = PreActivationNet().eval()
    for name in ("act1", "act2", "act3"):
        net.set_submodule(name, IFNode(torch.tensor(1.0), bias=torch.tensor(0.1)))
    with pytest.raises(UserError, match="act1: its constant current"):
        fold_currents(copy.deepcopy(net))


@pytest.mark.parametrize(
    "sum_of", [lambda x, c: torch.add(x, c, alpha=2), lambda x, c: c + c, lambda x, c: torch.add(input=c, other=c)]
)
def test_a_current_is_not_folded_where_a_multiple_of_it_would_arrive(
    sum_of: Callable[[Tensor, Tensor], Tensor],
) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
            self.act = IFNode(torch.tensor(1.0), bias=torch.tensor(0.1))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.act(sum_of(x, self.conv(x))))

    with pytest.raises(UserError, match="act: its constant current"):
        fold_currents(Twice())


def test_the_card_has_the_records_numbers_where_the_hub_reads_them() -> None:
    hub = pytest.importorskip("huggingface_hub")
    from bench.export.card import model_card

    record = make_record()
    card = hub.ModelCard(model_card(record))
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("ann2snn-bench", "image-classification")
    assert {"spiking-neural-network", record.method.name, record.arch.name} <= set(data["tags"])
    metrics = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert metrics == {"ANN top-1": record.ann.top1} | {f"SNN top-1, T = {p.T}": p.top1 for p in record.snn}
    for point in record.snn:
        accuracies = f"{100 * point.top1:.2f} | {100 * point.top5:.2f}"
        assert f"| {point.T} | {point.warmup} | {point.wait} | {accuracies} |" in card.text
    assert record.checkpoint.sha256 in card.text
    assert "A network trained to be converted" in card.text
    theirs = Imported(file="net.pth", sha256="a" * 64)
    for epochs, words in (
        (0, "A network that others have trained, and"),
        (4, "others have trained, tuned further here"),
    ):
        training = record.training.model_copy(update={"imported": theirs, "epochs": epochs})
        assert words in model_card(record.model_copy(update={"training": training}))
    front = yaml.safe_load(model_card(record).split("---")[1])
    assert front["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"
    assert "{" not in card.text.replace("${", "")
