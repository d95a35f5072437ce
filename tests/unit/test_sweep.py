"""What a sweep file means: which runs, with which source nets, in which folders, at which cost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning_utilities.core.rank_zero import rank_zero_only
from record_factory import make_record, point

import bench.run.resolve
from bench.cli.main import main
from bench.errors import UserError
from bench.nets.architectures import count_macs, create
from bench.recipes import Recipe
from bench.records.record import duration
from bench.run.publish import working_in
from bench.run.resolve import parse_fit
from bench.sweep.estimate import Estimator
from bench.sweep.plan import Job, Planner, executable
from bench.sweep.scheduler import Resources, Scheduler
from bench.sweep.sweep_file import SweepFile, read_sweep
from bench.sweep.worker import run_command

TINY = {"subset": 64, "max_epochs": 2, "T": [1, 2, 4], "logger": "none"}


def plan(**content: object) -> list[Job]:
    return Planner(SweepFile.model_validate({"data": ["digits"], "options": TINY, **content}), Path("runs")).plan()


def by_method(jobs: list[Job]) -> dict[str, list[Job]]:
    return {name: [job for job in jobs if job.spec.method == name] for name in {j.spec.method for j in jobs}}


def test_every_combination_is_one_run():
    jobs = plan(methods=["qcfs", "tcl"], archs=["resnet20", "vgg16"], seeds=[0, 1])
    assert len(jobs) == len({job.folder for job in jobs}) == 8
    assert {(j.spec.method, j.spec.arch, j.spec.seed) for j in jobs} == {
        (m, f"cifar_{a}", s) for m in ("qcfs", "tcl") for a in ("resnet20", "vgg16") for s in (0, 1)
    }


def test_a_method_has_its_own_archs_if_it_names_some():
    methods = [{"name": "qcfs", "archs": ["resnet32"]}, {"name": "qcfs", "archs": ["resnet44"]}, "tcl"]
    jobs = plan(methods=methods, archs=["resnet20"])
    assert [(j.spec.method, j.spec.arch) for j in jobs] == [
        ("qcfs", "cifar_resnet32"), ("qcfs", "cifar_resnet44"), ("tcl", "cifar_resnet20")]  # fmt: skip


def test_records_that_will_never_be_ranked_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text("methods: [relu, qcfs]\ndata: [digits]\nseeds: [0, 1]\noptions: {T: [8]}\n")
    jobs = Planner(read_sweep(Path("sweep.yaml")), Path("runs")).plan()
    for job in jobs:
        dirty = job.spec.method == "qcfs"
        make_record(training__code__dirty=dirty, data__name="digits").write(job.folder / "record.json")
    assert main(["sweep", "sweep.yaml"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("never ranked")] == [
        f"never ranked: {jobs[1].title}, {jobs[3].title}: training.code.dirty: the code differed from its commit"
    ]
    assert "4 of 4 runs recorded" in out


def test_grids_of_the_file_and_of_a_method_multiply():
    jobs = plan(methods=[{"name": "qcfs", "grid": {"model.L": [2, 8]}}, "relu"], grid={"data.batch_size": [16, 32]})
    found = by_method(jobs)
    assert {(j.spec.model["L"], j.spec.data_options["batch_size"]) for j in found["qcfs"]} == {
        (2, 16), (2, 32), (8, 16), (8, 32)}  # fmt: skip
    assert len(found["relu"]) == 2


def test_methods_that_convert_share_one_source_trained_before_them():
    jobs = plan(methods=["cos", "srp", "max_norm", "qcfs", "snm"], seeds=[0, 1])
    found = by_method(jobs)
    assert {name: len(part) for name, part in found.items()} == dict.fromkeys(
        ("cos", "srp", "qcfs", "max_norm", "relu", "snm"), 2
    )
    for seed in (0, 1):
        for method, source in (("cos", "qcfs"), ("srp", "qcfs"), ("max_norm", "relu"), ("snm", "relu")):
            [job] = [j for j in found[method] if j.spec.seed == seed]
            [net] = [j for j in found[source] if j.spec.seed == seed]
            assert job.source == net.folder and jobs.index(net) < jobs.index(job)
            assert job.arguments[job.arguments.index("--ckpt") + 1] == str(net.folder / "model.safetensors")


def test_training_options_go_to_the_source_and_not_to_what_converts_it():
    [source, job] = plan(methods=["cos"], sources={"qcfs": {"model": {"L": 2}}})
    assert source.spec.all_trainer_options["max_epochs"] == 2 and source.spec.model["L"] == 2
    assert "--trainer.max_epochs" not in job.arguments and "--data.subset" in job.arguments
    assert "model.L=2" in job.folder.name and "trainer.max_epochs=2" in job.folder.name, (
        "the label its record will have"
    )


def test_precision_is_that_of_the_training_and_no_recipe_means_the_default():
    [source, job] = plan(methods=["cos"], options={**TINY, "trainer.precision": "bf16-mixed", "recipe": None})
    assert source.spec.all_trainer_options["precision"] == "bf16-mixed"
    assert not {"--trainer.precision", "--recipe"} & set(job.arguments)
    assert "--recipe" not in source.arguments


def test_a_method_can_convert_several_nets_and_a_default_may_be_given_or_not():
    twice = [{"name": "cos", "source": {"model.L": L}} for L in (4, 8)]
    jobs = by_method(plan(methods=["qcfs", *twice, {"name": "qcfs", "grid": {"model.L": [4, 8, 2]}}]))
    assert sorted(job.spec.model["L"] for job in jobs["qcfs"]) == [2, 4, 8]
    sources = {job.folder: job.spec.model["L"] for job in jobs["qcfs"]}
    assert sorted(sources[job.source] for job in jobs["cos"]) == [4, 8]
    assert len({job.folder for job in jobs["cos"]}) == 2


def test_a_grid_over_training_gives_each_combination_its_own_source():
    jobs = plan(methods=["cos", "srp"], grid={"data.batch_size": [16, 32]})
    found = by_method(jobs)
    assert len(found["qcfs"]) == len(found["cos"]) == len(found["srp"]) == 2
    assert {j.source for j in found["cos"]} == {j.source for j in found["srp"]} == {j.folder for j in found["qcfs"]}


def test_a_source_that_is_given_is_not_trained():
    [job] = plan(methods=[{"name": "cos", "options": {"ckpt": "there/model.safetensors"}}])
    assert job.source is None


def test_the_arguments_are_those_of_fit():
    for job in plan(methods=["qcfs", "opi"]):
        spec = parse_fit(job.arguments[1:])
        assert spec.local.out == job.folder and spec.local.T == (1, 2, 4) and spec.local.logger == "none"
        assert spec.config() == job.spec.config()


def test_state_follows_what_is_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, job = plan(methods=["cos"])
    assert (source.state(), job.state()) == ("new", "new") and source.command() == source.arguments
    (source.folder / "checkpoints").mkdir(parents=True)
    (source.folder / "checkpoints/last.ckpt").touch()
    assert source.state() == "begun" and source.command()[-2:] == ["--ckpt", "last"]
    (source.folder / "checkpoints/last.ckpt").rename(source.folder / "checkpoints/previous.ckpt")
    assert source.state() == "begun" and source.command()[-2:] == ["--ckpt", "last"], "the one before will do"
    (source.folder / "checkpoints/previous.ckpt").rename(source.folder / "checkpoints/last.ckpt")
    write(source.folder / "record.json", steps=(1, 2, 4, 8), checkpoint__sha256="a" * 64)
    assert source.state() == "begun", "others convert its weights, and those are not there"
    (source.folder / "checkpoints/last.ckpt").unlink()
    assert source.state() == "new" and source.command()[-1] == "--overwrite", "nothing is left of its weights"
    (source.folder / "model.safetensors").touch()
    assert source.state() == "recorded"
    write(source.folder / "record.json", steps=(1, 2), checkpoint__sha256="a" * 64)
    assert source.state() == "begun" and source.command()[-2:] == ["--ckpt", "last"], "its weights are enough"
    (source.folder / "model.safetensors").unlink()
    assert source.state() == "new" and source.command()[-1] == "--overwrite"
    write(source.folder / "record.json", steps=(1, 2, 4, 8), checkpoint__sha256="a" * 64)
    (source.folder / "model.safetensors").touch()
    job.folder.mkdir(parents=True)
    of_source = {"conversion__source_sha256": "a" * 64, "conversion__retrained": False}
    write(job.folder / "record.json", steps=(1, 2, 4), **of_source)
    assert job.state() == "recorded"
    write(job.folder / "record.json", steps=(1, 2), **of_source)
    assert job.state() == "begun" and job.command()[-1] == "--overwrite", "some T are missing"
    write(job.folder / "record.json", steps=(1, 2, 4), **{**of_source, "conversion__source_sha256": "b" * 64})
    assert job.state() == "begun", "converted from another net"
    write(job.folder / "record.json", steps=(1, 2, 4), **of_source)
    (source.folder / "record.json").unlink()
    assert job.state() == "begun", "its net is to be trained anew"
    (job.folder / "record.json").write_text('{"half')
    assert job.state() == "new" and job.command()[-1] == "--overwrite"


def test_what_another_sweep_has_measured_is_measured_again_beside_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [job] = plan(methods=["qcfs"])
    job.folder.mkdir(parents=True)
    write(job.folder / "record.json", steps=(2, 64))
    (job.folder / "model.safetensors").touch()
    assert job.command()[-4:] == ["--T", "1,2,4,64", "--ckpt", "last"]
    assert parse_fit(job.command()[1:]).local.T == (1, 2, 4, 64)


def test_a_file_that_is_another_net_now_is_converted_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ckpt = tmp_path / "net.safetensors"
    ckpt.write_bytes(b"first")
    [job] = plan(methods=[{"name": "cos", "options": {"ckpt": str(ckpt)}}], options={**TINY, "max_epochs": 1})
    job.folder.mkdir(parents=True)
    first = hashlib.sha256(b"first").hexdigest()
    write(job.folder / "record.json", steps=(1, 2, 4), conversion__source_sha256=first, conversion__retrained=False)
    assert job.state() == "recorded"
    ckpt.write_bytes(b"second")
    assert job.state() == "begun" and job.command()[-1] == "--overwrite"


def test_a_tuning_of_a_file_that_is_another_net_now_begins_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.safetensors").write_bytes(b"one")
    (job,) = plan(methods=[{"name": "dsr", "options": {"ckpt": "net.safetensors"}}], archs=["resnet20"])
    job.folder.mkdir(parents=True)
    write(job.folder / "record.json", steps=(1, 2, 4), conversion__source_sha256=hashlib.sha256(b"one").hexdigest())
    assert job.state() == "recorded"
    Path("net.safetensors").write_bytes(b"two")
    assert job.state() == "new" and job.command()[-1] == "--overwrite"


def test_a_read_out_is_for_what_is_converted_and_not_for_its_source():
    jobs = by_method(plan(methods=["max_norm", "ltb"], archs=["resnet20"], options={**TINY, "snn.delay": 3}))
    (source,) = jobs["relu"]
    assert "--snn.delay" not in source.arguments
    assert all(job.spec.snn == {"delay": 3} for name in ("max_norm", "ltb") for job in jobs[name])
    with pytest.raises(UserError, match="qcfs trains its net"):
        plan(methods=["qcfs", "ltb"], archs=["resnet20"], options={**TINY, "snn.delay": 3})


def test_several_processes_make_no_other_conversion_but_another_training():
    def overrides(method: str, *more: str) -> tuple[str, ...]:
        return parse_fit(["--method", method, "--arch", "resnet20", "--data", "digits", *more]).overrides

    two = ("--trainer.devices", "2")
    assert overrides("cos", "--ckpt", "net.safetensors", *two) == overrides("cos", "--ckpt", "net.safetensors") == ()
    assert overrides("qcfs", *two) == ("trainer.devices=2",)


def test_a_trial_is_not_taken_for_the_whole_run_however_long_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ckpt = f"{'n' * 100}.safetensors"
    folders = {
        plan(methods=[{"name": "cos", "options": {"ckpt": ckpt, **limit}}], options={"T": [1]})[0].folder
        for limit in ({}, {"trainer.limit_test_batches": 2})
    }
    assert len(folders) == 2 and all(len(folder.name) < 110 for folder in folders)


def write(path: Path, steps: tuple[int, ...], **fields: object) -> None:
    path.write_text(make_record(snn=[point(T, 0.5) for T in steps], **fields).dumps())


def test_a_conversion_is_another_where_its_source_is_trained_otherwise(monkeypatch):
    """The label does not tell: a recipe's file may be edited."""
    _, before = plan(methods=["max_norm"])
    find = bench.run.resolve.find_recipe

    def edited(*names: str) -> Recipe:
        found = find(*names)
        return dataclasses.replace(found, settings={**found.settings, "data": {"val_split": 9}})

    monkeypatch.setattr(bench.run.resolve, "find_recipe", edited)
    _, after = plan(methods=["max_norm"])
    assert before.folder != after.folder


def test_runs_that_differ_in_T_alone_are_one_for_all_T():
    [job] = plan(methods=["qcfs"], options={**TINY, "T": [1]}, grid={"T": [[1, 2], [4, 8, 16]]})
    assert job.spec.local.T == (1, 2, 4, 8, 16) == parse_fit(job.arguments[1:]).local.T
    source, _ = plan(methods=["max_norm", {"name": "relu", "options": {"T": [1, 2, 4, 64]}}])
    assert source.spec.method == "relu" and source.spec.local.T == (1, 2, 4, 64) and source.weights


def test_runs_that_differ_in_what_makes_no_other_run_are_refused():
    with pytest.raises(UserError, match="asked for twice, and --logger is none and csv"):
        plan(methods=["qcfs", {"name": "qcfs", "options": {"logger": "csv"}}])


def test_a_typing_error_beside_a_given_source_is_found():
    item = {"name": "cos", "options": {"ckpt": "there/model.safetensors"}}
    with pytest.raises(UserError, match=r"trainer\.max_epochz"):
        plan(methods=[item], options={**TINY, "trainer.max_epochz": 3})


def a_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **resources: object) -> Scheduler:
    monkeypatch.chdir(tmp_path)
    return Scheduler(plan(methods=["qcfs"]), Resources(**resources))  # type: ignore[arg-type]


class Answers:
    """As much of Ray as the scheduler asks when a run has ended."""

    exceptions = SimpleNamespace(RayError=ArithmeticError)

    def __init__(self, status: int) -> None:
        self.status = status

    def get(self, _: object) -> int:
        return self.status


class Events:
    def event(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("status", "attempts"), [(1, 3), (2, 1), (75, 20)])
def test_how_often_a_run_is_tried(tmp_path, monkeypatch, status, attempts):
    """Bad input never again; a folder that another process holds often, and after a pause; the rest --retries times."""
    scheduler = a_scheduler(tmp_path, monkeypatch, retries=2)
    [run] = scheduler.runs.values()
    while run.phase == "waiting":
        run.submitted(executable(run.job))
        scheduler.pending["reference"] = run
        scheduler._finished(Answers(status), "reference", Events())
        assert (run.not_before > time.time() + 10) == (status == 75)
    assert (run.phase, run.attempts) == ("failed", attempts)


def test_waiting_for_a_folder_costs_no_retry(tmp_path, monkeypatch):
    scheduler = a_scheduler(tmp_path, monkeypatch, retries=1)
    [run] = scheduler.runs.values()
    for status in (75, 75, 75, 1):
        run.submitted(executable(run.job))
        scheduler.pending["reference"] = run
        scheduler._finished(Answers(status), "reference", Events())
        assert run.phase == "waiting"


def test_a_run_needs_one_machine_that_has_all_it_needs(tmp_path, monkeypatch):
    cluster = [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}]
    ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": resources} for resources in cluster])
    with pytest.raises(UserError, match="no machine that Ray sees has both"):
        a_scheduler(tmp_path, monkeypatch, cpus_per_run=2, gpus_per_run=1)._task(ray)


def test_a_worker_passes_on_no_rank_of_the_job_that_ray_runs_in(tmp_path, monkeypatch):
    for name in ("SLURM_PROCID", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    code = "import os; print([n for n in os.environ if n.startswith('SLURM') or n in ('RANK', 'WORLD_SIZE')])"
    assert run_command([sys.executable, "-c", code], str(tmp_path), {}, str(tmp_path / "log")) == 0
    assert (tmp_path / "log").read_text().splitlines()[-1] == "[]"


@pytest.mark.parametrize(("devices", "locked"), [(1, True), ("1", True), (2, False)])
def test_a_run_of_one_process_is_alone_in_its_folder_whatever_its_rank_is_said_to_be(
    tmp_path, monkeypatch, devices, locked
):
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    with working_in(tmp_path, {"devices": devices}):
        assert (tmp_path / ".lock").exists() == locked
        assert rank_zero_only.rank == (0 if locked else 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["valid dictionary"]),
        ("methods: []", ["methods", "at least 1"]),
        ("methods: [qcfs]\nseed: 3", ["seed: unknown", "did you mean seeds"]),
        ("methods: [{name: qcfs, seed: 3}]", ["methods.0.seed: unknown"]),
        ("methods: [qcfs, {name: qcfs, optoins: {}}]", ["methods.1.optoins: unknown", "did you mean options"]),
        ("methods: [{name: 3}]", ["methods.0.name", "3", "string"]),
        ("methods: [{options: {}}]", ["methods.0.name", "required"]),
        ("methods: [{name: qcfs, grid: {model.L: 4}}]", ["methods.0.grid.model.L", "list"]),
        ("methods: [{name: qcfs, options: {model.L: 2024-01-01}}]", ["methods.0.options.model.L", "2024"]),
        ("methods: [3]", ["methods.0", "3", "dictionary"]),
        ("methods: [qcfs]\nseeds: [010]", ["line 2", "010", "decimal"]),
        ("methods: [qcfs]\nseeds: [-1]", ["seeds.0"]),
        ("methods: [qcfs]\ngrid: {model.L: 4}", ["grid.model.L", "list"]),
        ("methods: [qcfs]\ngrid: {model.L: []}", ["grid.model.L", "at least 1"]),
        ("methods: [qcfs]\noptions: {out: x}", ["options", "out"]),
        ("methods: [qcfs]\noptions: {ckpt: last}", ["options", "ckpt"]),
        ("methods: [{name: qcfs, options: {seed: 1}}]", ["qcfs.options", "seed"]),
        ("methods: [qfcs]", ["qfcs", "did you mean qcfs"]),
        ("methods: [qcfs]\narchs: [resnet21]", ["resnet21"]),
        ("methods: [{name: qcfs, archs: [resnet21]}]", ["resnet21"]),
        ("methods: [qcfs]\ndata: [digit]", ["digit", "digits"]),
        ("methods: [qcfs]\noptions: {model: {LL: 4}}", ["model.LL"]),
        ("methods: [qcfs]\noptions: {print_config: true}", ["print_config"]),
        ("methods: [cos]\nsources: {qcsf: {}}", ["sources.qcsf", "did you mean qcfs"]),
        ("methods: [qcfs]\nsources: {relu: {}}", ["sources.relu", "no method of the sweep"]),
        ("methods: [max_norm]\nsources: {relu: {ckpt: timm}}", ["sources.relu", "ckpt"]),
        ("methods: [{name: cos, source: {ckpt: x}}]", ["cos.source", "ckpt"]),
        ("methods: [{name: cos, source: {model.LL: 4}}]", ["model.LL"]),
        ("methods: [{name: qcfs, source: {model.L: 4}}]", ["qcfs.source", "trains"]),
        ("methods: [{name: cos, options: {ckpt: x}, source: {model.L: 4}}]", ["cos", "ckpt and source"]),
        ("methods: [qcfs]\nmethods: [relu]", ["line 1", "methods", "twice"]),
        ("methods: [qcfs]\noptions: {model.L: 2024-01-01}", ["model.L", "2024"]),
        ("methods: [{name: opi, grid: {model.source: [null]}}]", ["opi", "model.source", "null"]),
        ("methods: [qcfs\ndata: [digits]", ["cannot be read (line 2: expected"]),
    ],
)
def test_a_file_that_makes_no_sense_is_one_line(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(text)
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and not [word for word in words if word not in err], err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ("[{name: qcfs, options: {model.L: 0}}]", ["qcfs", "model.L 0"]),
        ("[qcfs, {name: cos, options: {model.rho: 0}}]", ["cos", "model.rho 0"]),
        ("[{name: bitplane, options: {T: [9]}}]", ["bitplane", "T = 9"]),
        ("[{name: parallel, options: {snn.delay: 4}}]", ["parallel", "snn.delay 4"]),
        ("[{name: opi, options: {ckpt: absent.safetensors}}]", ["opi", "absent.safetensors"]),
        ("[{name: opi, options: {data.val_split: 9, data.eval_split: val}}]", ["opi", "relu net", "val_split 9"]),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_the_first_run(tmp_path, monkeypatch, capsys, methods, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Scheduler, "run", lambda _: pytest.fail("a run began"))
    # The data are not on this machine.
    Path("sweep.yaml").write_text(f"methods: {methods}\ndata: [cifar10]\noptions: {{data.root: absent}}\n")
    assert main(["sweep", "sweep.yaml"]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and not [word for word in words if word not in err], err


@pytest.mark.parametrize(
    "option",
    [("--cpus", "0"), ("--cpus-per-run", "-1"), ("--gpus-per-run", "1.5"), ("--retries", "-1"), ("--cpu", "1")],
)
def test_options_out_of_range(tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text("methods: [qcfs]\ndata: [digits]")
    assert main(["sweep", "sweep.yaml", "--dry-run", *option]) == 2
    assert option[0] in capsys.readouterr().err


def test_an_absent_file(capsys):
    assert main(["sweep", "absent.yaml"]) == 2
    assert "absent.yaml: cannot be read" in capsys.readouterr().err


def test_print_gives_commands_in_two_steps_and_dry_run_the_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(json.dumps({"methods": ["cos", "tcl"], "data": ["digits"], "options": TINY}))
    assert read_sweep(Path("sweep.yaml")).seeds == [0]
    assert main(["sweep", "sweep.yaml", "--print"]) == 0
    lines = capsys.readouterr().out.splitlines()
    then = next(n for n, line in enumerate(lines) if line.startswith("# once"))
    assert lines[0].startswith("# in any order") and [len(lines[1:then]), len(lines[then + 1 :])] == [2, 1]
    for line in lines:
        if not line.startswith("#"):
            assert shlex.split(line)[:4] == ["python", "-m", "bench", "fit"]
            parse_fit(shlex.split(line)[4:])
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 to run: nothing to estimate from; 3 not measured yet" in out
    assert not Path("runs").exists(), "a plan makes nothing"


def test_estimates_are_medians_of_the_same_method_net_data_and_subset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [job] = plan(methods=["qcfs"])
    folder = tmp_path / "records"
    folder.mkdir()

    def measured(
        name: str, subset: int | None, seconds: float, epochs: int, evaluation: float, method: str = "qcfs"
    ) -> None:
        record = make_record(
            config={"model": {}, "data": {"name": "digits", "subset": subset}},
            method__name=method,
            data__name="digits",
            training__epochs=epochs,
            training__seconds=seconds,
            run__seconds=evaluation,
        )
        (folder / f"{name}.json").write_text(record.dumps())

    assert Estimator([folder]).seconds(job) is None
    measured("a", 64, 10.0, 5, 3.0)  # 2 epochs: 4 s, and 3 s
    measured("b", 64, 60.0, 10, 1.0)  # 13 s
    measured("c", 64, 20.0, 4, 1.0)  # 11 s
    measured("other-subset", None, 1000.0, 1, 1.0)
    measured("other-method", 64, 1000.0, 1, 1.0, "tcl")
    (folder / "broken.json").write_text("{")
    assert Estimator([folder]).seconds(job) == (11.0, False)
    [other] = plan(methods=["qcfs"], archs=["resnet18"])
    seconds, scaled = Estimator([folder]).seconds(other)
    macs = count_macs(create("cifar_resnet18", 10), (3, 32, 32))
    assert scaled and seconds == pytest.approx(11.0 * macs / make_record().arch.macs)


def test_durations_read_well():
    assert [duration(s) for s in (0.4, 59, 60, 3599, 3600, 100_000)] == [
        "0 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "27 h 46 min"]  # fmt: skip


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    Path("sweep.yaml").write_text("methods: [qcfs]\ndata: [digits]")
    assert main(["sweep", "sweep.yaml"]) == 2
    assert "pip install -e '.[sweep]'" in capsys.readouterr().err


def test_a_worker_logs_the_command_and_returns_its_status(tmp_path):
    log = tmp_path / "new/folder/sweep.log"
    code = "import os, sys; print(os.environ['GIVEN'], os.getcwd()); sys.exit(3)"
    assert run_command([sys.executable, "-c", code], str(tmp_path), {"GIVEN": "yes"}, str(log)) == 3
    assert run_command([sys.executable, "-c", "print('again')"], str(tmp_path), {}, str(log)) == 0
    text = log.read_text()
    assert f"yes {tmp_path}" in text and text.strip().endswith("again") and text.count("== 2") == 2


def test_a_run_dies_with_its_worker(tmp_path):
    """A worker killed with SIGKILL leaves no run behind."""
    beat = tmp_path / "beat"
    run = f"import time\nwhile True:\n    open({str(beat)!r}, 'w').write(str(time.time()))\n    time.sleep(0.05)"
    worker = (f"from bench.sweep.worker import run_command; import sys; "
              f"run_command([sys.executable, '-c', {run!r}], '.', {{}}, {str(tmp_path / 'log')!r})")  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", worker], cwd=root)
    deadline = time.monotonic() + 60
    while not beat.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(0.5)
    last = beat.read_text()
    time.sleep(0.5)
    assert beat.read_text() == last


def test_names_that_are_refused_say_which_run():
    with pytest.raises(UserError, match="cos, resnet20, digits, seed 7: "):
        plan(methods=[{"name": "cos", "options": {"model": {"rho": "x"}}}], seeds=[7])
