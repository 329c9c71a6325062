"""environment.json: each start adds an entry; damage costs only the entries."""

import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from eve_vl.train import environment
from eve_vl.utils.cores import core_seconds

CPU = torch.device("cpu")
TICKS = 0.02  # the system counts user and system time of processes that have ended in hundredths of seconds


def test_each_start_is_recorded(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["/somewhere/eve_vl/__main__.py", "pretrain", "tiny", "--out", "with space"]
    )
    environment.record_environment(tmp_path, CPU)
    environment.record_environment(tmp_path, CPU)
    first, second = environment.read_environment(tmp_path)
    assert first["command"] == "eve pretrain tiny --out 'with space'"
    assert (first["torch"], first["python"]) == (torch.__version__, platform.python_version())
    assert first["started"] <= second["started"]
    assert first["memory_gib"] > 0.5 and first["cores"] >= 1 and first["processor"]
    for damaged in ("[", "{}", '["text", 1, null]'):
        (tmp_path / environment.ENVIRONMENT).write_text(damaged)
        assert environment.read_environment(tmp_path) == []
        environment.record_environment(tmp_path, CPU)
        assert len(json.loads((tmp_path / environment.ENVIRONMENT).read_text())) == 1


def test_the_commit_is_that_of_a_working_tree_of_its_own(tmp_path: Path, monkeypatch):
    package = tmp_path / "eve_vl"
    package.mkdir()
    monkeypatch.setattr(environment, "PACKAGE", package)
    assert environment.environment_facts(CPU)["commit"] == ""

    def git(*words: str) -> str:
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *name, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "--quiet")
    (package / "file").write_text("1")
    git("add", "eve_vl")
    git("commit", "--quiet", "-m", "first")
    git("tag", "-a", "v1", "-m", "a tag is no commit")
    commit = git("rev-parse", "HEAD")
    assert environment.environment_facts(CPU)["commit"] == commit
    (package / "file").write_text("2")
    assert environment.environment_facts(CPU)["commit"] == f"{commit}-dirty"


def work(link) -> None:
    """Say how long this process has worked, by its own clock, after some work each time that it is asked."""
    while link.recv():
        sum(range(10**6))
        link.send(time.process_time())


def test_core_seconds_count_workers_alive_and_ended():
    """Between what the clocks of both processes say just before and just after, however fast they are."""
    link, other = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(other,))

    def said() -> float:
        link.send(True)
        return link.recv() + time.process_time() + ended

    def of_ended() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    worker.start()
    ended = of_ended()
    first, counted, second = said(), core_seconds(), said()
    link.send(False)
    if sys.platform == "linux":
        os.waitid(os.P_PID, worker.pid or 0, os.WEXITED | os.WNOWAIT)
        assert core_seconds() >= counted - TICKS, (
            "a worker that has ended, and for which nobody has waited yet, is lost"
        )
    worker.join()
    third, after, fourth = (
        time.process_time() + of_ended(),
        core_seconds(),
        time.process_time() + of_ended(),
    )
    if sys.platform == "linux":
        assert first - TICKS <= counted <= second + TICKS
    assert third - TICKS <= after <= fourth + TICKS
    assert first < second <= fourth
