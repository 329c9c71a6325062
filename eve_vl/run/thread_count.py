"""The number of CPU threads of a run."""

import os
from typing import Any

import torch

from eve_vl.run.flops import forward_flops
from eve_vl.tasks.task import Task
from eve_vl.train import processes
from eve_vl.utils.console import print_line

MIN_PARALLEL_FLOPS = 1e9
"""FLOPs of the forward pass of a micro-batch, below which several threads wait longer than they
compute."""


def choose_threads(task: Task[Any], device: torch.device, num_resumed: object = 0) -> None:
    """Set one thread for a small model on a CPU, else leave as many as there are cores.

    A number that the user gave stays. num_resumed: the number of threads of a resumed run, which
    rounds alike.
    """
    train = task.config.train
    num_cores = torch.get_num_threads()
    is_given = train.threads or "OMP_NUM_THREADS" in os.environ
    if is_given or num_cores == 1 or device.type != "cpu" or processes.world_size() > 1:
        return
    if isinstance(num_resumed, int) and num_resumed:
        torch.set_num_threads(min(num_resumed, num_cores))
        return
    flops_per_row = sum(forward_flops(task.config, task.sizes).values())
    if flops_per_row * (train.batch_size // train.accumulation) < MIN_PARALLEL_FLOPS:
        torch.set_num_threads(1)
        print_line("threads: 1, because the model is small; --train.threads N takes N")
