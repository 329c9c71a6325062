"""Ranks of matches: tables worked out by hand, slow twins in plain Python, the size of COCO 5K.

Features of the twins are small whole numbers, so that scores are exact and ties are many.
Letters: Q queries, C candidates, K ranked candidates, I images, T texts, D width.
"""

import math
import random
import resource
import sys
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.metrics.matches import Matches, Relevance
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


def test_relevance_is_built_from_pairs_in_any_order():
    relevance = Relevance.from_pairs([2, 0, 0, 2, 0], [1, 3, 0, 1, 3], num_images=3, num_texts=5)
    assert relevance.texts_of_image.start_Q1.tolist() == [0, 2, 2, 3]
    assert relevance.texts_of_image.candidate_M.tolist() == [0, 3, 1]
    assert relevance.images_of_text.start_Q1.tolist() == [0, 1, 2, 2, 3, 3]
    assert relevance.images_of_text.candidate_M.tolist() == [0, 2, 0]
    assert relevance.texts_of_image.has_any_Q.tolist() == [True, False, True]
    empty = Relevance.from_pairs([], [], 2, 0)
    assert empty.texts_of_image.start_Q1.tolist() == [0, 0, 0]
    assert empty.images_of_text.start_Q1.tolist() == [0]


def test_texts_have_their_first_image():
    relevance = Relevance.from_pairs([2, 1, 0, 2], [0, 0, 3, 1], num_images=3, num_texts=5)
    assert relevance.image_T.tolist() == [1, 2, -1, 0, -1]
    single = Relevance.from_pairs([0, 0], [0, 1], num_images=1, num_texts=2)
    assert single.image_T.tolist() == [0, 0]
    assert single.images_of_text.candidate_M.tolist() == [0, 0]


def test_rows_of_matches_count_queries_from_the_start():
    matches = matches_of([[0], [1, 2], [], [2]], 3)
    assert (matches.num_queries, matches.num_candidates) == (4, 3)
    query_m, candidate_m = matches.rows(1, 4)
    assert query_m.tolist() == [0, 0, 2]
    assert candidate_m.tolist() == [1, 2, 2]


def test_rank_of_the_best_match_is_the_one_worked_out_by_hand():
    scores_QC = torch.tensor(
        [[1.0, 0, 2, 0, 3], [2, 3, 0, 1, 0], [0, 2, 1, 4, 3], [3, 2, 1, 0, 0], [3, 2, 1, 0, 0]]
    )
    matches = matches_of([[0, 2], [1], [0, 2], [], [2, 2]], 5)
    ranks = best_ranks(torch.eye(5), scores_QC.T, matches)
    assert ranks.better_Q.dtype == torch.int64
    assert ranks.better_Q.tolist() == [1, 0, 3, NO_MATCH, 2]


def test_reranking_is_the_one_worked_out_by_hand():
    topk_QK = torch.tensor([[4, 2, 0]] * 4)
    first_QK = torch.tensor([[3.0, 2, 1]] * 4)
    second_QK = torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.5, 0.5], [0.5, 0.7, 0.5], [0.0, 0.0, 0.0]])
    matches = matches_of([[0], [2, 0], [0], [1, 3]], 5)
    before = certain_ranks(2, 1, 2, 4)
    reranked = reranked_ranks(topk_QK, first_QK, second_QK, matches, before)
    assert reranked.better_Q.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize(
    "wanted", [[[image] for image in range(6)], [[0], [0, 1], [0, 1, 2], [3], [4], [0, 5, 9]]]
)
def test_a_constant_score_gets_chance(wanted):
    ranks = best_ranks(torch.ones(6, 2), torch.ones(12, 2), matches_of(wanted, 12))
    for k in RECALLS:
        chance = [1 - math.comb(12 - len(row), k) / math.comb(12, k) for row in wanted]
        assert ranks.hits(k).tolist() == pytest.approx(chance)


def test_a_constant_score_gets_chance_among_the_reranked():
    """Which candidates the first score ranks highest is arbitrary, but their number is four."""
    image_ID = torch.ones(6, 2)
    text_TD = torch.ones(12, 2)
    matches = matches_of([[image] for image in range(6)], 12)
    topk_QK, first_QK = top_candidates(image_ID, text_TD, 4)
    before = best_ranks(image_ID, text_TD, matches)
    reranked = reranked_ranks(topk_QK, first_QK, torch.zeros(6, 4), matches, before)
    assert reranked.hits(1).tolist() == [1 / 4] * 4 + [0, 0]


def random_matches(generator: random.Random, num_queries: int, num_candidates: int) -> list:
    """No, one or several matches of each query, some given twice; the first query has one."""
    counts = [1] + [generator.choice([0, 1, 1, 2, 5]) for _ in range(num_queries - 1)]
    return [[generator.randrange(num_candidates) for _ in range(count)] for count in counts]


@pytest.mark.parametrize(
    ("num_queries", "num_candidates"), [(1, 1), (1, 40), (7, 3), (40, 90), (300, 25)]
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
        second_QK = torch.tensor([[generator.randint(0, 3) / 4 for _ in row] for row in topk_QK])
        # those behind the first k keep the order of the first score
        keys: list[list[Any]] = [[(0, 0, score) for score in row] for row in scores]
        for query, (candidates, second) in enumerate(
            zip(topk_QK.tolist(), second_QK.tolist(), strict=True)
        ):
            for candidate, score in zip(candidates, second, strict=True):
                keys[query][candidate] = (1, score, scores[query][candidate])
        reranked = reranked_ranks(topk_QK, first_QK, second_QK, matches, before)
        assert hits_of(reranked) == slow_hits(keys, wanted)


def test_order_and_number_of_queries_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    query_QD = F.normalize(torch.randn(300, 96, generator=generator), dim=1)
    candidate_CD = F.normalize(torch.randn(111, 96, generator=generator), dim=1)
    candidate_CD[[5, 60, 110]] = candidate_CD[40].clone()  # equal wherever they stand

    def ranks(queries: Tensor) -> Any:
        wanted = [[110] if query % 2 else [40] for query in queries.tolist()]
        return best_ranks(query_QD[queries], candidate_CD, matches_of(wanted, 111))

    in_order = ranks(torch.arange(300))
    assert (in_order.tied_Q == 4).all()
    assert (in_order.true_Q == 1).all()
    order_Q = torch.randperm(300, generator=generator)
    assert torch.equal(ranks(order_Q).better_Q, in_order.better_Q[order_Q])
    for query in (0, 1, 255, 256, 299):
        assert ranks(torch.tensor([query])).better_Q.item() == in_order.better_Q[query]


def test_autocast_does_not_coarsen_scores():
    generator = torch.Generator().manual_seed(1)
    query_QD = torch.randn(50, 64, generator=generator)
    candidate_CD = torch.randn(2000, 64, generator=generator)
    matches = matches_of([[query] for query in range(50)], 2000)
    scores_QC = query_QD.double() @ candidate_CD.double().T
    with torch.autocast("cpu", torch.bfloat16):
        ranks = best_ranks(query_QD, candidate_CD, matches)
    assert torch.equal(ranks.better_Q, (scores_QC > scores_QC.diagonal()[:, None]).sum(1))


def test_features_may_carry_gradients():
    query_QD = torch.eye(3, requires_grad=True)
    ranks = best_ranks(query_QD, torch.eye(3), matches_of([[0], [1], [2]], 3))
    assert ranks.better_Q.tolist() == [0, 0, 0]


def test_scores_that_are_not_numbers_are_refused():
    nan_12 = torch.tensor([[0.0, torch.nan]])
    matches = matches_of([[0]], 2)
    with pytest.raises(ValueError, match="NaN"):
        best_ranks(nan_12, torch.ones(2, 2), matches)
    with pytest.raises(ValueError, match="NaN"):
        reranked_ranks(torch.tensor([[0, 1]]), nan_12, nan_12, matches, certain_ranks(0))


def peak_megabytes() -> float:
    """Return the most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def assert_equals_counting(query_QD: Tensor, candidate_CD: Tensor, matches: Matches) -> None:
    """Check some ranks and top candidates of many queries."""
    num_ranked = 1280  # several chunks
    ranks = best_ranks(query_QD, candidate_CD, matches)
    topk_QK, _ = top_candidates(query_QD[:num_ranked], candidate_CD, 128)
    assert 0.02 < ranks.hits(1).mean() < 0.98, "neither blind nor without effort"
    for query in range(3, num_ranked, num_ranked // 10):
        score_C = candidate_CD.long() @ query_QD[query].long()
        _, match_m = matches.rows(query, query + 1)
        assert ranks.better_Q[query] == (score_C > score_C[match_m].max()).sum()
        expected = score_C.sort(descending=True, stable=True).indices[:128]
        assert torch.equal(topk_QK[query], expected)


def test_coco_5k_is_ranked_in_both_directions_in_little_memory():
    generator = torch.Generator().manual_seed(2)
    num_images = 5000
    num_texts = 25000
    width = 32
    noise = 3
    image_ID = torch.randint(-4, 5, (num_images, width), generator=generator).float()
    image_T = torch.arange(num_texts) // 5
    noise_TD = torch.randint(-noise, noise + 1, (num_texts, width), generator=generator)
    text_TD = image_ID[image_T] + noise_TD
    relevance = Relevance.from_pairs(image_T, torch.arange(num_texts), num_images, num_texts)
    before = peak_megabytes()
    assert_equals_counting(image_ID, text_TD, relevance.texts_of_image)
    assert_equals_counting(text_TD, image_ID, relevance.images_of_text)
    # all scores at once would be 500 MB, sorted indices 1 GB more
    assert peak_megabytes() - before < 1000
