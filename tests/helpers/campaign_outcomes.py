"""Outcomes of reading answers in a process of its own, which may die or hang."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eve_vl.utils.errors import UserError
from helpers.process_limits import limit_process

Answers = Sequence[tuple[str, float]]
"""Texts in their order, each with a score."""
Read = Callable[[Path], Answers]


def outcome_of(read: Read, folder: Path, timeout: float) -> tuple[str, Any]:
    """Read answers in a process of its own; return its outcome, and the answers or the message."""
    return outcome_alone(partial(read_outcome, read, folder), timeout)


def outcome_alone(work: Callable[[], tuple[str, Any]], timeout: float) -> tuple[str, Any]:
    """Return the outcome of work in a process of its own, with its details.

    It is `hang` after `timeout` seconds, and `death` if the process ends without a result.
    """
    receiving, sending = multiprocessing.Pipe(duplex=False)

    def work_and_send() -> None:
        limit_process()
        sending.send(work())
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work_and_send)
    process.start()
    sending.close()
    try:
        outcome = receiving.recv() if receiving.poll(timeout) else ("hang", "")
    except EOFError:
        outcome = ("death", "")
    process.kill()
    process.join()
    return outcome


def read_outcome(read: Read, folder: Path) -> tuple[str, object]:
    """Read answers; return the outcome, and the answers or the message."""
    try:
        return "same", list(read(folder))
    except UserError as error:
        return "refused" if str(error).isprintable() else "traceback", str(error)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [frame for frame in frames if "eve_vl" in frame.filename]
        return "traceback", f"{type(error).__name__}: {error} {places[-1:]}"[:500]
