"""Which image–text pairs are positives of each other.

Letters: B pairs of a process, C pairs of all processes, K kinds of keys, L labels.
"""

import torch
from torch import Tensor

from eve_vl.train.processes import rank


def shares_key(keys_BK: Tensor, keys_CK: Tensor) -> Tensor:
    """Return a bool matrix (B, C): the two rows share a key."""
    return (keys_BK[:, None] == keys_CK).any(2)


def global_row_index(x: Tensor) -> Tensor:
    """Return this process's positions among the rows of all processes, int64 (B,)."""
    return rank() * len(x) + torch.arange(len(x), device=x.device)


def label_states(label_BL: Tensor, label_CL: Tensor) -> tuple[Tensor, Tensor]:
    """Return label vectors over all labels of the second rows.

    1 is present, -1 absent, 0 unknown; see `PairBatch.label_BL`. The first rows are among the
    second.
    """
    hashes, column_CL = label_CL.abs().unique(return_inverse=True)
    column_BL = torch.searchsorted(hashes, label_BL.abs())
    state_BL = torch.zeros(len(label_BL), len(hashes), device=hashes.device)
    state_BL.scatter_(1, column_BL, label_BL.sign().float())
    state_CL = torch.zeros(len(label_CL), len(hashes), device=hashes.device)
    state_CL.scatter_(1, column_CL, label_CL.sign().float())
    return state_BL, state_CL
