"""The best of many features: exact, block by block, in float32.

Letters: B rows of a block, C rows converted at a time, Q queries, K best, d width of features.
"""

from collections.abc import Iterable

import numpy as np
import torch

AT_ONCE = 1024  # rows whose float32 copy stays in the second cache


@torch.no_grad()
def topk_exact(
    blocks: Iterable[np.ndarray], query_Qd: np.ndarray, k: int, is_wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the slots, int64 (Q, K), with the largest dot products, best first, and these, float32 (Q, K); K is k, or how many
    there are.

    blocks: float16 (B, d), one after the other. is_wanted: bool, of each slot; any beyond are not wanted.
    """
    query_dQ = torch.from_numpy(np.ascontiguousarray(query_Qd.T, dtype=np.float32))
    score_KQ, slot_KQ = torch.empty((0, len(query_Qd))), torch.empty((0, len(query_Qd)), dtype=torch.int64)
    start, k = 0, min(k, int(is_wanted.sum()))
    for block in blocks:
        wanted_B = torch.from_numpy(is_wanted[start : start + len(block)])
        block_Bd = torch.from_numpy(block[: len(wanted_B)])
        if wanted_B.any():
            score_BQ = torch.cat([part_Cd.float() @ query_dQ for part_Cd in block_Bd.split(AT_ONCE)])
            score_BQ[~wanted_B] = -torch.inf
            found_KQ, row_KQ = score_BQ.topk(min(k, len(score_BQ)), dim=0)
            score_KQ, slot_KQ = torch.cat([score_KQ, found_KQ]), torch.cat([slot_KQ, row_KQ + start])
            score_KQ, place_KQ = score_KQ.topk(min(k, len(score_KQ)), dim=0)
            slot_KQ = slot_KQ.gather(0, place_KQ)
        start += len(block)
    return slot_KQ.T.numpy(), score_KQ.T.numpy()
