"""One training per run folder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from eve_vl.train import collectives
from eve_vl.utils.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other trainings out of a run folder; every process must call this, the main one holds the lock.

    Folders that do not exist yet are made, and deleted again if nothing was written into them. Raises UserError, in every
    process, if another training holds the lock or nothing can be written.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    file, problem = _acquire(run) if collectives.is_main() else (None, None)
    problem = collectives.gather_objects(problem)[0]
    try:
        if problem is not None:
            raise UserError(f"{run}: {problem}")
        yield
    finally:
        if file is not None:
            (run / LOCK).unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees that it is gone
            file.close()
        if collectives.is_main():
            with contextlib.suppress(OSError):  # not empty, nor are those around it
                for folder in made:
                    folder.rmdir()


def _acquire(run: Path) -> tuple[IO[str] | None, str | None]:
    """Return the locked file and no problem, or no file and why there is none."""
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
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                holder = path.read_text(errors="replace").strip() or "unknown"
                return None, f"is in use by process {holder}; wait for it to end, or choose another folder with --out"
            continue
        except OSError:  # a file system without locks
            return file, None
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:  # else its holder has deleted it since
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
