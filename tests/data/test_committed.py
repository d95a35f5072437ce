"""The committed data: every record and every file of printed numbers is sound, and the generated pages are fresh."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from pathlib import Path

import pytest

from bench.leaderboard import run
from bench.leaderboard.aggregate import aggregate
from bench.leaderboard.load import load
from bench.leaderboard.reported import Paper, load_reported, read_paper
from bench.leaderboard.tables import show
from bench.records.record import Record, read_record
from bench.registry.methods import METHODS
from bench.sweep.plan import Planner
from bench.sweep.sweep_file import read_sweep

ROOT = Path(__file__).parents[2]
LEADERBOARDS = ROOT / "leaderboards"
REPORTED = LEADERBOARDS / "reported"
CELLS = Path(__file__).with_name("reported_cells.txt")

METHOD_NAMES = {
    *("qcfs", "opi", "cos", "srp", "rts", "tcl", "rnl", "snnc_lp", "snnc_ap", "snm"),
    *("burst", "max_norm", "robust_norm", "cs_qcfs", "nq", "relu"),
}
PRINTED_NETS = {
    **{"cifar_vgg16": "VGG-16", "cifar_resnet18": "ResNet-18", "cifar_resnet20": "ResNet-20"},
    **{"cifar_resnet34": "ResNet-34", "vgg16_bn": "VGG-16", "resnet34": "ResNet-34 (standard stem)"},
}
# Their released code shows other nets under the same names (see the notes in their files).
OTHER_NETS = {"deng2021rts", "li2021snnc", "wang2022snm", "han2020rmp", "han2020tsc"}


@pytest.fixture(scope="module")
def papers() -> tuple[Paper, ...]:
    return load_reported(REPORTED)


def test_every_record_is_sound_and_in_its_place() -> None:
    filed, added = load(LEADERBOARDS / "results")
    assert not added
    assert len(filed) == len(list((LEADERBOARDS / "results").rglob("*.json")))


def test_generated_pages_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    status = run(LEADERBOARDS / "results", REPORTED, LEADERBOARDS, True, False, [])
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(REPORTED.iterdir()), ids=lambda path: path.name)
def test_every_reported_file_is_sound(path: Path) -> None:
    paper = read_paper(path)
    rows = [row.model_dump_json(exclude={"note", "also"}) for row in paper.rows]
    assert len(rows) == len(set(rows)), "a row stands twice"
    for row in paper.rows:
        steps = [int(T.rstrip("+")) for T in row.top1]
        assert steps == sorted(steps), f"{row.method} {row.arch}: T in order"
    text = path.read_text()
    assert text == "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    assert not any(word in text for word in ("/work", ".csv", "shared/"))


def test_every_printed_number_is_traceable(papers: tuple[Paper, ...]) -> None:
    """``reported_cells.txt`` was made from the source tables, not from the files it is compared with."""
    found: Counter[tuple[str, ...]] = Counter(
        (paper.key, row.who or row.table or "-", row.dataset, row.arch or "-", row.method, T, str(top1))
        for paper in papers
        for row in paper.rows
        for T, top1 in row.top1.items()
    )
    listed = Counter(tuple(line.split("\t")) for line in CELLS.read_text().splitlines())
    assert not found - listed, "in the files but not in the list"
    assert not listed - found, "in the list but not in the files"


def test_the_list_of_cells_is_sorted() -> None:
    lines = CELLS.read_text().splitlines()
    assert lines == sorted(lines)


def test_rows_are_called_the_same_as_ours_only_where_they_are(papers: tuple[Paper, ...]) -> None:
    for paper in papers:
        for row in paper.rows:
            assert row.same_as.method in METHOD_NAMES | {None}, paper.key
            if row.same_as.arch is not None:
                assert row.arch == PRINTED_NETS[row.same_as.arch], paper.key
                assert paper.key not in OTHER_NETS


def test_one_method_goes_by_one_name_within_a_paper(papers: tuple[Paper, ...]) -> None:
    for paper in papers:
        names = {(row.method, row.same_as.method) for row in paper.rows}
        assert len(names) == len({method for method, _ in names}), paper.key


def test_every_method_of_the_suite_has_a_file_for_its_paper(papers: tuple[Paper, ...]) -> None:
    keys = {paper.key for paper in papers}
    assert {name: entry.paper for name, entry in METHODS.items() if entry.paper not in keys} == {}
    assert set(METHODS) <= METHOD_NAMES


def test_every_committed_checkpoint_is_named_by_a_record() -> None:
    """By the SHA-256 of its bytes, so that a row says which weights it is of."""
    named = {
        record.checkpoint.sha256 for record in map(read_record, sorted((LEADERBOARDS / "results").rglob("*.json")))
    }
    files = sorted((LEADERBOARDS / "checkpoints").iterdir())
    assert len(files) <= 15
    for file in files:
        assert file.suffix == ".safetensors"
        assert hashlib.sha256(file.read_bytes()).hexdigest() in named, file.name


def quick_records() -> dict[str, Record]:
    """By method: the quick recipe's ResNet-20 on CIFAR-10, seed 0."""
    records = [read_record(path) for path in (LEADERBOARDS / "results" / "cifar10" / "cifar_resnet20").rglob("*.json")]
    return {record.method.name: record for record in records if record.recipe.label == "quick" and record.seed == 0}


def test_committed_sweeps_train_every_net_once_and_for_as_many_epochs() -> None:
    plans = {file: Planner(read_sweep(file), Path("runs")).plan() for file in (LEADERBOARDS / "sweeps").glob("*.yaml")}
    for file, jobs in plans.items():
        trained = [job.spec for job in jobs if METHODS[job.spec.method].source is None]
        epochs = {spec.all_trainer_options["max_epochs"] for spec in trained}
        assert len(epochs) == 1 and f"_{epochs.pop()}_epochs" in file.name, file
        assert {spec.recipe for spec in trained} == {"quick"}, file
        assert len({(spec.seed, str(spec.config())) for spec in trained}) == len(trained), file
    every = plans[LEADERBOARDS / "sweeps/resnet20_16_epochs.yaml"]
    assert {job.spec.method for job in every} == set(METHODS) - {"snnc_ap"}


def test_methods_come_in_the_order_that_their_papers_say() -> None:
    """At T = 4, and SNNC at T = 16; and every method comes closer to its ANN with more steps."""
    curves = {name: {point.T: point.top1 for point in record.snn} for name, record in quick_records().items()}
    at_4 = {name: curve[4] for name, curve in curves.items()}
    assert at_4["robust_norm"] < at_4["opi"] < at_4["qcfs"] < min(at_4["srp"], at_4["cos"])
    assert curves["snnc_lp"][16] > curves["robust_norm"][16] + 0.2
    for name, record in quick_records().items():
        # What is above the ANN lacks nothing: one of few levels is exceeded by its SNN of many steps.
        lacking = [max(0.0, record.ann.top1 - top1) for _, top1 in sorted(curves[name].items())]
        assert all(later < earlier + 0.005 for earlier, later in itertools.pairwise(lacking)), name
        assert lacking[-1] < lacking[0] / 1.5, name


# Epochs that all methods have on a data set, so that they can be compared with each other.
SHORT = {"cifar10": 16, "cifar100": 8}


def short_curves(dataset: str) -> dict[str, dict[int, float]]:
    """By method, L and other options: top-1 at each T of the short ResNet-20, mean over the seeds; ANN at T = 0."""
    rows = [row for row in aggregate(load(LEADERBOARDS / "results")[0], []) if row.dataset == dataset]
    found = {}
    for row in rows:
        parts = row.recipe.split("+")
        if row.arch == "cifar_resnet20" and f"trainer.max_epochs={SHORT[dataset]}" in parts:
            other = [part.removeprefix("model.") for part in parts if part.startswith("model.") and "L=" not in part]
            name = " ".join([row.method, *([str(row.L)] if row.L else []), *other])
            assert name not in found, "two rows of one name"
            found[name] = {0: float(row.ann.mean)} | {cell.T: float(cell.top1.mean) for cell in row.cells}
    return found


@pytest.mark.parametrize("dataset", SHORT)
def test_few_levels_are_better_at_few_steps(dataset: str) -> None:
    """QCFS: the shape of the independent sweep over L and T; with many steps little is left of it."""
    curves = short_curves(dataset)
    levels = sorted(int(name.split()[1]) for name in curves if name.startswith("qcfs "))
    assert {4, 8} <= set(levels)
    for few, many in itertools.pairwise(levels):
        assert curves[f"qcfs {few}"][4] > curves[f"qcfs {many}"][4] + 2
        for T in (1, 2, 4, 8):
            assert curves[f"qcfs {few}"][T] > curves[f"qcfs {many}"][T]
        assert abs(curves[f"qcfs {few}"][32] - curves[f"qcfs {many}"][32]) < 2


def test_many_levels_are_better_at_many_steps() -> None:
    """QCFS on CIFAR-10; after the 8 epochs on CIFAR-100, 32 steps do not bring L = 8 above L = 4."""
    curves = short_curves("cifar10")
    assert curves["qcfs 2"][32] + 1 < max(curves[f"qcfs {L}"][32] for L in (4, 8))


def test_one_level_at_one_step_is_the_ann_and_far_above_four_levels() -> None:
    """CS-QCFS with L = T = 1: but for sums that lie on a threshold, both compute the same."""
    curves = short_curves("cifar10")
    assert abs(curves["cs_qcfs 1"][1] - curves["cs_qcfs 1"][0]) <= 0.05
    assert curves["cs_qcfs 1"][1] > curves["qcfs 4"][1] + 15


@pytest.mark.parametrize(("dataset", "gain"), [("cifar10", 5), ("cifar100", 0)])
def test_training_with_the_conversion_s_noise_brings_two_steps_closer_to_the_ann(dataset: str, gain: int) -> None:
    """NQ against QCFS of the same L; after 8 epochs on CIFAR-100, its worse ANN takes nearly all of the gain back."""
    curves = short_curves(dataset)
    nq, qcfs = curves["nq 4"], curves["qcfs 4"]
    assert nq[0] - nq[2] < (qcfs[0] - qcfs[2]) / 1.5
    assert nq[2] > qcfs[2] + gain


def test_few_levels_with_thresholds_of_channels_lie_between_four_and_eight_levels() -> None:
    """CS-QCFS with L = 2 on CIFAR-100."""
    curves = short_curves("cifar100")
    assert abs(curves["cs_qcfs 2"][1] - curves["qcfs 4"][1]) < 1
    for T in (2, 4, 8):
        assert curves["qcfs 8"][T] + 2 < curves["cs_qcfs 2"][T] < curves["qcfs 4"][T]


def test_offset_spikes_and_silenced_neurons_gain_most_at_few_steps() -> None:
    """COS and SRP from one QCFS net: the gain falls with T, and at equal latency, 4 + 4 steps against 8, remains."""
    curves = {name: {point.T: point.top1 for point in record.snn} for name, record in quick_records().items()}
    for name in ("cos", "srp"):
        gains = [curves[name][T] - curves["qcfs"][T] for T in (1, 2, 4, 8)]
        assert gains == sorted(gains, reverse=True) and gains[2] > 0.05, name
        assert curves[name][4] > curves["qcfs"][8], name


def test_offset_spikes_and_silenced_neurons_gain_on_cifar100_until_silence_costs_more() -> None:
    """As printed: at 16 and 32 steps SRP is below QCFS (65.50 and 69.82), and COS is not."""
    curves = short_curves("cifar100")
    for name, L in itertools.product(("cos", "srp"), (4, 8)):
        qcfs, other = curves[f"qcfs {L}"], curves[f"{name} {L}"]
        assert other[0] == qcfs[0], "of the same net"
        assert all(other[T] > qcfs[T] + 2 for T in (1, 2, 4, 8)), name
        assert other[4] > qcfs[8] + 1, f"{name}: at equal latency, 4 + 4 steps against 8"
    for T in (16, 32):
        assert curves["srp 8"][T] < curves["qcfs 8"][T] - 1
        assert curves["cos 8"][T] > curves["qcfs 8"][T]


def test_the_classic_conversions_come_in_their_order_on_cifar100() -> None:
    """From one ReLU net, whose row is that of the largest activation as a threshold."""
    curves = short_curves("cifar100")
    assert curves["relu"][32] + 5 < curves["robust_norm"][32] < curves["opi"][32] - 5


def test_more_calibration_steps_are_better() -> None:
    """COS with rho = 2, 4 and 8, of one net: the longer each neuron is watched, the more often its offset is found."""
    curves = short_curves("cifar100")
    by_rho = [curves[name] for name in ("cos 8 rho=2", "cos 8", "cos 8 rho=8")]
    for T in (1, 2, 4, 8):
        at_T = [curve[T] for curve in by_rho]
        assert at_T == sorted(at_T), T


def accuracy_rows(readme: str) -> list[tuple[str, dict[str, str]]]:
    """Rows of the README's tables that give a method's top-1 in percent: method, and column to number."""
    rows, heading = [], []
    for line in readme.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heading = []
        elif not heading:
            heading = cells
        elif cells[0].startswith("`") and any(name.startswith("T = ") for name in heading):
            numbers = {
                name: cell for name, cell in zip(heading, cells, strict=True) if name.startswith(("ANN", "T = "))
            }
            rows.append((cells[0].split("`")[1], numbers))
    return rows


def test_the_readme_s_accuracies_are_those_of_the_records() -> None:
    """Of the quick recipe's ResNet-20 on CIFAR-10, to the last digit; a method without a number has no record."""
    quick = quick_records()
    rows = accuracy_rows((ROOT / "README.md").read_text())
    assert {name for name, _ in rows} == set(METHODS)
    for name, numbers in rows:
        given = {column: number for column, number in numbers.items() if number}
        if name not in quick:
            assert not given, name
            continue
        record = quick[name]
        measured = {f"T = {point.T}": f"{100 * point.top1:.2f}" for point in record.snn}
        measured["ANN"] = f"{100 * record.ann.top1:.2f}"
        assert given == {column: measured[column] for column in given}, name
        assert {column for column in numbers if column in measured} == set(given), name


@pytest.mark.parametrize("path", sorted((LEADERBOARDS / "notes").iterdir()), ids=lambda path: path.stem)
def test_the_numbers_of_the_notes_are_those_of_the_rows(path: Path, papers: tuple[Paper, ...]) -> None:
    """Tables by ``method/recipe``, quoted lines of the generated page, and the nets with their SHA-256."""
    text = path.read_text()
    rows = aggregate(load(LEADERBOARDS / "results")[0], papers)
    named = {f"{row.method}/{row.recipe}": row for row in rows if row.dataset == path.stem}
    assert len(named) == sum(row.dataset == path.stem for row in rows)
    tables = accuracy_rows(text)
    assert tables
    for key, numbers in tables:
        row = named[key]
        measured = {f"T = {cell.T}": show(cell.top1, len(row.seeds)) for cell in row.cells} | {"ANN": show(row.ann)}
        assert numbers == {column: measured.get(column, "") for column in numbers}, key
    page = (LEADERBOARDS / f"{path.stem}.md").read_text().splitlines()
    quoted = [line.removeprefix("> ") for line in text.splitlines() if line.startswith("> ")]
    assert quoted
    assert set(quoted) <= set(page)
    for net in (LEADERBOARDS / "checkpoints").glob(f"{path.stem}-*"):
        assert f"| `{net.name}` | {hashlib.sha256(net.read_bytes()).hexdigest()} |" in text
