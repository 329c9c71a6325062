"""Shared by all tests."""

import gc
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from eve_vl.builtin.icons import ICONS, PAIRS
from eve_vl.cli.main import main
from eve_vl.report import page
from helpers import shortcuts  # noqa: F401
from helpers.forked import CONTEXT, PRELOAD, Forked

torch.set_num_threads(1)  # two threads stall on shared cores
# pytest listens to loggers that do not propagate, and torch then describes each step of a trace
logging.getLogger("torch.__trace").propagate = True
os.environ["OMP_NUM_THREADS"] = "1"
# nohup, and a shell's &, have these ignored, here and in what tests start
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test depends on the network


def pytest_collection_finish() -> None:
    """Stop compiling into files: tests write the same module twice within a second."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


@pytest.fixture(autouse=True, scope="module")
def frozen_objects() -> None:
    """Spare garbage collections the objects of all imported modules: a run collects several times,
    0.2 s each time."""
    gc.collect()
    gc.freeze()


Completed = subprocess.CompletedProcess[str]


@pytest.fixture
def eve(tmp_path: Path, monkeypatch, capfd) -> Callable[..., Completed]:
    """The real command line, run in tmp_path within this process (importing torch again takes
    seconds)."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Completed:
        capfd.readouterr()
        code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess([str(arg) for arg in args], code, out, err)

    return run


@pytest.fixture
def eve_fork(tmp_path: Path, tmp_path_factory) -> Callable[..., Forked]:
    """The command line, started in tmp_path as a process of its own without the seconds that
    imports take."""

    def start(
        *args: object, env: Mapping[str, str] = os.environ, before: Callable[[], object] = int
    ) -> Forked:
        return Forked(
            tuple(map(str, args)), tmp_path, tmp_path_factory.mktemp("console"), env, before
        )

    return start


@pytest.fixture
def quick_spawn(monkeypatch) -> None:
    """Spawned processes without the seconds that imports take."""
    CONTEXT.set_forkserver_preload(PRELOAD)
    monkeypatch.setattr(multiprocessing, "get_context", {"spawn": CONTEXT}.__getitem__)


@pytest.fixture
def no_report(monkeypatch) -> None:
    """Training without its report, which takes longer than the steps; tests of reports and
    test_end_to_end.py write it."""
    write = page.write_report

    def write_if_named(run: Path, *out: Path) -> Path:
        return write(run, *out) if out else run  # `eve report` names one

    monkeypatch.setattr(page, "write_report", write_if_named)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    """A run of four steps, to start fine-tuning from."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    main(["pretrain", "tiny", "--out", str(run), "--train.steps", "4", "--data.val-samples", "8"])
    return run


@pytest.fixture
def few_icons(tmp_path: Path, monkeypatch) -> list[str]:
    """Ship only some of the icons, which takes a tenth of the time; their captions."""
    path = tmp_path / "few.zip"
    captions = []
    with zipfile.ZipFile(ICONS) as archive, zipfile.ZipFile(path, "w") as small:
        lines = []
        for number, line in enumerate(archive.read(PAIRS).splitlines()):
            row = json.loads(line)
            if number % 20 == 0 or row["caption"] in ("heart", "mail", "shopping cart"):
                lines.append(line + b"\n")
                captions.append(row["caption"])
                small.writestr(row["image"], archive.read(row["image"]))
        small.writestr(PAIRS, b"".join(lines))
    monkeypatch.setattr("eve_vl.builtin.icons.ICONS", path)
    return captions
