"""Exact nearest features of a query.

Letters: B rows of a block, C rows converted at a time, Q queries, K best, d width of features.
"""

from collections.abc import Iterable

import numpy as np
import torch

ROWS_AT_ONCE = 1024  # their float32 copy stays in the second-level cache


@torch.no_grad()
def topk_exact(
    blocks: Iterable[np.ndarray], query_Qd: np.ndarray, k: int, is_wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best slots, int64 (Q, K), and their dot products, float32 (Q, K).

    K is k, or the number of wanted slots if that is smaller. blocks: float16 (B, d) each, in the
    order of slots. is_wanted: bool, one per slot; slots beyond its end are not wanted. Products are
    float32, so memory stays at one block.
    """
    query_dQ = torch.from_numpy(np.ascontiguousarray(query_Qd.T, dtype=np.float32))
    score_KQ = torch.empty((0, len(query_Qd)))
    slot_KQ = torch.empty((0, len(query_Qd)), dtype=torch.int64)
    k = min(k, int(is_wanted.sum()))
    start = 0
    for block in blocks:
        is_wanted_B = torch.from_numpy(is_wanted[start : start + len(block)])
        block_Bd = torch.from_numpy(block[: len(is_wanted_B)])
        if is_wanted_B.any():
            parts = [part_Cd.float() @ query_dQ for part_Cd in block_Bd.split(ROWS_AT_ONCE)]
            score_BQ = torch.cat(parts)
            score_BQ[~is_wanted_B] = -torch.inf
            block_score_KQ, row_KQ = score_BQ.topk(min(k, len(score_BQ)), dim=0)
            score_KQ = torch.cat([score_KQ, block_score_KQ])
            slot_KQ = torch.cat([slot_KQ, row_KQ + start])
            score_KQ, place_KQ = score_KQ.topk(min(k, len(score_KQ)), dim=0)
            slot_KQ = slot_KQ.gather(0, place_KQ)
        start += len(block)
    return slot_KQ.T.numpy(), score_KQ.T.numpy()
