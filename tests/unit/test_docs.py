"""What the documents say works: commands parse, the example runs, files exist, schemas hold."""

import argparse
import importlib.util
import os
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
from bench.cli.resolve import Settings, parse_fit
from bench.recipes import all_recipes, read_recipe
from bench.registry.entries import MethodEntry
from bench.registry.methods import METHODS
from bench.snn.simulate import simulate
from bench.sweep.plan import Planner
from bench.sweep.sweep_file import read_sweep
from methods.qcfs import QCFS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
EXAMPLE = "methods/zero_shift.py"
RECIPES = list(all_recipes())


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
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


class ParsedError(Exception):
    pass


def parse(command: list[str], monkeypatch: pytest.MonkeyPatch) -> Settings | None:
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
    [line] = [line[1:] for line in registration.splitlines() if line.startswith("+")]
    for name, entry in eval(f"{{{line}}}", {"MethodEntry": MethodEntry}).items():
        monkeypatch.setitem(METHODS, name, entry)
    return module.ZeroShift


@pytest.mark.parametrize("document", [*DOCUMENTS, "docs/scale.md"])
def test_every_command_parses_in_the_order_given(document, tmp_path, monkeypatch, capsys, zero_shift):
    # A folder of its own, as one command writes a file that the next one reads; recipes are named by path.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    commands = [command for block in blocks(document, "bash") for command in bench_commands(block)]
    assert commands
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
    named = {job.settings.method for job in jobs}
    assert {"qcfs", "tcl", "relu", "cos", "srp", "max_norm", "nq"} == named
    assert {job.settings.model_args["L"] for job in jobs if job.settings.method == "qcfs"} == {4, 8}


def test_the_readme_shows_every_command_and_names_no_other():
    shown = {command[0] for block in blocks("README.md", "bash") for command in bench_commands(block)}
    assert shown == set(COMMANDS)
    mentioned = re.findall(r"python -m bench ([a-z]+)", " ".join((ROOT / d).read_text() for d in DOCUMENTS))
    assert set(mentioned) == set(COMMANDS)


def test_options_named_in_the_text_exist(capsys):
    text = " ".join((ROOT / document).read_text() for document in DOCUMENTS)
    named = {option for code in re.findall(r"`([^`\n]+)`", text) for option in re.findall(r"(?<!\S)--[\w.]+", code)}
    assert main(["fit", "--help"]) == 0
    assert main(["fit", "--method", "qcfs", "--data", "cifar10", "--help"]) == 0
    for command in set(COMMANDS) - {"fit"}:
        with pytest.raises(SystemExit, match=r"^0$"):
            main([command, "--help"])
    known = capsys.readouterr().out
    assert named
    assert {option for option in named if not re.search(rf"{re.escape(option)}\b", known)} == set()


def test_the_worked_example_converts_to_another_network_than_qcfs(zero_shift):
    def trained(method):
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        )
        return method(net, L=2, lambda_init=1.0).eval()

    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    reference, example = trained(QCFS), trained(zero_shift)
    assert torch.equal(reference(images), example(images))
    logits, rates = {}, {}
    for name, model in (("qcfs", reference), ("zero_shift", example)):
        (logits[name], counts), *rest = simulate(model.convert(1, []), images, 1)
        assert not rest
        rates[name] = counts.spikes.sum()
    assert not torch.equal(logits["qcfs"], logits["zero_shift"])
    # Without the shift spikes are rounded down, so there are fewer.
    assert rates["zero_shift"] < rates["qcfs"]


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


def test_the_library_example_keeps_the_code_standards():
    [source] = blocks("README.md", "python")
    for command in (["check", "--no-cache"], ["format", "--diff"]):
        call = [sys.executable, "-m", "ruff", *command, "--stdin-filename", "methods/example.py", "-"]
        if command[0] == "check":
            # No docstring, and it prints: a notebook's cells.
            call[-1:-1] = ["--ignore", "D,N816"]
        done = subprocess.run(call, input=source, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout


def test_the_worked_example_keeps_the_code_standards():
    [source] = blocks("CONTRIBUTING.md", "python")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--stdin-filename", EXAMPLE, "-"]
    checked = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout
    command[3:4] = ["format", "--diff"]
    formatted = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
    assert formatted.returncode == 0, formatted.stdout
    [registration] = blocks("CONTRIBUTING.md", "diff")
    context = [line[1:] for line in registration.splitlines() if line.startswith(" ")]
    assert "\n".join(context[:-1]) in (ROOT / "bench/registry/methods.py").read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_mentioned_exist(document):
    text = (ROOT / document).read_text()
    links = {target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target}
    top = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.name not in ("runs", "data", ".venv"))
    paths = set(re.findall(rf"`((?:{top})(?:/[\w./-]*)?)`", text))
    assert len(links | paths) > 3
    missing = {path for path in links | paths if not (ROOT / path).exists()}
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
    settings = parse(words, monkeypatch)
    assert (settings.method, settings.recipe) == (owner, read_recipe(path).name)
    arch = f"timm_{settings.arch}" if "timm/" in command else settings.arch.removeprefix("cifar_")
    assert stem in (settings.data, f"{settings.data}_{arch}")
    assert settings.overrides == []


def test_names_of_recipes_are_unique():
    names = [(owner, stem, read_recipe(path).name) for owner, stem, path in RECIPES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-workflows", ".github/workflows/ci.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/ci.yml"),
        ("vendor.github-workflows", ".github/workflows/leaderboard.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/leaderboard.yml"),
        ("vendor.github-workflows", ".github/workflows/leaderboard-comment.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/leaderboard-comment.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_schema(schema, path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_of_the_workflow_parse(monkeypatch):
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert "bash .ci/run" in runs
    for command in [command for run in runs for command in bench_commands(run)]:
        settings = parse(command, monkeypatch)
        assert settings is None or settings.recipe != "default"


def test_metadata_agrees():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], str(citation["version"])) == (project["name"], project["version"])
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    assert f"\n## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_ci_takes_the_test_command_from_the_readme():
    marked = re.findall(r"^<!-- test command.*-->\n```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(marked) == 1
    assert ".venv/bin/python -m pytest" in marked[0]
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert "-m pytest" not in script.read_text()
