"""What runs on a worker: one command as a process that does not outlive it. Standard library only.

Ray sends this module by value, so the machines of a cluster need the suite for the command alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time

PR_SET_PDEATHSIG = 1
# Of the launcher that Ray's own processes were started by; a run would take itself for a part of that job.
FOREIGN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
FOREIGN_PREFIXES = ("SLURM_", "PMI_", "OMPI_", "TORCHELASTIC_")


def run_command(command: list[str], cwd: str, environment: dict[str, str], log: str) -> int:
    """Runs a command to its end and appends what it prints to a file.

    Args:
        command: program and arguments.
        cwd: folder to run it in.
        environment: added to this process's.
        log: file.

    Returns:
        Exit status; negative for a signal.
    """
    libc = ctypes.CDLL(None)
    own = {k: v for k, v in os.environ.items() if k not in FOREIGN and not k.startswith(FOREIGN_PREFIXES)}
    parent = os.getpid()

    def die_with_parent() -> None:
        # A worker that Ray or the system kills must not leave a run behind that nobody watches. Linux only.
        if hasattr(libc, "prctl"):
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    os.makedirs(os.path.dirname(log), exist_ok=True)
    with open(log, "ab") as file:
        file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()}, worker {parent}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**own, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
