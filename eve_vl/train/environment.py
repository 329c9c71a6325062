"""The record of machine, versions and command of each start of a run: environment.json."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import eve_vl
from eve_vl.train import processes
from eve_vl.utils.cores import usable_cores
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_json, write_file

ENVIRONMENT = "environment.json"
PACKAGE = Path(eve_vl.__file__).parent


def record_environment(run: Path, device: torch.device) -> None:
    """Add the facts of this start to a run folder."""
    starts = [*read_environment(run), environment_facts(device)]
    write_file(run / ENVIRONMENT, json.dumps(starts, indent=1) + "\n")


def read_environment(run: Path) -> list[dict[str, Any]]:
    """Return the facts of each start of a run, oldest first.

    Damaged ones are left out; empty if the file is missing or damaged.
    """
    try:
        starts = read_json(run / ENVIRONMENT, list)
    except UserError:
        return []
    return [start for start in starts if isinstance(start, dict)]


def environment_facts(device: torch.device) -> dict[str, Any]:
    """Return machine, versions and command of this process.

    commit: "" unless the package lies in its own git working tree; it ends in -dirty if that has
    changes.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    is_cuda = device.type == "cuda"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": round(memory / 2**30, 1),
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "processes": processes.world_size(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "eve_vl": eve_vl.__version__,
        "commit": _commit(),
    }


def _command() -> str:
    program = Path(sys.argv[0]).name
    if program == "__main__.py":
        program = "eve"
    return shlex.join([program, *sys.argv[1:]])


def _processor() -> str:
    with suppress(OSError):  # Linux
        text = Path("/proc/cpuinfo").read_text()
        model_name = re.search(r"^model name\s*:(.*)$", text, re.MULTILINE)
        if model_name:
            return model_name[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    # not the repository of a folder that the package is installed in
    if not (PACKAGE.parent / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()
