"""Errors of the user as one line on stderr."""

import contextlib
import errno
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from eve_vl.utils.console import is_main, print_error
from eve_vl.utils.errors import SharedError, UserError
from eve_vl.utils.launcher import process_place

PACKAGE = Path(__file__).parents[1]
SECONDS_OF_GRACE = 5.0
DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EPIPE,  # the reader of a pipe has gone
}


@contextlib.contextmanager
def exit_with_one_line() -> Iterator[None]:
    """Exit with one line on stderr if the block raises an error that the user can fix."""
    try:
        yield
    except UserError as error:
        code = getattr(error, "code", 2)
        if isinstance(error, SharedError) and not is_main():
            sys.exit(code)
        fail(str(error), code)
    except OSError as error:
        _fail_for_system_error(error)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def _fail_for_system_error(error: OSError) -> NoReturn:
    """Exit with one line on a file that the user named, or on a full or failing disk.

    An error about no file (a closed descriptor, a call inside torch) or about a file of this
    package is a bug and keeps its traceback.
    """
    # filename2 is the target of a file that takes its place
    name = error.filename2 or error.filename
    if isinstance(name, str) and not Path(name).is_relative_to(PACKAGE):
        fail(f"{name}: {error.strerror}", 2)
    if error.errno in DISK_ERRORS:
        fail(str(error.strerror), 2)
    raise error


def fail(message: str, code: int) -> NoReturn:
    """Print one line on stderr and exit.

    Under torchrun, processes other than the first wait first: if the first fails too, torchrun ends
    them before they repeat its message. torchrun's own 30 lines cannot be turned off from here.
    """
    if code == 2 and process_place().local_rank != 0:
        time.sleep(SECONDS_OF_GRACE)
    print_error(message)
    sys.exit(code)
