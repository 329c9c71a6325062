"""The rank of each query's best match, by inner product or after re-ranking.

Ranks start at 0. Metrics count ties as in random order.

Letters: Q queries, C candidates, K ranked candidates of each query, M matching pairs, D width.
Lower case: q queries of one chunk, m their matches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eve_vl.metrics.matches import Matches
from eve_vl.metrics.topk import check_no_nan, count_true, scores_in_chunks

NO_MATCH = -1  # rank of a query without any match; recalls leave it out


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Ranks of each query's best match, with ties; int64 (Q,), on the CPU."""

    better_Q: Tensor
    """Number of candidates with better scores; NO_MATCH for a query without any match."""
    tied_Q: Tensor
    """Number of candidates with the score of the best match, which counts too."""
    true_Q: Tensor
    """Number of matches among the tied candidates."""

    @property
    def has_match_Q(self) -> Tensor:
        """Bool (Q,), queries with a match."""
        return self.better_Q != NO_MATCH

    def hits(self, k: int) -> Tensor:
        """Return the probability of a match in the first k candidates, float64 (Q,).

        Ties stand in random order. Without ties it is 0 or 1, for a constant score exactly chance,
        so that the order of files does not matter.
        """
        missed_Q = torch.ones(len(self.better_Q), dtype=torch.float64)
        for place in range(k):  # of the ties, the first k - better count
            num_wrong_Q = (self.tied_Q - self.true_Q - place).clamp(min=0)
            num_ties_Q = (self.tied_Q - place).clamp(min=1)
            counts_Q = self.better_Q + place < k
            missed_Q *= torch.where(counts_Q, num_wrong_Q / num_ties_Q.double(), 1.0)
        return 1 - missed_Q


def best_ranks(query_QD: Tensor, candidate_CD: Tensor, matches: Matches) -> Ranks:
    """Return the exact rank of each query's best match by inner product.

    Holds at most QUERIES_AT_ONCE × C scores. Raises ValueError for NaN.
    """
    assert len(query_QD) == matches.num_queries
    assert len(candidate_CD) == matches.num_candidates
    better_Q = torch.empty(len(query_QD), dtype=torch.int64)
    tied_Q = torch.empty_like(better_Q)
    true_Q = torch.empty_like(better_Q)
    for start, scores_qC in scores_in_chunks(query_QD, candidate_CD):
        num_queries = len(scores_qC)
        stop = start + num_queries
        query_m, candidate_m = matches.rows(start, stop)
        query_m = query_m.to(query_QD.device)
        candidate_m = candidate_m.to(query_QD.device)

        score_m = scores_qC[query_m, candidate_m]
        lowest_q = score_m.new_full((num_queries,), -torch.inf)
        best_q = lowest_q.scatter_reduce(0, query_m, score_m, "amax")
        is_best_m = score_m == best_q[query_m]
        better_Q[start:stop] = count_true(scores_qC > best_q[:, None])
        tied_Q[start:stop] = count_true(scores_qC == best_q[:, None])
        true_Q[start:stop] = query_m[is_best_m].bincount(minlength=num_queries)
    return Ranks(better_Q=better_Q.where(matches.has_any_Q, NO_MATCH), tied_Q=tied_Q, true_Q=true_Q)


def reranked_ranks(
    topk_QK: Tensor, first_QK: Tensor, second_QK: Tensor, matches: Matches, before: Ranks
) -> Ranks:
    """Return the rank of each query's best match after re-ranking its top K.

    topk_QK: candidates by the first score, first_QK, best first. second_QK: the score to re-rank
    by; the first breaks its ties. before: ranks by the first score, which candidates behind the top
    K keep. (Officially these score -100, with equal recalls at K or below.) Candidates that tie
    with the last of the top K stand behind them. Raises ValueError for NaN.
    """
    check_no_nan(second_QK)
    first_QK = first_QK.cpu()
    query_M, candidate_M = matches.rows(0, matches.num_queries)
    pair_M = query_M * matches.num_candidates + candidate_M
    query_Q1 = torch.arange(len(topk_QK))[:, None]
    is_match_QK = torch.isin(query_Q1 * matches.num_candidates + topk_QK.cpu(), pair_M)

    best_second_Q1 = second_QK.where(is_match_QK, -torch.inf).amax(1, keepdim=True)
    has_best_second_QK = second_QK == best_second_Q1
    is_best_match_QK = is_match_QK & has_best_second_QK
    best_first_Q1 = first_QK.where(is_best_match_QK, -torch.inf).amax(1, keepdim=True)
    is_better_by_first_QK = has_best_second_QK & (first_QK > best_first_Q1)
    is_better_QK = (second_QK > best_second_Q1) | is_better_by_first_QK
    is_tied_QK = has_best_second_QK & (first_QK == best_first_Q1)

    # the best match of some queries lies behind the top K
    is_inside_Q = is_match_QK.any(1)
    K = topk_QK.shape[1]
    behind_Q = before.better_Q.clamp(min=K).where(before.has_match_Q, NO_MATCH)
    tied_behind_Q = before.tied_Q - (behind_Q - before.better_Q)
    return Ranks(
        better_Q=is_better_QK.sum(1).where(is_inside_Q, behind_Q),
        tied_Q=is_tied_QK.sum(1).where(is_inside_Q, tied_behind_Q),
        true_Q=(is_tied_QK & is_match_QK).sum(1).where(is_inside_Q, before.true_Q),
    )
