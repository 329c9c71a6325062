"""The lock of a run folder or index: only one process writes into it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from eve_vl.train import processes
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_lock import FileInUseError, file_lock

LOCK = ".lock"


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Lock a run folder against other trainings.

    Every process must call this, and the main one holds the lock. Makes missing folders, and
    deletes them if they stay empty. Raises UserError in every process if another training holds the
    lock or the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        problem = _acquire(run, held) if is_main() else None
        problem = processes.gather_objects(problem)[0]
        if problem is not None:
            raise UserError(f"{run}: {problem}")
        yield


def _acquire(run: Path, held: contextlib.ExitStack) -> str | None:
    """Enter the lock into a stack of contexts; return the problem if that is impossible."""
    missing_folders = [folder for folder in (run, *run.parents) if not folder.exists()]
    held.callback(_delete_empty, missing_folders)
    try:
        run.mkdir(parents=True, exist_ok=True)
        held.enter_context(file_lock(run / LOCK))
    except FileInUseError as holder:
        return f"is in use by {holder}; wait for it to end, or choose another folder with --out"
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        return f"{reason}; make room, or choose another folder with --out"
    return None


def _delete_empty(folders: Sequence[Path]) -> None:
    """Delete nested folders, the innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
