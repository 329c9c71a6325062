"""Commands as processes of their own that start at once: forks of a server process whose imports
are done."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from eve_vl.cli.main import main
from eve_vl.config import Config
from eve_vl.demo.train_and_test import train_and_test
from helpers import shortcuts  # noqa: F401

CONTEXT = multiprocessing.get_context("forkserver")
# as `eve demo`: whoever comes first starts the server of both
PRELOAD = ["eve_vl.demo.train_and_test"]
STREAMS = {1: "stdout", 2: "stderr"}


def run(
    args: tuple[str, ...],
    folder: Path,
    console: Path,
    env: Mapping[str, str],
    before: Callable[[], object],
) -> None:
    """Do what `python -m eve_vl` does after its imports."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, name in STREAMS.items():
        os.dup2(os.open(console / name, os.O_CREAT | os.O_WRONLY), number)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    before()
    main(args)


def demo_work(config: Config, num_test: int) -> dict[str, float]:
    """The work of a job of the demo, with the shortcuts."""
    return train_and_test(config, num_test)


class Forked:
    """A command that runs in `folder`, with the attributes and methods of `subprocess.Popen` that
    tests use.

    console: an empty folder for its output. before: what the process calls first.
    """

    def __init__(
        self,
        args: tuple[str, ...],
        folder: Path,
        console: Path,
        env: Mapping[str, str],
        before: Callable[[], object],
    ):
        CONTEXT.set_forkserver_preload(PRELOAD)
        self.console = console
        self.process = CONTEXT.Process(
            target=run,
            args=(
                args,
                folder,
                console,
                dict(env),
                before,
            ),
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for its end; return stdout and stderr."""
        self.process.join(timeout)
        assert self.returncode is not None, "it does not end"
        stdout, stderr = ((self.console / name).read_text() for name in STREAMS.values())
        return stdout, stderr
