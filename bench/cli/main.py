"""The command line: ``python -m bench COMMAND``. torch is imported only when a command needs it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from bench.cli import commands
from bench.cli.commands import COMMANDS as COMMANDS
from bench.errors import BusyError, Interrupted, UserError, nearest
from bench.files import expand, require_absent, require_folder
from bench.run.trainer_options import ACCELERATORS

# Names and numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE = 2**31 - 1
COMPUTING = ("fit", "evaluate", "diagnose", "export", "import", "speed", "sweep")
FIT_HELP = """\
usage: python -m bench fit --method NAME [options]

Trains a network, converts it, evaluates the SNN at every T, writes runs/.../record.json.

  --method NAME        conversion method (python -m bench list)
  --arch NAME          resnet20, vgg16 ... or timm/<name> (bench list) [resnet20]
  --data NAME          imagenet, cifar10, cifar100, digits          [cifar10]
  --recipe NAME|FILE   training settings                            [paper's or ours]
  --seed N             weights, order and augmentation              [0]
  --T 1,2,4,8          time-steps to report                         [1,2,4,8,16,32]
  --max_epochs N       train for N epochs                           [the recipe's]
  --subset N           use N training and test images; never ranked
  --logger KIND        wandb (offline without a key), csv or none   [wandb]
  --ckpt last|FILE     last or a .ckpt: resume a training; FILE or timm: net
                       to convert or to tune
  --out DIR            folder of the run                            [runs/...]
  --overwrite          replace a run that is already in --out
  --compile true|false compile training steps (torch.compile)       [if it saves time]
  --config FILE        YAML with any of these; --print_config shows the resolved one

All settings of method, data and trainer (--model.*, --data.*, --trainer.*):
  python -m bench fit --method qcfs --data cifar10 --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments after ``python -m bench``; default ``sys.argv[1:]``.

    Returns:
        The exit status: 0; 1 if ``--check`` or a run of a sweep fails; 2 for bad input, with one line on standard
        error; 75 if another process is using the folder; 130 or 143 after a signal; 141 if the reader has closed the
        pipe.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # The parent process, such as cron, may have closed them.
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    try:
        if arguments[:1] and arguments[0] in COMPUTING:
            with contextlib.redirect_stdout(SturdyOutput(sys.stdout)):
                return _dispatch(arguments)
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL if isinstance(error, BusyError) else 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has closed it (`| head`), so nothing can be printed.
        sys.stderr.close()
        return 141
    except OSError as error:  # a name that is too long, a folder without permission, a full disk
        from bench.leaderboard.text import one_line

        if error.errno == errno.ENOSPC and error.filename is None:
            to_nowhere(sys.stdout)
        where = error.filename or "standard output, or a temporary file"
        print(one_line(f"error: {where}: {error.strerror or error}", 400), file=sys.stderr)
        return 2


def to_nowhere(stream: TextIO) -> None:
    """Discards what a stream still holds and all later output, because it cannot be written any more."""
    with contextlib.suppress(OSError, ValueError):  # the stream is not a file
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


class SturdyOutput(io.TextIOBase):
    """Standard output of a command that computes: its results are files, so a closed output must not stop it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute there
        """Encoding of the stream."""
        return self.stream.encoding

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """File descriptor of the stream."""
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Writes; continues if there is no reader (``fit | head -1``) or the disk is full."""
        try:
            self.stream.write(text)
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        """Flushes, if that is still possible."""
        try:
            self.stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        to_nowhere(self.stream)
        if not isinstance(error, BrokenPipeError):
            print(
                f"warning: standard output cannot be written ({error.strerror}); continuing without it", file=sys.stderr
            )


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m bench COMMAND [options]\n\ncommands:")
        for name, help_text in COMMANDS.items():
            print(f"  {name:<12} {help_text}")
        print("\nrun python -m bench COMMAND --help for the options of a command")
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise UserError(f"{command}: unknown command; choose from {', '.join(COMMANDS)}{nearest(command, COMMANDS)}")
    run = {
        "fit": _fit,
        "evaluate": _evaluate,
        "diagnose": commands.diagnose,
        "export": commands.export,
        "import": commands.import_,
        "sweep": _sweep,
        "list": _list,
        "leaderboard": _leaderboard,
        "compare": commands.compare,
        "speed": commands.speed,
    }
    if command in COMPUTING:
        keep_freed_memory()
    return run[command](rest)


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory of this process instead of returning it to the kernel.

    Each layer frees and requests activations of some megabytes. By default their pages are mapped again each time.
    This took a tenth of the time of a simulation (a single forward pass has few such blocks and gains nothing).

    Returns:
        Whether it worked; without glibc nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, LARGE))


def _fit(arguments: list[str]) -> int:
    if arguments in (["-h"], ["--help"]):
        print(FIT_HELP, end="")
        return 0
    from bench.run.resolve import parse_fit, with_source

    try:
        spec = with_source(parse_fit(arguments))
    except SystemExit as stop:  # --help and --print_config end here
        return int(stop.code or 0)
    from bench.run.fit import fit

    fit(spec, ["python", "-m", "bench", "fit", *arguments])
    return 0


def _evaluate(arguments: list[str]) -> int:
    parser = commands.parser("evaluate")
    parser.add_argument("--ckpt", required=True, type=expand, help="last.ckpt or model.safetensors of a run")
    parser.add_argument("--T", default="1,2,4,8,16,32", help="time-steps to report [1,2,4,8,16,32]")
    parser.add_argument(
        "--out",
        type=expand,
        help="folder for the record (default: evaluate/ in the folder of the run, or in runs/ for a net by itself)",
    )
    parser.add_argument("--logger", choices=["wandb", "csv", "none"], default="csv")
    parser.add_argument("--overwrite", action="store_true", help="replace the record in --out")
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="auto")
    commands.add_data_files(parser)
    parser.add_argument("--data.num_workers", dest="num_workers", type=int)
    parser.add_argument("--data.eval_batch_size", dest="eval_batch_size", type=int)
    parser.add_argument(
        "--trainer.limit_test_batches", dest="limit_test_batches", type=commands.at_least_one, metavar="N",
        help="evaluate on the first N batches only (of --data.eval_batch_size images); never ranked",
    )  # fmt: skip
    parser.add_argument("--snn.delay", dest="delay", help="number of first steps that the answer leaves out, or auto")
    parser.add_argument(
        "--snn.permute", dest="permute", choices=["true", "false"], help="send spikes in a random order"
    )
    parser.add_argument("--snn.draw_seed", dest="draw_seed", type=int, help="seed of these orders")
    parser.add_argument("--snn.draws", dest="draws", type=int, help="runs of each image, if random [5]")
    options = parser.parse_args(arguments)
    from bench.run.fit import evaluate_checkpoint
    from bench.run.resolve import parse_steps

    data = commands.given(options, "root", "check", "num_workers", "eval_batch_size")
    out = options.out or commands.beside(options.ckpt, "evaluate")
    if not options.overwrite:
        require_absent(out / "record.json")
    argv = ["python", "-m", "bench", "evaluate", *arguments]
    snn = commands.given(options, "delay", "permute", "draw_seed", "draws")
    if "permute" in snn:
        snn["permute"] = snn["permute"] == "true"
    if (delay := snn.get("delay", "auto")) != "auto":
        if not str(delay).isdecimal():
            raise UserError(f"--snn.delay {delay}: must be a number of steps, or auto")
        snn["delay"] = int(str(delay))
    steps, trainer = parse_steps(options.T), commands.given(options, "accelerator", "limit_test_batches")
    evaluate_checkpoint(options.ckpt, steps, out, options.logger, data, trainer, argv, snn)
    return 0


def _sweep(arguments: list[str]) -> int:
    parser = commands.parser("sweep")
    parser.add_argument(
        "file", type=expand, metavar="FILE", help="YAML file with methods, archs, data, seeds, options, grid, sources"
    )
    parser.add_argument("--address", help="address of a Ray cluster (host:port, or auto); default: this machine")
    parser.add_argument("--cpus", type=int, help="cores of this machine to use (default: all)")
    parser.add_argument("--cpus-per-run", type=float, default=1.0, help="cores and threads of each run [1]")
    parser.add_argument(
        "--gpus-per-run", type=float, help="0.25: four runs share one GPU (default: 1 if there are any)"
    )
    parser.add_argument(
        "--retries", type=int, default=2, help="how often to retry a failed run, from its last checkpoint [2]"
    )
    parser.add_argument(
        "--out", type=expand, default=Path("runs"), help="folder for the runs, shared by all machines [runs]"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its estimated cost")
    parser.add_argument("--print", action="store_true", help="print the commands, for another scheduler")
    options = parser.parse_args(arguments)
    from bench.sweep.command import run
    from bench.sweep.scheduler import Resources

    resources = Resources(options.address, options.cpus, options.cpus_per_run, options.gpus_per_run, options.retries)
    return run(options.file, options.out, Path("leaderboards/results"), resources, options.dry_run, options.print)


def _list(arguments: list[str]) -> int:
    commands.parser("list").parse_args(arguments)
    from bench.recipes import all_recipes, read_recipe
    from bench.registry.datasets import DATA
    from bench.registry.methods import METHODS
    from bench.registry.nets import ARCHITECTURES

    print("methods (--method)")
    for name, method in METHODS.items():
        traits = [method.origin] + ["one conversion per T"] * method.per_T + ["warm-up"] * method.warmup
        traits += ["layers wait"] * method.waits + ["equals the quantised ANN"] * method.exact
        print(f"  {name:<12} {', '.join(filter(None, [method.display, method.published.link]))}")
        print(f"{'':<15}{method.summary} [{', '.join(traits)}]")
    print("\ndata sets (--data)")
    for name, data in DATA.items():
        print(f"  {name:<12} {data.summary}")
    print("\narchitectures (--arch; cifar_ may be left out, except for imagenet)")
    for name, net in ARCHITECTURES.items():
        print(f"  {name:<16} {net.summary}")
    print("  timm/<name>      any convolutional net of timm with ReLU modules")
    print("\nrecipes (--recipe); paper: as in the paper; the head of a recipe's file has the source of the others")
    for method_name, stem, path in all_recipes():
        default = "" if path.name.count(".") > 1 else " (default)"
        print(f"  {method_name:<8} {stem:<22} {read_recipe(path).name}{default}")
    return 0


def _leaderboard(arguments: list[str]) -> int:
    parser = commands.parser("leaderboard")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if a generated file is stale"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--add", type=expand, nargs="+", default=[], metavar="RECORD", help="file these records, then regenerate"
    )
    parser.add_argument("--wandb-dir", type=expand, metavar="DIR", help="file the records of offline W&B runs in DIR")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="file the records of the runs of this project on W&B")
    parser.add_argument("--results", type=expand, default=Path("leaderboards/results"))
    parser.add_argument("--reported", type=expand, default=Path("leaderboards/reported"))
    parser.add_argument("--out", type=expand, default=Path("leaderboards"))
    options = parser.parse_args(arguments)
    import tempfile

    from bench.leaderboard import run

    with contextlib.ExitStack() as stack:
        add = options.add
        if options.wandb_dir is not None or options.wandb is not None:
            if options.check:
                raise UserError("leaderboard: --check writes nothing, so it cannot be used with --wandb or --wandb-dir")
            from bench.leaderboard.collect import collect

            require_folder("--results", options.results)  # now, because downloads come first
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            add = [*add, *collect(options.wandb_dir, options.wandb, options.results, folder)]
        return run(options.results, options.reported, options.out, options.check, options.json, add)
