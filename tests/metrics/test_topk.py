"""The k best candidates against a full sort, from memory and from blocks of a disk.

Features are small whole numbers, so that scores are exact and ties are many.
Letters: Q queries, C candidates, K ranked candidates, D width.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.metrics.topk import (
    rank_by_score,
    scores_in_chunks,
    top_candidates,
    top_candidates_of_blocks,
)


def full_sort(scores: Sequence[float]) -> list[int]:
    """Return indices, best first; among equals the lower index first."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


@pytest.mark.parametrize("k", [1, 2, 4, 5, 99])
def test_among_equal_scores_the_lower_index_comes_first(k):
    infinity = torch.inf
    scores_QC = torch.tensor(
        [
            [1.0, 3, 2, 3, 1],
            [0, 0, 0, 0, 0],
            [-infinity, -infinity, 5, -infinity, infinity],
        ]
    )
    orders = [
        [1, 3, 2, 0, 4],
        [0, 1, 2, 3, 4],
        [4, 2, 0, 1, 3],
    ]
    assert rank_by_score(scores_QC, k).tolist() == [order[:k] for order in orders]


@pytest.mark.parametrize("num_wanted", [0, 1, 30, 90])
@pytest.mark.parametrize("k", [1, 3, 10, 1000])
def test_memory_and_blocks_give_the_full_sort(k, num_wanted):
    rng = np.random.default_rng(k)
    query_QD = rng.integers(-2, 3, size=(300, 3)).astype(np.float32)
    candidate_CD = rng.integers(-2, 3, size=(90, 3)).astype(np.float16)
    wanted = np.sort(rng.permutation(90)[:num_wanted])
    is_wanted_C = np.zeros(90, dtype=bool)
    is_wanted_C[wanted] = True
    scores_QC = query_QD @ candidate_CD.T.astype(np.float32)

    blocks = np.split(candidate_CD, [7, 40, 41])
    index_QK, score_QK = top_candidates_of_blocks(blocks, query_QD, k, is_wanted_C)
    assert (index_QK.dtype, score_QK.dtype) == (np.int64, np.float32)
    expected = [wanted[full_sort(score_C[wanted])[:k]] for score_C in scores_QC]
    np.testing.assert_array_equal(index_QK, expected)
    np.testing.assert_array_equal(score_QK, np.take_along_axis(scores_QC, index_QK, 1))

    if num_wanted:
        wanted_CD = torch.from_numpy(candidate_CD[wanted])
        place_QK, memory_score_QK = top_candidates(torch.from_numpy(query_QD), wanted_CD, k)
        np.testing.assert_array_equal(wanted[place_QK.numpy()], index_QK)
        np.testing.assert_array_equal(memory_score_QK.numpy(), score_QK)


def test_candidates_beyond_the_known_ones_are_not_wanted():
    blocks = [
        np.eye(2, dtype=np.float16),
        np.full((2, 2), 9, dtype=np.float16),
    ]
    query_QD = np.ones((1, 2), dtype=np.float32)
    index_QK, _ = top_candidates_of_blocks(blocks, query_QD, 5, np.array([True, True, True]))
    assert index_QK.tolist() == [[2, 0, 1]]


def scores_of(query_QD: Tensor, candidate_CD: Tensor) -> Tensor:
    chunks = [scores_qC for _, scores_qC in scores_in_chunks(query_QD, candidate_CD)]
    assert max(map(len, chunks)) <= 256  # memory of 25,000 candidates stays at 26 MB
    return torch.cat(chunks)


def test_scores_depend_neither_on_order_nor_number_of_queries_nor_on_autocast():
    """Last digits decide on ties."""
    generator = torch.Generator().manual_seed(0)
    query_QD = F.normalize(torch.randn(300, 96, generator=generator), dim=1)
    candidate_CD = F.normalize(torch.randn(111, 96, generator=generator), dim=1)
    candidate_CD[[5, 60, 110]] = candidate_CD[40].clone()
    scores_QC = scores_of(query_QD, candidate_CD)
    torch.testing.assert_close(scores_QC, query_QD @ candidate_CD.T)
    for candidate in (5, 60, 110):  # equal wherever they stand
        assert torch.equal(scores_QC[:, candidate], scores_QC[:, 40])
    order_Q = torch.randperm(300, generator=generator)
    assert torch.equal(scores_of(query_QD[order_Q], candidate_CD), scores_QC[order_Q])
    for query in (0, 1, 255, 256, 299):
        single_1D = query_QD[query : query + 1]
        assert torch.equal(scores_of(single_1D, candidate_CD)[0], scores_QC[query])

    with torch.autocast("cpu", torch.bfloat16):
        again_QC = scores_of(query_QD.requires_grad_(), candidate_CD.requires_grad_())
    assert torch.equal(again_QC, scores_QC)
    assert not again_QC.requires_grad


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        top_candidates(
            torch.tensor([[0.0, torch.nan]]),
            torch.ones(2, 2),
            1,
        )
