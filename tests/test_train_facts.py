"""What a run was made with: each start adds an entry; damage costs only the entries."""

import json
import multiprocessing
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from eve_vl.cpu import core_seconds
from eve_vl.train import facts

CPU = torch.device("cpu")


def test_each_start_is_recorded(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/eve_vl/__main__.py", "pretrain", "tiny", "--out", "with space"])
    facts.record(tmp_path, CPU)
    facts.record(tmp_path, CPU)
    first, second = facts.read_environment(tmp_path)
    assert first["command"] == "eve pretrain tiny --out 'with space'"
    assert (first["torch"], first["python"]) == (torch.__version__, platform.python_version())
    assert first["started"] <= second["started"]
    assert first["memory_gib"] > 0.5 and first["cores"] >= 1 and first["processor"]
    for damaged in ("[", "{}", "[1, null]"):
        (tmp_path / facts.ENVIRONMENT).write_text(damaged)
        assert facts.read_environment(tmp_path) == []
        facts.record(tmp_path, CPU)
        assert len(json.loads((tmp_path / facts.ENVIRONMENT).read_text())) == 1


def test_the_commit_is_that_of_a_working_tree_of_its_own(tmp_path: Path, monkeypatch):
    package = tmp_path / "eve_vl"
    package.mkdir()
    monkeypatch.setattr(facts, "PACKAGE", package)
    assert facts.facts(CPU)["commit"] == ""

    def git(*words: str) -> str:
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *name, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    (package / "file").write_text("1")
    git("add", "eve_vl")
    git("commit", "--quiet", "-m", "first")
    git("tag", "-a", "v1", "-m", "a tag is no commit")
    commit = git("rev-parse", "HEAD")
    assert facts.facts(CPU)["commit"] == commit
    (package / "file").write_text("2")
    assert facts.facts(CPU)["commit"] == f"{commit}-dirty"


def work(seconds: float, done, stop) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    done.set()
    stop.wait()


def test_core_seconds_count_workers_alive_and_ended():
    context = multiprocessing.get_context("fork")
    done, stop, before = context.Event(), context.Event(), core_seconds()
    worker = context.Process(target=work, args=(0.4, done, stop))
    worker.start()
    done.wait()
    while_alive = core_seconds()
    stop.set()
    worker.join()
    after = core_seconds()
    if sys.platform == "linux":
        assert 0.3 < while_alive - before < 5
    assert 0.3 < after - before < 5
