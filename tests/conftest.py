"""Shared by all tests."""

import os

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # two threads stall on shared cores
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def eve(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The real command line in a process of its own, started in tmp_path."""

    def run(*args: object, **kwargs) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "eve_vl", *map(str, args)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False, **kwargs)

    return run
