"""States of all random generators as tensors, for checkpoints."""

import math
import random

import numpy as np
import torch
from torch import Tensor


def get_rng_state() -> dict[str, Tensor]:
    """Return the states of the generators of torch, CUDA, NumPy and Python as tensors."""
    _, keys, position, *_ = np.random.get_state()
    version, internal, gauss = random.getstate()
    assert version == 3
    numpy_state = [*keys.tolist(), position]  # pyright: ignore
    python_gauss = math.nan if gauss is None else gauss
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor(numpy_state, dtype=torch.int64),
        "python": torch.tensor(internal, dtype=torch.int64),
        "python_gauss": torch.tensor([python_gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor]) -> None:
    """Set the states that `get_rng_state` returned."""
    torch.set_rng_state(states["torch"])
    *keys, position = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, 0, 0.0))
    gauss = states["python_gauss"].item()
    internal = tuple(states["python"].tolist())
    random.setstate((3, internal, None if math.isnan(gauss) else gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
