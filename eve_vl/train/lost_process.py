"""One line instead of a traceback per process when torchrun's processes lose one of them."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from eve_vl.utils.console import is_main
from eve_vl.utils.errors import UserError
from eve_vl.utils.launcher import is_under_torchrun

TRACEBACK_FILE = "lost_process.txt"
# of gloo: Connection closed by peer, Connection reset by peer; of NCCL's ncclRemoteError. Their
# names tell them from a server's connections, whose errors are no reason to blame a process
LOST_CONNECTION = re.compile(
    r"(gloo|nccl).*(closed by peer|reset by peer|broken pipe|remote process exit)",
    re.IGNORECASE | re.DOTALL,
)


class LostProcessError(UserError):
    """Another process of the run has ended."""

    code = 1
    """Exit status; 2 is for mistakes of the user."""


@contextlib.contextmanager
def explain_lost_process(run: Path) -> Iterator[None]:
    """Raise LostProcessError if the block loses the connection to another process.

    The first process that notices keeps its traceback in the run folder and reports the loss; the
    others exit without a word. The file of an earlier call is deleted: it would silence all.
    """
    path = run / TRACEBACK_FILE
    if is_main():
        path.unlink(missing_ok=True)
    try:
        yield
    except RuntimeError as error:
        if not is_under_torchrun() or not LOST_CONNECTION.search(str(error)):
            raise
        if not _writes_first(path, traceback.format_exc()):
            raise SystemExit(LostProcessError.code) from None
        raise LostProcessError(
            "another process of this run has ended, and torchrun names it below; run the same "
            f"command again to resume (traceback: {path})"
        ) from None


def _writes_first(path: Path, text: str) -> bool:
    """Write a file; return False if it is there already."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError:  # the run has no folder yet, or its disk is full; the line matters more
        pass
    return True
