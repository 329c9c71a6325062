"""How worker processes of a torch DataLoader start."""

import multiprocessing
import sys


def start_method(num_workers: int) -> str | None:
    """Return how torch's DataLoader should start its processes; None: as usual.

    Processes of a fork server, the default on Linux from Python 3.14, would not notice that the one
    they load for was killed.
    """
    if num_workers == 0 or sys.platform != "linux":
        return None
    return "fork" if multiprocessing.get_start_method() == "forkserver" else None
