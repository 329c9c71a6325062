"""One training per run folder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from eve_vl.train import processes
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Lock a run folder against other trainings; every process must call this, and the main one holds the lock.

    Makes missing folders, and deletes them if they stay empty. Raises UserError in every process if another training holds the
    lock or the folder cannot be written.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    file, problem = _acquire(run) if is_main() else (None, None)
    problem = processes.gather_objects(problem)[0]
    try:
        if problem is not None:
            raise UserError(f"{run}: {problem}")
        yield
    finally:
        if file is not None:
            (run / LOCK).unlink(missing_ok=True)  # while held: a process that opened it meanwhile sees that it is gone
            file.close()
        if is_main():
            with contextlib.suppress(OSError):  # not empty
                for folder in made:
                    folder.rmdir()


def _acquire(run: Path) -> tuple[IO[str] | None, str | None]:
    """Return the locked file, or the problem that prevents a lock."""
    path = run / LOCK
    while True:
        try:
            run.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            return None, _unwritable(error)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not kept alive by loader workers of a killed run
        except (BlockingIOError, PermissionError):
            file.close()
            with contextlib.suppress(FileNotFoundError):  # the other process has just ended
                holder = path.read_text(errors="replace").strip() or "unknown"
                return None, f"is in use by process {holder}; wait for it to end, or choose another folder with --out"
            continue
        except OSError:  # a file system without locks
            return file, None
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:  # else its holder has deleted it
                try:
                    file.truncate(0)
                    os.write(file.fileno(), str(os.getpid()).encode())
                except OSError as error:  # such as a full disk
                    path.unlink(missing_ok=True)
                    file.close()
                    return None, _unwritable(error)
                return file, None
        file.close()


def _unwritable(error: OSError) -> str:
    return f"cannot be written ({error.strerror}); make room, or choose another folder with --out"
