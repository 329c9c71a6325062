"""Ranks of matches: tables worked out by hand, and slow twins in plain Python.

Features of the twins are small whole numbers, so that scores are exact and ties are many.
Letters: Q queries, C candidates, K ranked candidates, I images, T texts, D width.
"""

import math
import random
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch

from eve_vl.metrics.matches import Relevance
from eve_vl.metrics.ranks import NO_MATCH, best_ranks, reranked_ranks
from eve_vl.metrics.topk import top_candidates
from helpers.slow_ranking import (
    RECALLS,
    certain_ranks,
    hits_of,
    matches_of,
    slow_hit,
    slow_scores,
    whole_numbers,
)

# Matches


def test_relevance_is_built_from_pairs_in_any_order():
    relevance = Relevance.from_pairs(
        [2, 0, 0, 2, 0],
        [1, 3, 0, 1, 3],
        num_images=3,
        num_texts=5,
    )
    assert relevance.texts_of_image.start_Q1.tolist() == [0, 2, 2, 3]
    assert relevance.texts_of_image.candidate_M.tolist() == [0, 3, 1]
    assert relevance.images_of_text.start_Q1.tolist() == [0, 1, 2, 2, 3, 3]
    assert relevance.images_of_text.candidate_M.tolist() == [0, 2, 0]
    assert relevance.texts_of_image.has_any_Q.tolist() == [True, False, True]
    empty = Relevance.from_pairs([], [], 2, 0)
    assert empty.texts_of_image.start_Q1.tolist() == [0, 0, 0]
    assert empty.images_of_text.start_Q1.tolist() == [0]


def test_texts_have_their_first_image():
    relevance = Relevance.from_pairs(
        [2, 1, 0, 2],
        [0, 0, 3, 1],
        num_images=3,
        num_texts=5,
    )
    assert relevance.image_T.tolist() == [1, 2, -1, 0, -1]


def test_rows_of_matches_count_queries_from_the_start():
    matches = matches_of([[0], [1, 2], [], [2]], 3)
    assert (matches.num_queries, matches.num_candidates) == (4, 3)
    query_m, candidate_m = matches.rows(1, 4)
    assert query_m.tolist() == [0, 0, 2]
    assert candidate_m.tolist() == [1, 2, 2]


# Ranks by hand


def test_rank_of_the_best_match_is_the_one_worked_out_by_hand():
    scores_QC = torch.tensor(
        [
            [1.0, 0, 2, 0, 3],
            [2, 3, 0, 1, 0],
            [0, 2, 1, 4, 3],
            [3, 2, 1, 0, 0],
            [3, 2, 1, 0, 0],
        ]
    )
    matches = matches_of(
        [
            [0, 2],
            [1],
            [0, 2],
            [],
            [2, 2],
        ],
        5,
    )
    ranks = best_ranks(torch.eye(5), scores_QC.T, matches)
    assert ranks.better_Q.dtype == torch.int64
    assert ranks.better_Q.tolist() == [1, 0, 3, NO_MATCH, 2]


def test_reranking_is_the_one_worked_out_by_hand():
    topk_QK = torch.tensor([[4, 2, 0]] * 4)
    first_QK = torch.tensor([[3.0, 2, 1]] * 4)
    second_QK = torch.tensor(
        [
            [0.1, 0.2, 0.9],
            [0.5, 0.5, 0.5],
            [0.5, 0.7, 0.5],
            [0.0, 0.0, 0.0],
        ]
    )
    matches = matches_of(
        [
            [0],
            [2, 0],
            [0],
            [1, 3],
        ],
        5,
    )
    before = certain_ranks(2, 1, 2, 4)
    reranked = reranked_ranks(topk_QK, first_QK, second_QK, matches, before)
    assert reranked.better_Q.tolist() == [0, 1, 2, 4]
    with pytest.raises(ValueError, match="NaN"):
        reranked_ranks(topk_QK, first_QK, second_QK / 0, matches, before)


def test_a_constant_score_gets_chance():
    image_ID = torch.ones(6, 2)
    text_TD = torch.ones(12, 2)
    matches = matches_of(
        [
            [0],
            [0, 1],
            [0, 1, 2],
            [3],
            [4],
            [0, 5, 9],
        ],
        12,
    )
    ranks = best_ranks(image_ID, text_TD, matches)
    for k in RECALLS:
        chances = [1 - math.comb(12 - count, k) / math.comb(12, k) for count in (1, 2, 3, 1, 1, 3)]
        assert ranks.hits(k).tolist() == pytest.approx(chances)

    # which candidates the first score ranks highest is arbitrary, but their number is four
    topk_QK, first_QK = top_candidates(image_ID, text_TD, 4)
    reranked = reranked_ranks(topk_QK, first_QK, torch.zeros(6, 4), matches, ranks)
    assert reranked.hits(1).tolist() == [
        1 / 4,
        2 / 4,
        3 / 4,
        1 / 4,
        0,
        1 / 4,
    ]


# Slow twins


def slow_hits(keys: Sequence[Sequence[Any]], matches: Sequence[Collection[int]]) -> list[Any]:
    """Return the hits of each query at 1, 5 and 10; None for one without a match."""
    hits: list[Any] = []
    for query_keys, query_matches in zip(keys, matches, strict=True):
        if query_matches:
            query_hits = [slow_hit(query_keys, query_matches, k) for k in RECALLS]
            hits.append(pytest.approx(query_hits))
        else:
            hits.append(None)
    return hits


def random_matches(
    generator: random.Random, num_queries: int, num_candidates: int
) -> list[list[int]]:
    """No, one or several matches of each query, some given twice; the first query has one."""
    matches = [[generator.randrange(num_candidates)]]
    for _ in range(num_queries - 1):
        count = generator.choice([0, 1, 1, 2, 5])
        matches.append([generator.randrange(num_candidates) for _ in range(count)])
    return matches


@pytest.mark.parametrize(
    ("num_queries", "num_candidates"),
    [
        (1, 1),
        (1, 40),
        (7, 3),
        (40, 90),
        (300, 25),
    ],
)
def test_hits_equal_their_slow_twin_before_and_after_reranking(num_queries, num_candidates):
    generator = random.Random(num_queries)
    query_QD = whole_numbers(generator, num_queries, 3)
    candidate_CD = whole_numbers(generator, num_candidates, 3)
    wanted = random_matches(generator, num_queries, num_candidates)
    matches = matches_of(wanted, num_candidates)
    scores = slow_scores(query_QD, candidate_CD)
    before = best_ranks(query_QD, candidate_CD, matches)
    assert hits_of(before) == slow_hits(scores, wanted)

    for k in (1, 2, 10, 1000):
        topk_QK, first_QK = top_candidates(query_QD, candidate_CD, k)
        second_QK = torch.zeros_like(first_QK)
        keys = []
        for query, candidates in enumerate(topk_QK.tolist()):
            # those behind the first k keep the order of the first score
            query_keys: list[Any] = [(0, 0, score) for score in scores[query]]
            for place, candidate in enumerate(candidates):
                second = generator.randint(0, 3) / 4
                second_QK[query, place] = second
                query_keys[candidate] = (1, second, scores[query][candidate])
            keys.append(query_keys)
        reranked = reranked_ranks(topk_QK, first_QK, second_QK, matches, before)
        assert hits_of(reranked) == slow_hits(keys, wanted)
