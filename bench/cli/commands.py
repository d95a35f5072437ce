"""The commands that work on results, and what all commands share. torch is imported only when needed."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from pydantic import JsonValue

from bench.files import expand, require_absent, require_folder
from bench.run.options import Parser

COMMANDS = {
    "fit": "train a network, convert it, evaluate the SNN at every T, write the record",
    "evaluate": "repeat conversion and evaluation from a checkpoint",
    "diagnose": "show what the conversion of a checkpoint loses in each layer, and why",
    "export": "export the net of a checkpoint as safetensors with a model card, as ONNX or as NIR",
    "import": "turn the weights of a net trained elsewhere into a checkpoint that all commands accept",
    "sweep": "run methods x nets x data sets x seeds on this machine or a cluster; continue after any interruption",
    "list": "show methods, data sets, architectures and recipes",
    "leaderboard": "regenerate leaderboards/ from the committed records",
    "compare": "show where two runs differ: settings, environment, code and curve",
    "speed": "compare the speed of simulation and training with their limits on this machine",
}

# For ``speed``; here, because its own module needs torch.
SPEED_KINDS = ("evaluation", "callback", "memory", "training", "data")


def parser(command: str) -> Parser:
    """Returns an argument parser with the command's description."""
    return Parser(prog=f"python -m bench {command}", description=COMMANDS[command], allow_abbrev=False)


def add_data_files(made: Parser) -> None:
    """Adds the options for a data set's files: their folder, and how they are checked."""
    made.add_argument("--data.root", dest="root", help="folder of the data set")
    made.add_argument("--data.check", dest="check", choices=["quick", "full", "none"],
                      help="how to check the evaluated files first (imagenet) [quick]")  # fmt: skip


def at_least_one(text: str) -> int:
    """Parses a number of images, steps or measurements."""
    if not (text.isdecimal() and int(text)):
        raise ArgumentTypeError(f"{text}: must be one whole number of at least 1")
    return int(text)


def given(options: Namespace, *names: str) -> dict[str, JsonValue]:
    """Returns the options that were given, by name."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def beside(ckpt: Path, command: str) -> Path:
    """Returns the default folder for a command's files: in the run's, or under ``runs/`` for a net by itself."""
    if ckpt.parent.name == "checkpoints" and ckpt.suffix == ".ckpt":
        return ckpt.parent.parent / command
    own = ckpt.name == "model.safetensors" or ckpt.suffix == ".ckpt"
    return ckpt.parent / command if own else Path("runs") / command / f"{ckpt.absolute().parent.name}-{ckpt.stem}"


def diagnose(arguments: list[str]) -> int:
    """``python -m bench diagnose``."""
    made = parser("diagnose")
    made.add_argument("--ckpt", required=True, type=expand, help="last.ckpt or model.safetensors of a run")
    made.add_argument("--T", default="2,8,32", help="time-steps to diagnose [2,8,32]")
    made.add_argument("--images", type=at_least_one, default=200, help="number of evaluation images [200]")
    made.add_argument(
        "--out",
        type=expand,
        help="folder of the files (default: diagnose/ in the folder of the run, or in runs/ for a net by itself)",
    )
    made.add_argument("--overwrite", action="store_true", help="replace the files in --out")
    made.add_argument("--json", action="store_true", help="print JSON instead of tables")
    made.add_argument("--wandb", action="store_true", help="log tables and pictures to W&B (offline without a key)")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    add_data_files(made)
    options = made.parse_args(arguments)
    from bench.diagnose.command import FILE, run
    from bench.run.resolve import parse_steps

    steps, data = parse_steps(options.T), given(options, "root", "check")
    out = options.out or beside(options.ckpt, "diagnose")
    if not options.overwrite:
        require_absent(out / FILE)
    return run(options.ckpt, steps, options.images, out, options.json, options.wandb, options.device, data)


def export(arguments: list[str]) -> int:
    """``python -m bench export``."""
    made = parser("export")
    made.add_argument("--ckpt", required=True, type=expand, help="last.ckpt or model.safetensors of a run")
    made.add_argument("--format", required=True, choices=["safetensors", "onnx", "nir"])
    made.add_argument("--T", type=at_least_one, default=8, help="steps to unroll in ONNX and to compare outputs at [8]")
    made.add_argument("--images", type=at_least_one, default=1000, help="evaluation images to compare on [1000]")
    made.add_argument(
        "--out",
        type=expand,
        help="folder of the files (default: export/ in the folder of the run, or in runs/ for a net by itself)",
    )
    made.add_argument("--overwrite", action="store_true", help="replace the files in --out")
    made.add_argument("--record", type=expand, help="record for the model card (default: record.json beside --ckpt)")
    made.add_argument("--push", metavar="REPO", help="upload safetensors, card and record to the Hugging Face Hub")
    add_data_files(made)
    options = made.parse_args(arguments)
    from bench.export.command import Wanted, run

    data = given(options, "root", "check")
    wanted = {name: value for name, value in vars(options).items() if name not in ("root", "check")}
    wanted["out"] = options.out or beside(options.ckpt, "export")
    return run(Wanted(**wanted, data_options=data))


def import_(arguments: list[str]) -> int:
    """``python -m bench import``."""
    made = parser("import")
    made.add_argument("file", type=expand, metavar="FILE", help=".pth .pt .th .ckpt .tar .bin .safetensors .npz")
    made.add_argument(
        "--method",
        required=True,
        help="method with which it was trained: qcfs (give --model.L, its number of quantisation levels), relu or tcl; "
        "its other options (--model.*) also work",
    )
    made.add_argument("--arch", required=True, help="network, as for fit (python -m bench list)")
    made.add_argument("--data", required=True, help="data set on which it was trained")
    made.add_argument(
        "--mean", type=float, nargs="+", help="mean of each channel, for images in [0, 1] [the data set's]"
    )
    made.add_argument("--std", type=float, nargs="+", help="standard deviation of each channel")
    made.add_argument("--thresholds", choices=["plain", "softplus"], default="plain",
                      help="softplus: the file stores s, the threshold is ln(1 + e^s) [plain]")  # fmt: skip
    made.add_argument("--expect", type=float, help="stated accuracy of the ANN in percent, to check and to record")
    made.add_argument("--images", type=at_least_one, default=1000, help="test images to measure the ANN on [1000]")
    made.add_argument("--repository", help="source of the file, for the record")
    made.add_argument("--commit", help="commit of the repository, for the record")
    made.add_argument("--licence", help="licence of the weights, for the record")
    made.add_argument("--dry-run", action="store_true", help="print the mapping of all tensors, and write nothing")
    made.add_argument("--out", type=expand, help="folder for model.safetensors")
    made.add_argument("--overwrite", action="store_true", help="replace the weights in --out")
    add_data_files(made)
    # The method's own options go to its own parser; this one would take their values for FILE.
    model: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("--model."):
            others.append(word)
        else:
            model.append(word if "=" in word else f"{word}={next(words, '')}")
    options = made.parse_args(others)
    from bench.imports.command import Wanted, run

    renamed = ("thresholds", "root", "check")
    wanted = {name: value for name, value in vars(options).items() if name not in renamed}
    softplus, data = options.thresholds == "softplus", given(options, "root", "check")
    return run(Wanted(**wanted, model=model, softplus=softplus, data_options=data))


def compare(arguments: list[str]) -> int:
    """``python -m bench compare``."""
    made = parser("compare")
    what = "record.json, folder of a run, or key of a committed record (like cifar10/cifar_resnet20/qcfs/paper-seed0)"
    made.add_argument("a", metavar="A", help=what)
    made.add_argument("b", metavar="B", help="same as A")
    made.add_argument("--results", type=expand, help="folder in which keys are looked up [leaderboards/results]")
    made.add_argument("--json", action="store_true", help="print the differences as JSON")
    options = made.parse_args(arguments)
    from bench.compare import run

    if options.results is not None:  # not the default: two paths do not need it
        require_folder("--results", options.results)
    return run(options.a, options.b, options.results or Path("leaderboards/results"), options.json)


def speed(arguments: list[str]) -> int:
    """``python -m bench speed``."""
    made = parser("speed")
    made.add_argument("--arch", default="resnet20", help="a CIFAR net")
    made.add_argument("--what", choices=SPEED_KINDS, nargs="+", default=["evaluation", "training"])
    made.add_argument("--T", type=at_least_one, default=32, help="steps")
    made.add_argument("--images", type=at_least_one, default=200, help="images in one measurement")
    made.add_argument("--pairs", type=at_least_one, default=5, help="measurements of each ratio")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--json", action="store_true", help="print JSON")
    options = made.parse_args(arguments)
    from bench.nets.architectures import resolve
    from bench.speed.command import run

    return run(
        resolve(options.arch, "cifar"),
        options.what,
        options.T,
        options.images,
        options.pairs,
        options.device,
        options.json,
    )
