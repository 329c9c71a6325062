"""The place of this process among those that torchrun started, by its environment variables.

This is the only file that reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE. Other launchers
and old shells set some of them too, so they count only under torchrun, which sets LOCAL_RANK and
WORLD_SIZE.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessPlace:
    """Numbers of a process among all processes and among those of its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def is_under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def process_place() -> ProcessPlace:
    """Return this process's place; without torchrun, that of a single process."""
    if not is_under_torchrun():
        return ProcessPlace()
    world_size = int(os.environ["WORLD_SIZE"])
    return ProcessPlace(
        rank=int(os.environ.get("RANK", 0)),
        world_size=world_size,
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
    )
