"""Runs jobs on Ray: sources first, failed ones again from their last checkpoint, none that is recorded already."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from bench.errors import Interrupted, UserError, in_one_line
from bench.sweep import worker
from bench.sweep.plan import Job, executable
from bench.sweep.progress import Display, Progress

# A run that ends so has refused its input; the same input would be refused again.
BAD_INPUT = 2
# Another process holds the run's folder: tried again, so often, after so many seconds.
BUSY, BUSY_ATTEMPTS, BUSY_SECONDS = os.EX_TEMPFAIL, 20, 30.0
# What a run needs of the environment it is started from, on whatever machine.
PASSED = ("PYTHONPATH", "PATH", "BENCH_DATA_DIR", "HF_HOME", "TORCH_HOME", "HF_HUB_OFFLINE", "NETRC")
PASSED_PREFIXES = ("WANDB_",)


@dataclass(frozen=True)
class Resources:
    """What Ray is asked for.

    Attributes:
        address: of a cluster; ``None`` starts Ray on this machine for the time of the sweep.
        cpus: of this machine, where Ray is started; ``None`` for all.
        cpus_per_run: cores that a run occupies; a whole number of threads is given to it, at least 1.
        gpus_per_run: may be a fraction: several runs then share a GPU. ``None`` for 1 if there are any.
        retries: of a failed run.
    """

    address: str | None = None
    cpus: int | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float | None = None
    retries: int = 2


@contextmanager
def connected(resources: Resources) -> Iterator[ModuleType]:
    """Ray, started or joined.

    Raises:
        UserError: it is not installed, the cluster does not answer, or no machine of it is large enough.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would give way to everything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # The run's own environment says which devices it may see; without this Ray warns of a change to come.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError("sweep needs Ray, which is not installed: pip install -e '.[sweep]'") from error
    host, colon, port = (resources.address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():  # Ray itself would try for minutes
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"--address {resources.address}: Ray cannot be reached ({error})") from error
    own = {"address": "local", "include_dashboard": False, "num_cpus": resources.cpus}
    options: dict[str, object] = own if resources.address is None else {"address": resources.address}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        reason = in_one_line(error)
        raise UserError(f"--address {resources.address or 'local'}: Ray cannot be reached ({reason})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


class Remote(Protocol):
    """What Ray makes of a function."""

    def remote(self, *arguments: object) -> object:
        """Starts it on some machine; gives a reference to what it will return."""


class Scheduler:
    """Runs jobs to their records.

    Args:
        jobs: sources before what converts them.
        resources: what each run gets.
    """

    def __init__(self, jobs: Sequence[Job], resources: Resources) -> None:
        self.resources = resources
        self.runs = {job.folder: Progress(job) for job in jobs}
        for run in self.runs.values():
            if run.job.state() == "recorded":
                run.phase = "recorded"
        self.pending: dict[object, Progress] = {}
        self.terminated = False

    def run(self) -> list[Progress]:
        """Runs all that is not recorded yet.

        Returns:
            The runs that failed for good.

        Raises:
            Interrupted: SIGINT or SIGTERM came; running ones are stopped, and the same sweep goes on with them.
            UserError: Ray cannot be reached, or has no machine for such a run.
        """
        runs = list(self.runs.values())
        if all(run.phase == "recorded" for run in runs):
            return []
        display = Display(runs)
        previous = signal.signal(signal.SIGTERM, self._terminate)
        try:
            with connected(self.resources) as ray:
                signal.signal(signal.SIGTERM, self._terminate)  # again: Ray has put its own there
                task = self._task(ray)
                with display:
                    try:
                        self._loop(ray, task, display)
                    finally:
                        for reference in self.pending:
                            ray.cancel(reference, force=True)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"sweep was interrupted, {display.summary()}; repeat the command to continue", 130
            ) from error
        finally:
            signal.signal(signal.SIGTERM, previous)
        if self.terminated:
            raise Interrupted(f"sweep was terminated, {display.summary()}; repeat the command to continue", 143)
        return [run for run in runs if run.phase == "failed"]

    def _terminate(self, *_: object) -> None:
        self.terminated = True  # an exception out of a signal handler would not come through Ray's compiled code

    def _task(self, ray: ModuleType) -> Remote:
        from ray import cloudpickle

        cpus, gpus = self.resources.cpus_per_run, self.resources.gpus_per_run
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = 1.0 if any(machine.get("GPU") for machine in machines) else 0.0
        for option, name, wanted in (("--cpus-per-run", "CPU", cpus), ("--gpus-per-run", "GPU", gpus)):
            largest = max((machine.get(name, 0.0) for machine in machines), default=0.0)
            if wanted > largest:
                raise UserError(f"{option} {wanted:g}: the largest machine that Ray sees has {largest:g}")
        if not any(machine.get("CPU", 0.0) >= cpus and machine.get("GPU", 0.0) >= gpus for machine in machines):
            raise UserError(
                f"--cpus-per-run {cpus:g}, --gpus-per-run {gpus:g}: no machine that Ray sees has both; lower one"
            )
        cloudpickle.register_pickle_by_value(worker)
        # Ray's own retries would begin anew; here a retry goes on from the last checkpoint.
        task: Remote = ray.remote(worker.run_command).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        return task

    def _loop(self, ray: ModuleType, task: Remote, display: Display) -> None:
        names = {*PASSED, *(name for name in os.environ if name.startswith(PASSED_PREFIXES))}
        environment = {name: os.environ[name] for name in sorted(names) if name in os.environ}
        environment["OMP_NUM_THREADS"] = str(max(1, int(self.resources.cpus_per_run)))
        if self.resources.gpus_per_run == 0:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        while not self.terminated:
            for run in self.runs.values():
                if run.phase == "waiting" and time.time() >= run.not_before and self._ready(run, display):
                    run.submitted(executable(run.job))
                    reference = task.remote(run.command, str(Path.cwd()), environment, str(run.log.resolve()))
                    self.pending[reference] = run
            if not self.pending:
                if not any(run.phase == "waiting" for run in self.runs.values()):
                    return
                time.sleep(1.0)
                continue
            ready, _ = ray.wait(list(self.pending), num_returns=1, timeout=1.0)
            for reference in ready:
                self._finished(ray, reference, display)
            display.refresh()

    def _ready(self, run: Progress, display: Display) -> bool:
        source = self.runs.get(run.job.source) if run.job.source else None
        if source is not None and source.phase == "failed":
            run.phase, run.note = "failed", f"its source net failed ({source.job.folder})"
            display.event(run, run.note)
            return False
        return source is None or source.phase in ("recorded", "done")

    def _finished(self, ray: ModuleType, reference: object, display: Display) -> None:
        run = self.pending.pop(reference)
        status: int | None = None
        try:
            status = ray.get(reference)
            reason = f"exit status {status}: {run.last_line()[:300]}"
        except ray.exceptions.RayError as error:  # the worker or its machine died
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        # A worker may die after its run has written the record, and a run of a lost machine may have gone on meanwhile.
        refused = status == BAD_INPUT and executable(run.job) == run.command
        run.busy += status == BUSY
        spent = run.busy >= BUSY_ATTEMPTS if status == BUSY else run.attempts - run.busy > self.resources.retries
        if run.job.state() == "recorded":
            run.phase = "done"
            display.event(run, "recorded")
        elif refused or spent:
            run.phase, run.note = "failed", reason
            display.event(run, f"failed after {run.attempts} attempt(s) ({reason}); see {run.log}")
        else:
            run.phase, run.note = "waiting", reason
            run.not_before = time.time() + BUSY_SECONDS if status == BUSY else 0.0
            display.event(run, f"will be tried again ({reason})")
