"""The k best candidates of each query by inner product, exact, with ties by index.

Among equal scores the candidate with the lower index comes first, in any batch and any block.

Letters: Q queries, C candidates, B candidates of a block, W wanted candidates of a block,
K ranked candidates of each query, D width. Lower case: q queries of one chunk, o queries whose
last places tie.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

QUERIES_AT_ONCE = 256  # 26 MB of scores for 25,000 candidates
CANDIDATES_AT_ONCE = 1024  # their float32 copy stays in the second-level cache


def top_candidates(query_QD: Tensor, candidate_CD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the top-k candidates by inner product and their products.

    Best first, int64 and float32 (Q, min(k, C)). Holds at most QUERIES_AT_ONCE × C scores. Raises
    ValueError for NaN.
    """
    orders = []
    scores = []
    for _, scores_qC in scores_in_chunks(query_QD, candidate_CD):
        order_qK = rank_by_score(scores_qC, k)
        orders.append(order_qK)
        scores.append(scores_qC.gather(1, order_qK))
    return torch.cat(orders), torch.cat(scores)


@torch.no_grad()
def top_candidates_of_blocks(
    blocks: Iterable[np.ndarray], query_QD: np.ndarray, k: int, is_wanted_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the top-k candidates by inner product and their products, of blocks from a disk.

    Best first, int64 and float32 (Q, K). K is k, or the number of wanted candidates if that is
    smaller. blocks: float16 (B, D) each, in order. is_wanted_C: bool; candidates beyond its end are
    not wanted. Products are float32, so memory stays at one block.
    """
    query_DQ = torch.from_numpy(np.ascontiguousarray(query_QD.T, dtype=np.float32))
    k = min(k, int(is_wanted_C.sum()))
    index_QK = torch.empty((len(query_QD), 0), dtype=torch.int64)
    score_QK = torch.empty((len(query_QD), 0))
    start = 0
    for block in blocks:
        is_wanted_B = torch.from_numpy(is_wanted_C[start : start + len(block)])
        if is_wanted_B.any():
            block_BD = torch.from_numpy(block[: len(is_wanted_B)])
            parts = block_BD.split(CANDIDATES_AT_ONCE)
            score_BQ = torch.cat([part_BD.float() @ query_DQ for part_BD in parts])
            wanted_W = is_wanted_B.nonzero()[:, 0]
            score_QW = score_BQ.index_select(0, wanted_W).T
            order_QK = rank_by_score(score_QW, k)

            index_QK = torch.cat([index_QK, wanted_W[order_QK] + start], dim=1)
            score_QK = torch.cat([score_QK, score_QW.gather(1, order_QK)], dim=1)
            order_QK = rank_by_score(score_QK, k)
            index_QK = index_QK.gather(1, order_QK)
            score_QK = score_QK.gather(1, order_QK)
        start += len(block)
    return index_QK.numpy(), score_QK.numpy()


def rank_by_score(scores_QC: Tensor, k: int) -> Tensor:
    """Return the k best candidates of each query, best first: int64 (Q, min(k, C))."""
    C = scores_QC.shape[1]
    k = min(k, C)
    best = scores_QC.topk(min(k + 1, C), dim=1)
    chosen_QK = best.indices[:, :k].sort(dim=1).values
    if k < C:  # topk picks any of the ties for the last place
        is_open_Q = best.values[:, k - 1] == best.values[:, k]
        if is_open_Q.any():
            kth_o1 = best.values[is_open_Q, k - 1, None]
            chosen_QK[is_open_Q] = _first_of_ties(scores_QC[is_open_Q], kth_o1, k)
    score_QK = scores_QC.gather(1, chosen_QK)
    order_QK = score_QK.sort(dim=1, descending=True, stable=True).indices
    return chosen_QK.gather(1, order_QK)


def _first_of_ties(scores_oC: Tensor, kth_o1: Tensor, k: int) -> Tensor:
    """Return the k best candidates in the order of their indices, (o, K); kth_o1: k-th score."""
    is_above_oC = scores_oC > kth_o1
    is_tied_oC = scores_oC == kth_o1
    num_open_o1 = (k - count_true(is_above_oC))[:, None]
    is_first_oC = is_tied_oC & (is_tied_oC.cumsum(1, dtype=torch.int32) <= num_open_o1)
    return (is_above_oC | is_first_oC).nonzero()[:, 1].view(-1, k)


def scores_in_chunks(query_QD: Tensor, candidate_CD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each chunk of queries: first index and products with all candidates.

    Zero rows pad each chunk to one size: matrix libraries sum in another order for few rows, and
    the last digits would depend on the batch. Raises ValueError for NaN.
    """
    candidate_DC = candidate_CD.detach().float().T
    for start in range(0, len(query_QD), QUERIES_AT_ONCE):
        query_qD = query_QD[start : start + QUERIES_AT_ONCE].detach().float()
        num_queries = len(query_qD)
        with torch.autocast(query_qD.device.type, enabled=False):
            padded_qD = F.pad(query_qD, (0, 0, 0, QUERIES_AT_ONCE - num_queries))
            scores_qC = (padded_qD @ candidate_DC)[:num_queries]
        check_no_nan(scores_qC)
        yield start, scores_qC


def check_no_nan(scores_QC: Tensor) -> None:
    """Raise ValueError for scores with NaN."""
    if scores_QC.numel() and scores_QC.amax().isnan():  # NaN is greater than any
        raise ValueError("scores to rank by contain NaN")


def count_true(is_true_QC: Tensor) -> Tensor:
    """Return the number of true values per row, int32 (Q,), much faster than int64."""
    return is_true_QC.sum(1, dtype=torch.int32)
