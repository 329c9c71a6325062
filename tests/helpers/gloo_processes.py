"""Functions run in several gloo processes."""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from eve_vl.train import processes

CONTEXT = multiprocessing.get_context("fork")  # imports take seconds; no threads were started


def run_in_processes(world: int, work: Callable[[Path], object], folder: Path) -> list[str]:
    """Return the text of what each process returns, or its traceback."""
    store = folder / f"store_{work.__name__}_{world}"

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=world
            )
            text = str(work(folder))
            processes.barrier()
        except BaseException:
            text = traceback.format_exc()
        (folder / f"{work.__name__}_{rank}.txt").write_text(text)

    children = [CONTEXT.Process(target=run, args=(rank,)) for rank in range(world)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    return [(folder / f"{work.__name__}_{rank}.txt").read_text() for rank in range(world)]
