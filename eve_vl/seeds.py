"""Generators of random numbers and threads of this process."""

import os
import random

import numpy as np
import torch

from eve_vl.cpu import usable_cores


def seed_everything(seed: int) -> None:
    """Seed every generator of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_threads(threads: int) -> None:
    """Give this process so many threads; 0: those of OMP_NUM_THREADS, else its share of the cores."""
    cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or max(1, cores))
