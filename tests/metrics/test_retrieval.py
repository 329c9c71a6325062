"""Recalls both ways: tables worked out by hand, slow twins in plain Python, and the size of COCO 5K.

Features of the twins are small whole numbers, so that scores are exact and ties are many.
Letters: Q queries, C candidates, K ranked candidates, I images, T texts, D width.
"""

import math
import random
import resource
import sys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.metrics import intervals, retrieval
from eve_vl.metrics.matches import Matches, Relevance
from eve_vl.metrics.ranks import NO_MATCH, Ranks, best_ranks, reranked_ranks
from eve_vl.metrics.topk import QUERIES_AT_ONCE, rank_by_score, top_candidates


def matches_of(wanted: Sequence[Sequence[int]], num_candidates: int) -> Matches:
    """From the matching candidates of each query."""
    pairs = torch.tensor(
        [(query, candidate) for query, row in enumerate(wanted) for candidate in row]
    ).view(-1, 2)
    return Matches.from_pairs(pairs[:, 0], pairs[:, 1], len(wanted), num_candidates)


def slow_order(scores: Sequence[float]) -> list[int]:
    """Best first; of equals the lower index first."""
    return [index for _, index in sorted((-score, index) for index, score in enumerate(scores))]


def slow_hit(keys: Sequence[Any], wanted: Collection[int], k: int) -> float:
    """How likely one that is wanted is among the first k by their keys, the greatest first, if equals stand in random order:
    of all ways to choose those equals that still have a place, those with one that is wanted."""
    best = max(keys[candidate] for candidate in wanted)
    equals = {candidate for candidate, key in enumerate(keys) if key == best}
    places = min(max(k - sum(key > best for key in keys), 0), len(equals))
    return 1 - math.comb(len(equals - set(wanted)), places) / math.comb(len(equals), places)


def hits_of(ranks: Ranks) -> list[list[float] | None]:
    """At 1, 5 and 10 of each query, None of one that has no match."""
    hits = torch.stack([ranks.hits(k) for k in (1, 5, 10)], dim=1).tolist()
    return [
        hit if asked else None for hit, asked in zip(hits, ranks.has_match_Q.tolist(), strict=True)
    ]


def slow_hits(keys: Sequence[Sequence[Any]], wanted: Sequence[Collection[int]]) -> list[Any]:
    return [
        pytest.approx([slow_hit(row, each, k) for k in (1, 5, 10)]) if each else None
        for row, each in zip(keys, wanted, strict=True)
    ]


def certain(*places: int) -> Ranks:
    """Ranks without ties."""
    ones_Q = torch.ones(len(places), dtype=torch.int64)
    return Ranks(better_Q=torch.tensor(places), tied_Q=ones_Q, true_Q=ones_Q)


def slow_scores(query_QD: Tensor, candidate_CD: Tensor) -> list[list[int]]:
    """Inner products of whole numbers."""
    queries, candidates = query_QD.int().tolist(), candidate_CD.int().tolist()
    return [[sum(a * b for a, b in zip(q, c, strict=True)) for c in candidates] for q in queries]


def random_wanted(random_: random.Random, num_queries: int, num_candidates: int) -> list[list[int]]:
    """None, one, or several matches of each query, some given twice; the first has one for sure."""
    counts = [1] + [random_.choice([0, 1, 1, 2, 5]) for _ in range(num_queries - 1)]
    return [[random_.randrange(num_candidates) for _ in range(count)] for count in counts]


def whole(random_: random.Random, rows: int, width: int, top: int = 2) -> Tensor:
    """Whole numbers from -top to top, as float32."""
    return torch.tensor(
        [[random_.randint(-top, top) for _ in range(width)] for _ in range(rows)],
        dtype=torch.float32,
    )


# Worked out by hand


def test_relevance_from_pairs():
    relevance = Relevance.from_pairs([2, 0, 0, 2, 0], [1, 3, 0, 1, 3], num_images=3, num_texts=5)
    assert relevance.texts_of_image.start_Q1.tolist() == [0, 2, 2, 3]
    assert relevance.texts_of_image.candidate_M.tolist() == [0, 3, 1]
    assert relevance.images_of_text.start_Q1.tolist() == [0, 1, 2, 2, 3, 3]
    assert relevance.images_of_text.candidate_M.tolist() == [0, 2, 0]
    assert relevance.texts_of_image.has_any_Q.tolist() == [True, False, True]
    none = Relevance.from_pairs([], [], 2, 0)
    assert none.texts_of_image.start_Q1.tolist() == [0, 0, 0]
    assert none.images_of_text.start_Q1.tolist() == [0]


def test_ranking_puts_the_lower_index_first_among_equals():
    scores_QC = torch.tensor(
        [[1.0, 3, 2, 3, 1], [0, 0, 0, 0, 0], [-torch.inf, -torch.inf, 5, -torch.inf, torch.inf]]
    )
    assert rank_by_score(scores_QC, 2).tolist() == [[1, 3], [0, 1], [4, 2]]
    assert rank_by_score(scores_QC, 4).tolist() == [
        [1, 3, 2, 0],
        [0, 1, 2, 3],
        [4, 2, 0, 1],
    ]
    assert rank_by_score(scores_QC, 99).tolist() == [
        [1, 3, 2, 0, 4],
        [0, 1, 2, 3, 4],
        [4, 2, 0, 1, 3],
    ]


def test_ranks_and_recalls_by_hand():
    scores_QC = torch.tensor(
        [[1.0, 0, 2, 0, 3], [2, 3, 0, 1, 0], [0, 2, 1, 4, 3], [3, 2, 1, 0, 0], [3, 2, 1, 0, 0]]
    )
    matches = matches_of([[0, 2], [1], [0, 2], [], [2, 2]], 5)
    ranks_Q = best_ranks(torch.eye(5), scores_QC.T, matches)
    assert ranks_Q.better_Q.dtype == torch.int64
    assert ranks_Q.better_Q.tolist() == [1, 0, 3, NO_MATCH, 2]
    assert (summed := retrieval.summary(ranks_Q, ranks_Q))["tr1"] == 1 / 4 and summed["ir5"] == 1


def test_reranking_by_hand():
    topk_QK = torch.tensor([[4, 2, 0], [4, 2, 0], [4, 2, 0], [4, 2, 0]])
    scores_QK = torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.5, 0.5], [0.5, 0.7, 0.5], [0.0, 0.0, 0.0]])
    matches, before, first_QK = (
        matches_of([[0], [2, 0], [0], [1, 3]], 5),
        certain(2, 1, 2, 4),
        torch.tensor([[3.0, 2, 1]] * 4),
    )
    assert reranked_ranks(topk_QK, first_QK, scores_QK, matches, before).better_Q.tolist() == [
        0,
        1,
        2,
        4,
    ]


def test_a_constant_scorer_gets_chance():
    """By contrast, by contrast and matching, and by class; with one match each and with several."""
    ones_ID, ones_TD = torch.ones(6, 2), torch.ones(12, 2)
    for wanted in ([[image] for image in range(6)], [[0], [0, 1], [0, 1, 2], [3], [4], [0, 5, 9]]):
        matches = matches_of(wanted, 12)
        ranks = best_ranks(ones_ID, ones_TD, matches)
        for k in (1, 5, 10):
            chance = [1 - math.comb(12 - len(each), k) / math.comb(12, k) for each in wanted]
            assert ranks.hits(k).tolist() == pytest.approx(chance)
    top_QK, first_QK = top_candidates(ones_ID, ones_TD, 4)
    matches = matches_of([[image] for image in range(6)], 12)
    both = reranked_ranks(
        top_QK,
        first_QK,
        torch.zeros(6, 4),
        matches,
        best_ranks(ones_ID, ones_TD, matches),
    )
    assert both.hits(1).tolist() == [1 / 4] * 4 + [
        0,
        0,
    ]  # which candidates come first is not known, but that four do
    label_IL, label_TL = (
        torch.eye(3, dtype=torch.bool).repeat(2, 1),
        torch.eye(3, dtype=torch.bool).repeat(4, 1),
    )
    found_QK, chance_Q = retrieval.precisions(ones_ID, ones_TD, label_IL, label_TL)
    assert found_QK == pytest.approx(1 / 3) and chance_Q == pytest.approx(1 / 3)


@pytest.mark.parametrize("num_candidates", [3, 40])
def test_precisions_equal_a_slow_loop(num_candidates: int):
    """The mean over every order of those that tie is what each of them is worth times the places that are left for them."""
    random_ = random.Random(num_candidates)
    query_QD, candidate_CD = whole(random_, 30, 2), whole(random_, num_candidates, 2)
    labels_Q, labels_C = (
        [{random_.randrange(4) for _ in range(random_.randrange(3))} for _ in range(n)]
        for n in (30, num_candidates)
    )
    hot = [
        torch.tensor([[label in each for label in range(4)] for each in rows])
        for rows in (labels_Q, labels_C)
    ]
    found_QK, chance_Q = retrieval.precisions(query_QD, candidate_CD, *hot)
    for query, scores in enumerate(slow_scores(query_QD, candidate_CD)):
        is_true = [bool(labels_Q[query] & each) for each in labels_C]
        assert chance_Q[query] == pytest.approx(sum(is_true) / num_candidates)
        for place, k in enumerate(min(k, num_candidates) for k in (1, 2, 5, 10)):
            total, left = 0.0, k
            for score in sorted(set(scores), reverse=True):
                equals = [
                    is_true[candidate] for candidate, each in enumerate(scores) if each == score
                ]
                total += min(left, len(equals)) * sum(equals) / len(equals)
                left -= min(left, len(equals))
            assert found_QK[query, place] == pytest.approx(total / k)


def test_summary_by_hand():
    found = retrieval.summary(
        certain(0, 4, 7, 20, NO_MATCH), certain(0, 0, 99, 9, 5, NO_MATCH, NO_MATCH)
    )
    six = {"tr1": 1 / 4, "tr5": 2 / 4, "tr10": 3 / 4, "ir1": 2 / 5, "ir5": 2 / 5, "ir10": 4 / 5}
    total = 1.5 + 1.6
    assert found == pytest.approx(
        six | {"r_mean": total / 6, "rsum": 100 * total, "num_queries_without_match": 3}
    )
    perfect = retrieval.summary(certain(0), certain(0))
    assert perfect["rsum"] == 600
    assert perfect["r_mean"] == 1


def test_intervals_of_recalls_group_the_texts_of_an_image_and_compare_with_the_ranking_by_contrast_alone():
    """Three images with two texts each; one text has no match, and two candidates tie for another."""
    image_T = torch.tensor([0, 0, 1, 1, 2, 2])
    ranks_T = Ranks(
        better_Q=torch.tensor([0, 3, 0, 7, NO_MATCH, 12]),
        tied_Q=torch.tensor([1, 1, 2, 1, 1, 1]),
        true_Q=torch.ones(6).long(),
    )
    both, before = (
        (certain(0, 2, 30), ranks_T),
        (certain(1, 2, 30), certain(0, 11, 3, 7, NO_MATCH, 12)),
    )
    found = retrieval.summary(*both, image_T, before)
    hits = [
        [[slow for slow in row if slow is not None] for row in hits_of(ranks) if row is not None]
        for ranks in (*both, *before)
    ]  # pyright: ignore
    assert hits[1][2] == [0.5, 1, 1]
    groups = [0, 1, 2], [0, 0, 1, 1, 2]
    for way, rows, group in zip(("tr", "ir"), hits, groups, strict=False):
        for place, k in enumerate((1, 5, 10)):
            recall, expected = (
                found[f"{way}{k}"],
                intervals.mean([row[place] for row in rows], group, is_share=True),
            )
            assert recall == expected and recall.certainty() == expected.certainty()  # pyright: ignore
    sums = [[sum(row) / 6 / len(rows) for row in rows] for rows in hits]
    means = [[sum(rows) / len(rows)] * len(rows) for rows in sums]
    influence = [
        value - mean
        for rows, each in zip(sums[:2], means, strict=False)
        for value, mean in zip(rows, each, strict=True)
    ]
    gain = [
        value - old
        for rows, olds in zip(sums[:2], sums[2:], strict=True)
        for value, old in zip(rows, olds, strict=True)
    ]
    expected = intervals.linear(sum(map(sum, sums[:2])), np.array(influence), groups[0] + groups[1])
    intervals.with_difference(expected, "r_mean_itc_only", np.array(gain), groups[0] + groups[1])
    ends, wanted = (each.certainty() for each in (found["r_mean"], expected))  # pyright: ignore[reportAttributeAccessIssue]
    assert found["r_mean"] == pytest.approx(expected)
    assert ends.pop("versus")["r_mean_itc_only"] == pytest.approx(
        wanted.pop("versus")["r_mean_itc_only"]
    )
    assert ends == pytest.approx(wanted | {"method": ends["method"]}) and ends["method"] == "wilson"
    rsum = found["rsum"].certainty()  # pyright: ignore[reportAttributeAccessIssue]
    assert rsum == pytest.approx(ends | {"low": 600 * ends["low"], "high": 600 * ends["high"]})
    assert "r_mean_itc_only" not in found and not retrieval.summary(*both)["r_mean"].versus  # pyright: ignore


def test_texts_know_their_first_image():
    assert Relevance.from_pairs([2, 1, 0, 2], [0, 0, 3, 1], 3, 5).image_T.tolist() == [
        1,
        2,
        -1,
        0,
        -1,
    ]
    one = Relevance.from_pairs([0, 0], [0, 1], 1, 2)
    assert (one.image_T.tolist(), one.images_of_text.candidate_M.tolist()) == ([0, 0], [0, 0])
    matches = matches_of([[0], [1, 2], [], [2]], 3)
    assert (matches.num_queries, matches.num_candidates) == (4, 3)
    assert [each.tolist() for each in matches.rows(1, 4)] == [[0, 0, 2], [1, 2, 2]]


def test_nothing_to_recall_is_refused():
    with pytest.raises(ValueError, match="no query has a match"):
        retrieval.summary(certain(0), certain(NO_MATCH))


def test_scores_that_are_no_numbers_are_refused():
    bad_12 = torch.tensor([[0.0, torch.nan]])
    matches = matches_of([[0]], 2)
    calls = (
        lambda: reranked_ranks(torch.tensor([[0, 1]]), bad_12, bad_12, matches, certain(0)),
        lambda: top_candidates(bad_12, torch.ones(2, 2), 1),
        lambda: best_ranks(bad_12, torch.ones(2, 2), matches),
    )
    for call in calls:
        with pytest.raises(ValueError, match="NaN"):
            call()


# Slow twins


@pytest.mark.parametrize(
    ("num_queries", "num_candidates"), [(1, 1), (1, 40), (7, 3), (40, 90), (300, 25)]
)
def test_everything_equals_its_slow_twin(num_queries: int, num_candidates: int):
    random_ = random.Random(num_queries)
    query_QD, candidate_CD = whole(random_, num_queries, 3), whole(random_, num_candidates, 3)
    wanted = random_wanted(random_, num_queries, num_candidates)
    matches = matches_of(wanted, num_candidates)
    scores = slow_scores(query_QD, candidate_CD)
    orders = [slow_order(row) for row in scores]
    assert hits_of(best_ranks(query_QD, candidate_CD, matches)) == slow_hits(scores, wanted)
    for k in (1, 2, 10, 1000):
        topk_QK, first_QK = top_candidates(query_QD, candidate_CD, k)
        assert topk_QK.tolist() == [order[:k] for order in orders]
        assert first_QK.tolist() == [
            [row[each] for each in order[:k]] for row, order in zip(scores, orders, strict=True)
        ]
        assert (
            topk_QK.tolist() == rank_by_score(torch.tensor(scores, dtype=torch.float32), k).tolist()
        )
        second_QK = torch.tensor([[random_.randint(0, 3) / 4 for _ in row] for row in topk_QK])
        keys = [
            [(0, 0, score) for score in row] for row in scores
        ]  # those behind keep the order of the first score
        for query, (order, second) in enumerate(zip(orders, second_QK.tolist(), strict=True)):
            for candidate, score in zip(order[:k], second, strict=True):
                keys[query][candidate] = 1, score, scores[query][candidate]
        before = best_ranks(query_QD, candidate_CD, matches)
        assert hits_of(reranked_ranks(topk_QK, first_QK, second_QK, matches, before)) == slow_hits(
            keys, wanted
        )


def test_recalls_equal_counting():
    random_ = random.Random(3)
    ranks = [random_.choice([0, 1, 4, 5, 9, 10, 50, NO_MATCH]) for _ in range(500)]
    scored = [rank for rank in ranks if rank != NO_MATCH]
    wanted = {k: sum(rank in range(k) for rank in scored) / len(scored) for k in (1, 5, 10)}
    found = retrieval.summary(certain(*ranks), certain(*ranks))
    assert {k: found[f"{way}{k}"] for k in (1, 5, 10) for way in ("tr", "ir")} == pytest.approx(
        wanted
    )


def test_folds_equal_five_small_evaluations():
    random_ = random.Random(4)
    size, num_images, num_texts = 6, 33, 80
    pairs = [
        (random_.randrange(num_images), text)
        for text in range(num_texts)
        for _ in range(random_.choice([0, 1, 1, 2]))
    ]
    pairs += pairs[:5] + [(start, start) for start in range(0, num_images, size)]
    image_ID, text_TD = whole(random_, num_images, 3), whole(random_, num_texts, 3)
    folds = []
    for start in range(0, 5 * size, size):
        images = range(start, start + size)
        texts = sorted({text for image, text in pairs if image in images})
        texts_of = [
            [place for place, text in enumerate(texts) if (image, text) in pairs]
            for image in images
        ]
        images_of = [
            [place for place, image in enumerate(images) if (image, text) in pairs]
            for text in texts
        ]
        scores = slow_scores(image_ID[list(images)], text_TD[texts])
        columns = [list(column) for column in zip(*scores, strict=True)]
        fold: dict[str, float] = {
            "num_queries_without_match": sum(not each for each in (*texts_of, *images_of))
        }
        for way, keys, wanted in (("tr", scores, texts_of), ("ir", columns, images_of)):
            asked = [(row, each) for row, each in zip(keys, wanted, strict=True) if each]
            fold |= {
                f"{way}{k}": sum(slow_hit(row, each, k) for row, each in asked) / len(asked)
                for k in (1, 5, 10)
            }
        folds.append(fold)
    wanted = {name: sum(fold[name] for fold in folds) / 5 for name in folds[0]}
    assert wanted["num_queries_without_match"] > 0
    image_of_pairs, text_of_pairs = zip(*pairs, strict=True)
    relevance = Relevance.from_pairs(image_of_pairs, text_of_pairs, num_images, num_texts)

    def numbers(images, texts, fold):
        images_ID, texts_TD = image_ID[images], text_TD[texts]
        return retrieval.summary(
            best_ranks(images_ID, texts_TD, fold.texts_of_image),
            best_ranks(texts_TD, images_ID, fold.images_of_text),
        )

    found = retrieval.folds_1k(relevance, numbers, fold_size=size)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


# What must not change a number


def test_order_and_company_of_queries_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    query_QD = F.normalize(torch.randn(300, 96, generator=generator), dim=1)
    candidate_CD = F.normalize(torch.randn(111, 96, generator=generator), dim=1)
    candidate_CD[[5, 60, 110]] = candidate_CD[
        40
    ].clone()  # equal candidates must get equal scores wherever they stand
    matches = matches_of([[110] if query % 2 else [40] for query in range(300)], 111)
    topk_QK = top_candidates(query_QD, candidate_CD, 20)[0]
    ranks = best_ranks(query_QD, candidate_CD, matches)
    assert (ranks.tied_Q == 4).all() and (ranks.true_Q == 1).all()
    turn = torch.randperm(300, generator=generator)
    turned = matches_of([[110] if query % 2 else [40] for query in turn.tolist()], 111)
    assert torch.equal(top_candidates(query_QD[turn], candidate_CD, 20)[0], topk_QK[turn])
    assert torch.equal(
        best_ranks(query_QD[turn], candidate_CD, turned).better_Q, ranks.better_Q[turn]
    )
    for query in (0, 1, 255, 256, 299):
        alone_1D, only = (
            query_QD[query : query + 1],
            matches_of([[110] if query % 2 else [40]], 111),
        )
        assert torch.equal(top_candidates(alone_1D, candidate_CD, 20)[0][0], topk_QK[query])
        assert best_ranks(alone_1D, candidate_CD, only).better_Q.item() == ranks.better_Q[query]


def test_autocast_does_not_coarsen_scores():
    generator = torch.Generator().manual_seed(1)
    query_QD, candidate_CD = (
        torch.randn(50, 64, generator=generator),
        torch.randn(2000, 64, generator=generator),
    )
    matches = matches_of([[query] for query in range(50)], 2000)
    scores_QC = query_QD.double() @ candidate_CD.double().T
    with torch.autocast("cpu", torch.bfloat16):
        ranks = best_ranks(query_QD, candidate_CD, matches)
    assert torch.equal(ranks.better_Q, (scores_QC > scores_QC.diagonal()[:, None]).sum(1))


def test_features_may_carry_gradients():
    query_QD = torch.eye(3, requires_grad=True)
    assert best_ranks(query_QD, torch.eye(3), matches_of([[0], [1], [2]], 3)).better_Q.tolist() == [
        0,
        0,
        0,
    ]


# Size


def peak_megabytes() -> float:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def test_coco_5k_both_ways_in_little_memory():
    generator = torch.Generator().manual_seed(2)
    num_images, num_texts, width, noise = 5000, 25000, 32, 3
    image_ID = torch.randint(-4, 5, (num_images, width), generator=generator).float()
    image_of_text = torch.arange(num_texts) // 5
    text_TD = image_ID[image_of_text] + torch.randint(
        -noise, noise + 1, (num_texts, width), generator=generator
    )
    relevance = Relevance.from_pairs(image_of_text, torch.arange(num_texts), num_images, num_texts)
    before = peak_megabytes()
    for query_QD, candidate_CD, matches in (
        (image_ID, text_TD, relevance.texts_of_image),
        (text_TD, image_ID, relevance.images_of_text),
    ):
        ranks = best_ranks(query_QD, candidate_CD, matches)
        num_ranked = 5 * QUERIES_AT_ONCE
        topk_QK = top_candidates(query_QD[:num_ranked], candidate_CD, 128)[0]
        assert (
            0.02 < retrieval.summary(ranks, ranks)["tr1"] < 0.98
        )  # neither blind nor without effort
        for query in range(3, num_ranked, num_ranked // 10):
            scores = (candidate_CD.long() @ query_QD[query].long()).tolist()
            order = slow_order(scores)
            wanted = matches.candidate_M[
                matches.start_Q1[query] : matches.start_Q1[query + 1]
            ].tolist()
            best = max(scores[each] for each in wanted)
            assert ranks.better_Q[query] == sum(score > best for score in scores)
            assert topk_QK[query].tolist() == order[:128]
    assert (
        peak_megabytes() - before < 1000
    )  # all scores at once would be 500 MB, sorted indices 1 GB more
