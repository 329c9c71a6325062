"""Memory of a process, and limits for processes that read damaged files."""

import os
import resource
from pathlib import Path

import torch

ROOM = 3 * 2**30  # bytes of addresses beyond those at the start: a runaway leaves the machine alone


def memory(name: str, process: int | str = "self") -> int:
    """Return a number of /proc/PROCESS/status in bytes, such as VmRSS, or VmHWM for the peak."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def limit_process() -> None:
    """Silence this process and limit its memory and threads."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    most = memory("VmSize") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
