"""What a run was made with: machine, versions, commit and command, an entry for each time that it was started."""

import json
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import eve_vl
from eve_vl.train import collectives
from eve_vl.utils.atomic_io import write_file
from eve_vl.utils.errors import UserError
from eve_vl.utils.runtime import usable_cores
from eve_vl.utils.safe_io import read_json

ENVIRONMENT = "environment.json"
PACKAGE = Path(eve_vl.__file__).parent


def facts(device: torch.device) -> dict[str, Any]:
    """Return what this process runs on and with. commit: "" unless the package lies in a working tree of its
    own, and ends in -dirty where that has changes."""
    program, memory = Path(sys.argv[0]).name, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    command = shlex.join(["eve" if program == "__main__.py" else program, *sys.argv[1:]])
    start = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "command": command}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    machine = {"processor": _processor(), "cores": usable_cores(), "memory_gib": round(memory / 2**30, 1), "device": name}
    versions = {"os": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    versions |= {"eve_vl": eve_vl.__version__, "commit": _commit()}
    return start | machine | {"processes": collectives.world_size()} | versions


def record(run: Path, device: torch.device) -> None:
    """Add the facts of this start to a run folder."""
    write_file(run / ENVIRONMENT, json.dumps([*read_environment(run), facts(device)], indent=1) + "\n")


def read_environment(run: Path) -> list[dict[str, Any]]:
    """Return the facts of each start of a run, oldest first; none if it has not kept them or they cannot be read."""
    with suppress(UserError):
        return [start for start in read_json(run / ENVIRONMENT, list) if isinstance(start, dict)]
    return []


def _processor() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        if (PACKAGE.parent / ".git").exists():  # else it would be that of whatever folder the package is installed in
            return subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return ""
