"""Jobs in processes: order, results, failures with the end of their log, signals."""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from eve_vl.run import job_processes
from eve_vl.run.job_processes import Job, JobWatcher, run_jobs
from eve_vl.utils.errors import StoppedError, UserError


@pytest.fixture(autouse=True)
def forks(monkeypatch):
    """The jobs need none of torch's threads, so a fork does, which starts at once."""
    monkeypatch.setattr(job_processes, "CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(job_processes, "start_fork_server", lambda _: None)


class Recorder(JobWatcher):
    """The names of jobs as they start, and their results."""

    def __init__(self):
        self.names = []
        self.results = {}

    def started(self, job: Job) -> None:
        self.names.append(job.name)

    def succeeded(self, job: Job, result: object) -> None:
        self.results[job.name] = result


class Tolerant(Recorder):
    """The same, and what failed."""

    def __init__(self):
        super().__init__()
        self.errors = {}

    def failed(self, job: Job, error: UserError) -> None:
        self.errors[job.name] = str(error)


def touch(path: Path) -> str:
    sys.stdout.write("touching\n")
    path.touch()
    return path.name


def fail(error: Exception) -> None:
    raise error


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_signal(folder: Path) -> None:
    try:
        (folder / "waits").touch()
        time.sleep(60)
    finally:
        (folder / "saved").touch()


def job_for(function, *arguments: object, folder: Path, **options) -> Job:
    options.setdefault("name", function.__name__)
    return Job(
        function=function,
        arguments=arguments,
        log=folder / "job.log",
        **options,
    )


def test_jobs_start_in_order_as_soon_as_they_may(tmp_path: Path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    jobs = [
        job_for(touch, third, folder=tmp_path, name="third", after="second"),
        job_for(touch, second, folder=tmp_path, name="second", needs=(first,)),
        job_for(touch, first, folder=tmp_path, name="first"),
    ]
    recorder = Recorder()
    run_jobs(jobs, 2, recorder)
    assert recorder.names == ["first", "second", "third"]
    assert recorder.results == {
        "first": "first",
        "second": "second",
        "third": "third",
    }
    assert (tmp_path / "job.log").read_text() == 3 * "touching\n"


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (fail, [UserError("no such file")], r"^no such file$"),
        (fail, [KeyError("gone")], r"^KeyError: 'gone'; more in .*job\.log$"),
        (kill_itself, [], r"^its process was killed"),
    ],
)
def test_a_failure_is_named_and_the_others_may_continue(
    tmp_path: Path, function, arguments, message
):
    jobs = [
        job_for(function, *arguments, folder=tmp_path / "failing", name="failing"),
        job_for(touch, tmp_path / "later", folder=tmp_path, after="failing", name="later"),
        job_for(touch, tmp_path / "next", folder=tmp_path),
    ]
    watcher = Tolerant()
    run_jobs(jobs[:1] + jobs[2:], 1, watcher)
    assert watcher.results == {"touch": "next"}
    assert re.search(message, watcher.errors["failing"])
    log = (tmp_path / "failing/job.log").read_text()
    assert ("in fail\n" in log) == message.startswith("^KeyError")
    with pytest.raises(UserError, match=r"^failing: "):
        run_jobs(jobs, 1, Recorder())
    assert not (tmp_path / "later").exists()


def test_a_failure_stops_the_others_after_they_have_saved(tmp_path: Path):
    waiting = job_for(wait_for_signal, tmp_path, folder=tmp_path)
    failing = job_for(fail, UserError("bad"), folder=tmp_path, needs=(tmp_path / "waits",))
    with pytest.raises(UserError, match=r"^fail: bad$"):
        run_jobs([waiting, failing], 2, Recorder())
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_after_they_have_saved(tmp_path: Path, stop: signal.Signals):
    def send_signal() -> None:
        while not (tmp_path / "waits").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), stop)

    sender = threading.Thread(target=send_signal)
    sender.start()
    with pytest.raises(StoppedError, match="run the same command again to resume") as error:
        run_jobs([job_for(wait_for_signal, tmp_path, folder=tmp_path)], 1, Recorder())
    sender.join()
    assert error.value.code == 128 + stop
    assert (tmp_path / "saved").exists()


def test_jobs_that_wait_for_what_never_comes_are_left_out(tmp_path: Path):
    jobs = [
        job_for(fail, UserError("broken"), folder=tmp_path, name="first"),
        job_for(touch, tmp_path / "second", folder=tmp_path, name="second", after="first"),
        job_for(touch, tmp_path / "third", folder=tmp_path, name="third", needs=(tmp_path / "no",)),
    ]
    watcher = Tolerant()
    run_jobs(jobs, 2, watcher)
    assert watcher.names == ["first"]
    assert [*watcher.errors] == ["first"]
