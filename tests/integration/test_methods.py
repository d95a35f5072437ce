"""Every method of the registry through the real command line, and the refusals of what does not fit together."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest
from conftest import SHORT, Result

from bench.cli.main import main
from bench.leaderboard.consistency import contradictions
from bench.records.record import Record, read_record
from bench.registry.methods import METHODS

IMAGES = 32
RUN = ("--arch", "resnet20", "--data", "digits", "--subset", str(IMAGES), "--T", "1,4", "--logger", "none")
ALPHABETS = {"snm": "ternary", "burst": "multi", "dcgs": "multi", "group": "multi", "hmt": "multi"}
LEVELS = {"burst": 5, "dcgs": 8, "group": 4, "hmt": 15}
TRAINING = [name for name, entry in METHODS.items() if entry.source is None]
CONVERTING = [name for name, entry in METHODS.items() if entry.source is not None]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained nets of the methods that others convert, by name."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("qcfs", "relu", "tcl"):
        assert main(["fit", "--method", name, *RUN, "--max_epochs", "1", "--out", str(folder / name)]) == 0
    return folder


def fit(bench, method: str, *more: str, out: str = "run") -> Result:
    short = [f"--{option}={value}" for option, value in SHORT.get(method, {}).items()]
    result: Result = bench("fit", "--method", method, *RUN, *short, *more, "--out", out)
    return result


def ledger_is_right(record: Record, method: str) -> None:
    entry = METHODS[method]
    assert record.method.paper == entry.paper
    assert record.conversion.per_T == entry.per_T
    assert record.conversion.causal == (not entry.waits)
    own = {"pascal": lambda T: 19 * (2 * T - 1), "cos": lambda T: 18 * 2}  # the first layer's 2 steps are the warm-up
    wanted = own.get(method, lambda T: 19 * T if entry.waits else 0)
    assert [point.wait for point in record.snn] == [wanted(point.T) for point in record.snn]
    assert record.conversion.draws == (5 if method == "tpp" else None)
    assert all(point.shifts > 0 for point in record.snn if point.T > 1) == (method == "bitplane")
    assert record.conversion.retrained == (entry.source is None)
    assert record.conversion.alphabet == ALPHABETS.get(method, "binary")
    assert record.conversion.levels_per_step == LEVELS.get(method, 1)
    assert all((point.warmup > 0) == entry.warmup for point in record.snn)
    assert [point.T for point in record.snn] == [1, 4]
    assert record.protocol.calibration_images <= IMAGES


@pytest.mark.parametrize("method", TRAINING)
def test_trains_and_repeats_from_its_weights(bench, method):
    result = fit(bench, method, "--max_epochs", "3", "--data.val_split", "16")
    assert result.status == 0, result.err
    record = read_record(Path("run/record.json"))
    ledger_is_right(record, method)
    again = bench("evaluate", "--ckpt", "run/model.safetensors", "--T", "1,4", "--out", "again", "--logger", "none")
    assert again.status == 0, again.err
    repeated = read_record(Path("again/record.json"))
    assert (repeated.ann, repeated.snn, repeated.extras) == (record.ann, record.snn, record.extras)
    assert repeated.checkpoint == record.checkpoint
    Path("run/checkpoints/previous.ckpt").replace("run/checkpoints/last.ckpt")
    resumed = fit(bench, method, "--max_epochs", "3", "--data.val_split", "16", "--ckpt", "last")
    assert resumed.status == 0 and "epoch 3/3" in resumed.out and "epoch 2/3" not in resumed.out, resumed.err
    assert read_record(Path("run/record.json")).checkpoint == record.checkpoint


@pytest.mark.parametrize("method", CONVERTING)
def test_converts_its_source_net(bench, method, sources):
    entry = METHODS[method]
    default = inspect.signature(entry.load()).parameters.get("source")
    source = sources / entry.source_for({"source": default and default.default}) / "model.safetensors"
    result = fit(bench, method, "--ckpt", str(source))
    assert result.status == 0, result.err
    record, origin = read_record(Path("run/record.json")), read_record(source.with_name("record.json"))
    ledger_is_right(record, method)
    assert record.ann == origin.ann
    assert record.conversion.source_sha256 == origin.checkpoint.sha256
    assert record.protocol.calibration_images == (0 if entry.source == "qcfs" else IMAGES)


def test_opi_takes_a_clipped_net(bench, sources):
    clip = ("--model.source", "clip", "--model.v_init", "uniform")
    result = fit(bench, "opi", *clip, "--ckpt", str(sources / "tcl/model.safetensors"))
    assert result.status == 0, result.err
    assert read_record(Path("run/record.json")).method.options["v_init"] == "uniform"
    result = fit(bench, "opi", *clip, "--ckpt", str(sources / "relu/model.safetensors"), out="other")
    assert result.status == 2
    assert "method relu" in result.err


def test_the_answer_is_read_late_and_spikes_are_permuted_of_any_method(bench, sources):
    """At the conversion of a net, or when a trained one is evaluated anew; the record says so."""
    source = str(sources / "relu/model.safetensors")
    assert fit(bench, "robust_norm", "--ckpt", source, "--snn.delay", "auto", out="delayed").status == 0
    late, plain = (read_record(Path(out) / "record.json") for out in ("delayed", str(sources / "qcfs")))
    assert late.protocol.readout == "delayed" and late.recipe.config["snn"] == {"delay": "auto"}
    assert "snn.delay=auto" in late.recipe.overrides
    assert (late.conversion.causal, late.conversion.draws) == (True, None)
    graph = bench("export", "--ckpt", "delayed/model.safetensors", "--format", "onnx", "--T", "4", "--images", "5")
    assert graph.status == 2 and "a delayed read-out" in graph.err
    evaluate = ("evaluate", "--ckpt", str(sources / "qcfs/model.safetensors"), "--T", "1,4", "--logger", "none")
    assert bench(*evaluate, "--snn.permute", "true", "--snn.draws", "2", "--out", "permuted").status == 0
    mixed = read_record(Path("permuted/record.json"))
    assert (mixed.conversion.causal, mixed.conversion.per_T, mixed.conversion.draws) == (False, True, 2)
    assert [point.wait for point in mixed.snn] == [19, 76]
    assert mixed.snn[0].top1 == plain.snn[0].top1, "of one step there is one order"
    rates = [record.snn[1].layer_firing_rates["act1"] for record in (mixed, plain)]
    assert rates[0] == pytest.approx(rates[1]), "of the first layer, which sends as many; a mean over the draws"
    assert mixed.snn[1].synops == pytest.approx(plain.snn[1].synops, rel=0.02)
    assert list(contradictions(mixed)) == []
    again = bench(
        "evaluate", "--ckpt", "permuted/model.safetensors", "--T", "1,4", "--out", "again", "--logger", "none"
    )
    assert again.status == 0, again.err
    assert read_record(Path("again/record.json")).snn == mixed.snn
    for words, command in (
        ("--snn.delay -1", (*evaluate, "--snn.delay", "-1", "--out", "no")),
        (
            "--snn.permute: qcfs trains its net",
            ("fit", "--method", "qcfs", *RUN, "--snn.permute", "true", "--out", "no"),
        ),
    ):
        result = bench(*command)
        assert result.status == 2
        assert words in result.err and len(result.err.strip().splitlines()) == 1
        assert not Path("no").exists()


def test_nq_measures_its_noise_and_reports_it(bench):
    assert fit(bench, "nq", "--max_epochs", "2", "--data.val_split", "16").status == 0
    record = json.loads(Path("run/record.json").read_text())
    assert set(record["extras"]) == {"ann_noisy"}
    result = fit(bench, "nq", "--max_epochs", "2", "--data.val_split", "0", out="other")
    assert result.status == 2
    assert "--data.val_split" in result.err


@pytest.mark.parametrize(
    ("method", "source", "options", "words"),
    [
        ("cos", "relu", (), "method relu, but cos needs method qcfs"),
        ("max_norm", "qcfs", (), "method qcfs, but max_norm needs method relu"),
        ("opi", "relu", ("--model.v_init", "1.5"), "--model.v_init 1.5"),
        ("opi", "relu", ("--model.v_init", "normal"), "v_init"),
        ("opi", "relu", ("--model.draw_seed", "3"), "--model.draw_seed 3"),
        ("opi", "tcl", ("--model.source", "clip", "--model.percentile", "99.9"), "--model.percentile 99.9"),
        ("opi", "tcl", ("--model.source", "clip", "--model.granularity", "channel"), "--model.granularity channel"),
        ("opi", "tcl", ("--model.source", "clip", "--model.calibration_images", "9"), "--model.calibration_images 9"),
        ("snnc_lp", "relu", ("--model.granularity", "neuron"), "--model.granularity neuron"),
        ("snnc_ap", "relu", ("--model.iterations", "0", "--model.calibration_lr", "0.1"), "--model.calibration_lr 0.1"),
        ("ltb", "qcfs", (), "method qcfs, but ltb needs method relu"),
        ("ltb", "relu", ("--model.calibration_images", "20"), "--model.calibration_images 20"),
        ("ftbc", "relu", (), "method relu, but ftbc needs method qcfs"),
        ("ftbc", "qcfs", ("--model.source", "relu"), "method qcfs, but ftbc needs method relu"),
        ("parallel", "qcfs", ("--model.iterations", "-1"), "--model.iterations -1"),
        ("bitplane", "qcfs", ("--T", "4,9"), "at most 8 bits"),
        ("bitplane", "qcfs", ("--T", "0"), "--T 0"),
        ("tpp", "qcfs", ("--model.draw_seed", "-1"), "--model.draw_seed -1"),
        ("tpp", "qcfs", ("--snn.draws", "0"), "--snn.draws 0"),
        ("cos", "qcfs", ("--trainer.precision", "16-mixed"), "--trainer.precision: cos does not train"),
        ("cos", "qcfs", ("--compile", "true"), "--compile: nothing is trained"),
        ("cos", "qcfs", ("--snn.draws", "2"), "--snn.draws 2: this network draws no"),
        ("group", "qcfs", ("--model.members", "0"), "--model.members 0"),
        ("hmt", "relu", ("--model.bits", "9"), "--model.bits 9"),
        ("dcgs", "relu", ("--model.levels", "0"), "--model.levels 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(bench, sources, method, source, options, words):
    result = fit(bench, method, "--ckpt", str(sources / source / "model.safetensors"), *options)
    assert result.status == 2
    assert words in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not Path("run/record.json").exists()


def test_more_calibration_images_than_there_are_is_refused_before_training(bench):
    options = ["--arch", "resnet20", "--data", "digits", "--logger", "none", "--out", "run"]
    result = bench("fit", "--method", "relu", *options, "--model.calibration_images", "2000")
    assert result.status == 2
    assert "--model.calibration_images 2000" in result.err
    assert not Path("run/checkpoints").exists()


def test_max_pooling_is_kept_by_relu_for_burst_and_refused_before_training_by_the_others(bench):
    keep = ("--arch", "timm/test_resnet", "--max_epochs", "1", "--model.max_pool", "keep")
    result = fit(bench, "qcfs", *keep)
    assert result.status == 2
    assert "max-pooling" in result.err and len(result.err.strip().splitlines()) == 1
    assert not Path("run/checkpoints").exists()
    assert fit(bench, "relu", *keep).status == 0
    source = read_record(Path("run/record.json"))
    ledger_is_right(source, "relu")
    result = fit(bench, "burst", *keep[:2], "--ckpt", "run/model.safetensors", out="burst")
    assert result.status == 0, result.err
    assert read_record(Path("burst/record.json")).ann == source.ann


def test_a_conversion_does_not_overwrite_the_training_it_converts(bench, sources):
    shutil.copytree(sources / "relu", "own")
    before = Path("own/model.safetensors").read_bytes()
    result = fit(bench, "max_norm", "--ckpt", "own/model.safetensors", "--overwrite", out="own")
    assert result.status == 2
    assert "--out own" in result.err
    assert Path("own/model.safetensors").read_bytes() == before
    assert fit(bench, "max_norm", "--ckpt", "own/model.safetensors").status == 0
    result = fit(bench, "max_norm", "--ckpt", "own/model.safetensors")
    assert result.status == 2
    assert "--overwrite" in result.err


def test_list_tells_what_each_method_needs(bench):
    methods = bench("list").out.split("\n\n")[0]
    heads, traits = (methods.splitlines()[1:][start::2] for start in (0, 1))
    lines = {head.split()[0]: line for head, line in zip(heads, traits, strict=True)}
    for name, head in zip(METHODS, heads, strict=True):
        assert str(METHODS[name].published.year) in head and str(METHODS[name].published.link) in head
    for name, entry in METHODS.items():
        assert ("trains" in lines[name]) == (entry.source is None)
        assert ("one conversion per T" in lines[name]) == entry.per_T
        assert ("warm-up" in lines[name]) == entry.warmup
        assert ("layers wait" in lines[name]) == entry.waits
        assert ("equals the quantised ANN" in lines[name]) == entry.exact
    assert "converts a relu or tcl net" in lines["opi"]
