"""The k best candidates against a full sort, from memory and from blocks of a disk.

Features are small whole numbers, so that scores are exact and ties are many.
Letters: Q queries, C candidates, K ranked candidates, D width.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eve_vl.metrics.topk import rank_by_score, top_candidates, top_candidates_of_blocks


def full_sort(scores: Sequence[float]) -> list[int]:
    """Return indices, best first; among equals the lower index first."""
    return [index for _, index in sorted((-score, index) for index, score in enumerate(scores))]


@pytest.mark.parametrize("k", [1, 2, 4, 5, 99])
def test_among_equal_scores_the_lower_index_comes_first(k):
    infinity = torch.inf
    scores_QC = torch.tensor(
        [[1.0, 3, 2, 3, 1], [0, 0, 0, 0, 0], [-infinity, -infinity, 5, -infinity, infinity]]
    )
    orders = [[1, 3, 2, 0, 4], [0, 1, 2, 3, 4], [4, 2, 0, 1, 3]]
    assert rank_by_score(scores_QC, k).tolist() == [order[:k] for order in orders]


@pytest.mark.parametrize("num_wanted", [0, 1, 30, 90])
@pytest.mark.parametrize("k", [1, 3, 10, 1000])
def test_memory_and_blocks_give_the_full_sort(k, num_wanted):
    rng = np.random.default_rng(k)
    num_queries = 300
    num_candidates = 90
    query_QD = rng.integers(-2, 3, size=(num_queries, 3)).astype(np.float32)
    candidate_CD = rng.integers(-2, 3, size=(num_candidates, 3)).astype(np.float16)
    is_wanted_C = np.zeros(num_candidates, dtype=bool)
    is_wanted_C[rng.permutation(num_candidates)[:num_wanted]] = True
    scores_QC = query_QD @ candidate_CD.T.astype(np.float32)
    wanted = np.flatnonzero(is_wanted_C)

    blocks = np.split(candidate_CD, [7, 40, 41])
    index_QK, score_QK = top_candidates_of_blocks(blocks, query_QD, k, is_wanted_C)
    assert (index_QK.dtype, score_QK.dtype) == (np.int64, np.float32)
    expected = [wanted[full_sort(row[wanted])[:k]] for row in scores_QC]
    np.testing.assert_array_equal(index_QK, expected)
    np.testing.assert_array_equal(score_QK, np.take_along_axis(scores_QC, index_QK, 1))

    wanted_CD = torch.from_numpy(candidate_CD[wanted])
    if num_wanted:
        place_QK, memory_score_QK = top_candidates(torch.from_numpy(query_QD), wanted_CD, k)
        np.testing.assert_array_equal(wanted[place_QK.numpy()], index_QK)
        np.testing.assert_array_equal(memory_score_QK.numpy(), score_QK)


def test_candidates_beyond_the_known_ones_are_not_wanted():
    blocks = [np.eye(2, dtype=np.float16), np.full((2, 2), 9, dtype=np.float16)]
    query_QD = np.ones((1, 2), dtype=np.float32)
    index_QK, _ = top_candidates_of_blocks(blocks, query_QD, 5, np.array([True, True, True]))
    assert index_QK.tolist() == [[2, 0, 1]]


def test_order_and_number_of_queries_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    query_QD = F.normalize(torch.randn(300, 96, generator=generator), dim=1)
    candidate_CD = F.normalize(torch.randn(111, 96, generator=generator), dim=1)
    candidate_CD[[5, 60, 110]] = candidate_CD[40].clone()  # equal wherever they stand
    topk_QK, _ = top_candidates(query_QD, candidate_CD, 20)
    order_Q = torch.randperm(300, generator=generator)
    assert torch.equal(top_candidates(query_QD[order_Q], candidate_CD, 20)[0], topk_QK[order_Q])
    for query in (0, 1, 255, 256, 299):
        single_1K, _ = top_candidates(query_QD[query : query + 1], candidate_CD, 20)
        assert torch.equal(single_1K[0], topk_QK[query])


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        top_candidates(torch.tensor([[0.0, torch.nan]]), torch.ones(2, 2), 1)
