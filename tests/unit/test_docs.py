"""What the documents say works: commands parse, the example runs, files exist, schemas hold."""

import argparse
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from bench.cli.main import COMMANDS, main
from bench.recipes import all_recipes, read_recipe
from bench.records.spec import RunSpec
from bench.registry.entries import MethodEntry
from bench.registry.methods import METHODS
from bench.run.resolve import parse_fit
from bench.snn.simulate import simulate
from bench.sweep.plan import Planner
from bench.sweep.sweep_file import read_sweep
from methods.qcfs import QCFS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/running.md", "docs/tutorial.md", "docs/data_sets.md")
EXAMPLE = "methods/zero_shift.py"
RECIPES = list(all_recipes())


def blocks(document: str, language: str) -> list[str]:
    """Its code blocks; of a YAML file, the commands in its head."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if document.endswith(".yaml"):
        return ["\n".join(line[6:] for line in text.splitlines() if line.startswith("#     "))]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def bench_commands(text: str) -> list[list[str]]:
    """The words after ``python -m bench`` of each such command in a shell block."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                command.append(word)
                continue
            if command[1:3] == ["-m", "bench"]:
                found.append(command[3:])
            command = []
    return found


WITH_COMMANDS = [
    name
    for pattern in ("*.md", "docs/**/*.md", "leaderboards/notes/*.md", "leaderboards/sweeps/*.yaml")
    for name in (path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(pattern)))
    if any(map(bench_commands, blocks(name, "bash")))
]


class ParsedError(Exception):
    pass


def parse(command: list[str], monkeypatch: pytest.MonkeyPatch) -> RunSpec | None:
    """Parses one command as the command line does, without running it."""
    if command == ["fit", "--help"]:
        assert main(command) == 0
        return None
    if command[0] == "fit" and {"--help", "--print_config"} & set(command):
        with pytest.raises(SystemExit, match=r"^0$"):
            parse_fit(command[1:])
        return None
    if command[0] == "fit":
        return parse_fit(command[1:])

    original = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *args: object) -> None:
        original(self, *args)
        raise ParsedError

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        with pytest.raises(ParsedError):
            main(command)
    return None


@pytest.fixture
def zero_shift(tmp_path, monkeypatch):
    """The worked example, saved and registered as the document says."""
    [source] = blocks("CONTRIBUTING.md", "python")
    [registration] = blocks("CONTRIBUTING.md", "diff")
    path = tmp_path / "zero_shift.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("methods.zero_shift", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    lines = "".join(line[1:] for line in registration.splitlines() if line.startswith("+"))
    for name, entry in eval(f"{{{lines}}}", {"MethodEntry": MethodEntry}).items():
        monkeypatch.setitem(METHODS, name, entry)
    return module.ZeroShift


@pytest.mark.parametrize("document", WITH_COMMANDS)
def test_every_command_parses_in_the_order_given(document, tmp_path, monkeypatch, capsys, zero_shift):
    # A folder of its own, as one command writes a file that the next one reads; recipes are named by path.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    commands = [command for block in blocks(document, "bash") for command in bench_commands(block)]
    for command in commands:
        words, target = command, None
        if ">" in command:
            words, [target] = command[: command.index(">")], command[command.index(">") + 1 :]
        parse(words, monkeypatch)
        printed = capsys.readouterr().out
        if target:
            Path(target).write_text(printed)


def test_the_sweep_file_of_the_docs_can_be_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [content] = blocks("docs/scale.md", "yaml")
    one_of_each = {"archs": ["resnet20"], "data": ["cifar10"], "seeds": [0]}
    Path("sweep.yaml").write_text(yaml.safe_dump({**yaml.safe_load(content), **one_of_each}))
    sweep = read_sweep(Path("sweep.yaml"))
    jobs = Planner(sweep, Path("runs")).plan()
    # What is converted is trained as well, at the values that the grid names.
    assert {job.spec.model["L"] for job in jobs if job.spec.method == "qcfs"} == {4, 8}


def test_options_named_in_the_text_exist(capsys):
    text = " ".join((ROOT / document).read_text() for document in DOCUMENTS)
    named = {option for code in re.findall(r"`([^`\n]+)`", text) for option in re.findall(r"(?<!\S)--[\w.]+", code)}
    assert main(["fit", "--help"]) == 0
    for method in ("qcfs", "ftbc"):
        assert main(["fit", "--method", method, "--data", "cifar10", "--help"]) == 0
    for command in set(COMMANDS) - {"fit"}:
        with pytest.raises(SystemExit, match=r"^0$"):
            main([command, "--help"])
    known = capsys.readouterr().out
    assert named
    assert {option for option in named if not re.search(rf"{re.escape(option)}\b", known)} == set()


def test_the_worked_example_is_a_method_without_further_lists(zero_shift, monkeypatch, capsys):
    """Its file and its registry line are enough for the command line, the README and an SNN of its own."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    assert main(["list"]) == 0
    paper = r"QCFS without shift \(ICLR 2022\), https://arxiv\.org/abs/2303\.04347"
    line = rf"^  zero_shift +{paper}\n +QCFS with v_0 = 0 \[trains\]$"
    assert re.search(line, capsys.readouterr().out, re.MULTILINE)
    lines = importlib.import_module("generate").methods(METHODS)
    assert any(line.startswith("| [`zero_shift`](zero_shift.md) |") for line in lines)
    nets = []
    for method in (QCFS, zero_shift):
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        )
        nets.append(method(net, L=2, lambda_init=1.0).eval())
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(nets[0](images), nets[1](images))
    parts = [next(iter(simulate(net.convert(1, []), images, 1))) for net in nets]
    rates = [int(part.counts.spikes.sum()) for part in parts]
    # Without the shift spikes are rounded down, so there are fewer.
    assert rates[1] < rates[0]


@pytest.mark.parametrize(("document", "name"), [("README.md", "methods/example.py"), ("CONTRIBUTING.md", EXAMPLE)])
def test_examples_keep_the_code_standards(document, name):
    [source] = blocks(document, "python")
    notebook = ["--extend-ignore", "D,N816"] if document == "README.md" else []
    for command in (["check", "--no-cache", *notebook], ["format", "--diff"]):
        call = [sys.executable, "-m", "ruff", *command, "--stdin-filename", name, "-"]
        done = subprocess.run(call, input=source, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout


def test_the_library_example_runs_and_its_net_loses_little(capsys):
    [source] = blocks("README.md", "python")
    with torch.random.fork_rng():
        exec(compile(source, "README.md", "exec"), {})
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(printed) == ["1", "2", "4", "8", "16", "32", "ANN"]
    ann, last = float(printed["ANN"]), float(printed["32"])
    assert ann > 0.85
    assert last > ann - 0.03
    assert float(printed["1"]) < last


@pytest.mark.parametrize("document", [*DOCUMENTS[:2], *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_files_mentioned_exist(document):
    text = (ROOT / document).read_text()
    links = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target}
    top = "|".join(
        re.escape(path.name) for path in ROOT.iterdir() if path.name not in ("runs", "data", ".venv", "site")
    )
    paths = set(re.findall(rf"`((?:{top})(?:/[\w./-]*)?)`", text))
    missing = {path for path in paths if not (ROOT / path).exists()}
    missing |= {link for link in links if not (ROOT / document).parent.joinpath(link).exists()}
    # Made by "leaderboard --add", and by the reader.
    assert missing <= {"leaderboards/results/", EXAMPLE}
    for name in re.findall(r"`([A-Z][A-Z_]+)`\s+in\s+`([\w./-]+)`", text):
        assert re.search(rf"^{name[0]}\b.*=", (ROOT / name[1]).read_text(), re.MULTILINE), name


def test_no_unseen_characters_in_the_documents():
    for name in (*DOCUMENTS, "CHANGELOG.md", "CITATION.cff", "LICENSE", ".ci/run", ".github/workflows/ci.yml"):
        text = (ROOT / name).read_bytes().decode()
        assert not {c for c in text if unicodedata.category(c) in ("Cc", "Cf")} - {"\n"}, name
        assert text.endswith("\n"), name


@pytest.mark.parametrize(("owner", "stem", "path"), RECIPES, ids=[path.name for _, _, path in RECIPES])
def test_the_command_in_a_recipes_header_runs_that_recipe(owner, stem, path, monkeypatch):
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header, "the recipe begins with a comment"
    [command] = re.findall(r"^# command: +(.*)$", header.group(), re.MULTILINE)
    [words] = bench_commands(command)
    # Unknown settings and wrong types are refused while parsing.
    spec = parse(words, monkeypatch)
    assert (spec.method, spec.recipe) == (owner, read_recipe(path).name)
    arch = f"timm_{spec.arch}" if "timm/" in command else spec.arch.removeprefix("cifar_")
    assert stem in (spec.data, f"{spec.data}_{arch}")
    assert spec.overrides == ()


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        ("vendor.github-workflows", ".github/workflows/*.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/*.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("vendor.github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_schema(schema, paths):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, ROOT.glob(paths))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_of_the_workflow_parse(monkeypatch):
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert "bash .ci/run" in runs
    for command in [command for run in runs for command in bench_commands(run)]:
        spec = parse(command, monkeypatch)
        assert spec is None or spec.recipe != "default"


def test_metadata_agrees():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], str(citation["version"])) == (project["name"], project["version"])
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    assert f"\n## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()
