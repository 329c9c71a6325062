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

import pytest
import torch

from eve_vl.train import environment
from eve_vl.utils.cores import core_seconds

CPU = torch.device("cpu")
# the system counts user and system time of processes that have ended in hundredths of seconds
TICKS = 0.02


def test_each_start_adds_an_entry(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["/somewhere/eve_vl/__main__.py", "pretrain", "tiny", "--out", "with space"]
    )
    environment.record_environment(tmp_path, CPU)
    environment.record_environment(tmp_path, CPU)
    first, second = environment.read_environment(tmp_path)
    assert first["command"] == "eve pretrain tiny --out 'with space'"
    assert first["torch"] == torch.__version__
    assert first["python"] == platform.python_version()
    assert first["started"] <= second["started"]
    assert first["memory_gib"] > 0.5
    assert first["cores"] >= 1
    assert first["processor"]


@pytest.mark.parametrize("content", ["[", "{}", '["text", 1, null]'])
def test_damage_costs_only_the_damaged_entries(tmp_path: Path, content):
    path = tmp_path / environment.ENVIRONMENT
    path.write_text(content)
    assert environment.read_environment(tmp_path) == []
    environment.record_environment(tmp_path, CPU)
    assert len(json.loads(path.read_text())) == 1


def test_commit_is_that_of_the_packages_own_working_tree(tmp_path: Path, monkeypatch):
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
    """Send the processor time of this process, after some work, each time that it is asked."""
    while link.recv():
        sum(range(10**6))
        link.send(time.process_time())


def ended_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_core_seconds_count_workers_alive_and_ended():
    """Compared with the clocks of both processes just before and just after."""
    link, worker_link = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(worker_link,))
    worker.start()
    earlier_children = ended_children()

    def clocks_of_both() -> float:
        link.send(True)
        return link.recv() + time.process_time() + earlier_children

    before = clocks_of_both()
    counted = core_seconds()
    after = clocks_of_both()
    link.send(False)
    if sys.platform == "linux":
        assert before - TICKS <= counted <= after + TICKS
        os.waitid(os.P_PID, worker.pid or 0, os.WEXITED | os.WNOWAIT)
        # a worker that has ended, and for which nobody has waited yet, is not lost
        assert core_seconds() >= counted - TICKS
    worker.join()
    before_end = time.process_time() + ended_children()
    counted = core_seconds()
    after_end = time.process_time() + ended_children()
    assert before_end - TICKS <= counted <= after_end + TICKS
    assert before < after <= after_end
