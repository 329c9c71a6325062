"""Recalls and precisions: tables worked out by hand and slow twins in plain Python.

Features of the twins are small whole numbers, so that scores are exact and ties are many.
Letters: Q queries, C candidates, K numbers of places, I images, T texts, D width, L labels.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from eve_vl.metrics import intervals, retrieval
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.metrics.matches import Relevance
from eve_vl.metrics.ranks import NO_MATCH, Ranks, best_ranks
from helpers.measured import ends, measured
from helpers.slow_ranking import (
    RECALLS,
    certain_ranks,
    hits_of,
    slow_hit,
    slow_scores,
    whole_numbers,
)


def test_recalls_are_those_worked_out_by_hand():
    ranks_I = certain_ranks(0, 4, 7, 20, NO_MATCH)
    ranks_T = certain_ranks(0, 0, 99, 9, 5, NO_MATCH, NO_MATCH)
    total = 1.5 + 1.6
    assert retrieval.summary(ranks_I, ranks_T) == pytest.approx(
        {
            "tr1": 1 / 4,
            "tr5": 2 / 4,
            "tr10": 3 / 4,
            "ir1": 2 / 5,
            "ir5": 2 / 5,
            "ir10": 4 / 5,
            "r_mean": total / 6,
            "rsum": 100 * total,
            "num_queries_without_match": 3,
        }
    )
    perfect = retrieval.summary(certain_ranks(0), certain_ranks(0))
    assert (perfect["rsum"], perfect["r_mean"]) == (600, 1)
    with pytest.raises(ValueError, match="no query has a match"):
        retrieval.summary(certain_ranks(0), certain_ranks(NO_MATCH))


def recall_by_itm_eval(score_QC: np.ndarray, matches_of_query: list[list[int]]) -> dict[int, float]:
    """Return recalls as ALBEF's itm_eval defines them, by sorting each row of scores."""
    ranks = []
    for scores, matches in zip(score_QC, matches_of_query, strict=True):
        order = list(np.argsort(-scores))
        ranks.append(min(order.index(match) for match in matches))
    return {k: sum(rank < k for rank in ranks) / len(ranks) for k in RECALLS}


def test_recalls_are_those_of_itm_eval_with_five_or_six_captions_per_image():
    rng = np.random.default_rng(0)
    texts_of_image: list[list[int]] = []
    image_of_text: list[int] = []
    for image in range(60):
        num_texts = 5 + image % 2
        texts_of_image.append(list(range(len(image_of_text), len(image_of_text) + num_texts)))
        image_of_text += [image] * num_texts
    image_ID = rng.normal(size=(60, 16))
    text_TD = image_ID[image_of_text] + 2 * rng.normal(size=(len(image_of_text), 16))
    tr = recall_by_itm_eval(image_ID @ text_TD.T, texts_of_image)
    ir = recall_by_itm_eval(text_TD @ image_ID.T, [[image] for image in image_of_text])

    relevance = Relevance.from_pairs(image_of_text, range(len(image_of_text)), 60, len(text_TD))
    images = torch.from_numpy(image_ID)
    texts = torch.from_numpy(text_TD)
    numbers = retrieval.summary(
        best_ranks(images, texts, relevance.texts_of_image),
        best_ranks(texts, images, relevance.images_of_text),
    )
    for k in RECALLS:
        assert (numbers[f"tr{k}"], numbers[f"ir{k}"]) == pytest.approx((tr[k], ir[k]))
    assert 0 < tr[1] < tr[10] < 1
    assert numbers["r_mean"] == pytest.approx(sum([*tr.values(), *ir.values()]) / 6)


# Intervals


def counted_hits(ranks: Ranks) -> np.ndarray:
    """Return the hits of the queries that have a match."""
    return np.array([hits for hits in hits_of(ranks) if hits is not None])


def test_intervals_of_recalls_group_the_texts_of_an_image():
    """Three images with two texts each; one text has no match, two candidates tie for another."""
    ranks_I = certain_ranks(0, 2, 30)
    ranks_T = Ranks(
        better_Q=torch.tensor([0, 3, 0, 7, NO_MATCH, 12]),
        tied_Q=torch.tensor([1, 1, 2, 1, 1, 1]),
        true_Q=torch.ones(6, dtype=torch.int64),
    )
    numbers = retrieval.summary(ranks_I, ranks_T, torch.tensor([0, 0, 1, 1, 2, 2]))
    hits_T = counted_hits(ranks_T)
    assert hits_T[2].tolist() == [0.5, 1, 1]
    directions = (
        ("tr", counted_hits(ranks_I), [0, 1, 2]),
        ("ir", hits_T, [0, 0, 1, 1, 2]),
    )
    for name, hits, images in directions:
        for place, k in enumerate(RECALLS):
            number = measured(numbers[f"{name}{k}"])
            expected = measured(intervals.mean(hits[:, place], images, is_share=True))
            assert number == expected
            assert number.certainty() == expected.certainty()


def recalls_of_images(rank_I: np.ndarray, rank_I5: np.ndarray) -> np.ndarray:
    """Return the mean of the six recalls of each image and its five captions."""
    hits_I = np.zeros(len(rank_I))
    for k in RECALLS:
        hits_I += (rank_I < k) + (rank_I5 < k).mean(1)
    return hits_I / 6


def test_intervals_of_the_mean_of_recalls_are_those_of_images_with_their_captions():
    rng = np.random.default_rng(0)
    is_easy_I = rng.random(60) < 0.5
    rank_I = np.where(is_easy_I, 0, rng.integers(0, 20, size=60))
    rank_I5 = np.where(is_easy_I[:, None], 0, rng.integers(0, 20, size=(60, 5)))
    itc_rank_I = rank_I + rng.integers(0, 4, size=60)
    itc_rank_I5 = rank_I5 + rng.integers(0, 4, size=(60, 5))
    image_T = torch.arange(60).repeat_interleave(5)
    ranks = certain_ranks(*rank_I.tolist()), certain_ranks(*rank_I5.flatten().tolist())
    itc_only = certain_ranks(*itc_rank_I.tolist()), certain_ranks(*itc_rank_I5.flatten().tolist())
    numbers = retrieval.summary(*ranks, image_T, itc_only)

    r_mean = measured(numbers["r_mean"])
    recall_I = recalls_of_images(rank_I, rank_I5)
    assert r_mean == pytest.approx(recall_I.mean())
    assert (r_mean.n, r_mean.groups, r_mean.method) == (360, 60, "wilson")
    expected = intervals.linear(r_mean, (recall_I - recall_I.mean()) / 60, n=360)
    assert ends(r_mean) == pytest.approx(ends(expected))
    assert ends(numbers["rsum"]) == pytest.approx((600 * r_mean.low, 600 * r_mean.high))

    gain_I = recall_I - recalls_of_images(itc_rank_I, itc_rank_I5)
    difference = intervals.difference(gain_I / 60, is_share=True)
    assert r_mean.versus["r_mean_itc_only"] == pytest.approx([*ends(difference)])
    assert "r_mean_itc_only" not in numbers
    assert not measured(retrieval.summary(*ranks, image_T)["r_mean"]).versus


# Precisions


def slow_precision(scores: list[int], is_true: list[bool], k: int) -> float:
    """The mean over all orders of ties: the worth of each, times the places left for them."""
    num_true = 0.0
    places_left = k
    for score in sorted(set(scores), reverse=True):
        ties = []
        for right, candidate_score in zip(is_true, scores, strict=True):
            if candidate_score == score:
                ties.append(right)
        num_places = min(places_left, len(ties))
        num_true += num_places * sum(ties) / len(ties)
        places_left -= num_places
    return num_true / k


def random_labels(generator: random.Random, num_rows: int) -> Tensor:
    """Return up to two of four labels of each row."""
    label_RL = torch.zeros(num_rows, 4, dtype=torch.bool)
    for row_L in label_RL:
        for _ in range(generator.randrange(3)):
            row_L[generator.randrange(4)] = True
    return label_RL


@pytest.mark.parametrize("num_candidates", [3, 40])
def test_precisions_equal_a_slow_loop(num_candidates):
    generator = random.Random(num_candidates)
    query_QD = whole_numbers(generator, 30, 2)
    candidate_CD = whole_numbers(generator, num_candidates, 2)
    label_QL = random_labels(generator, 30)
    label_CL = random_labels(generator, num_candidates)
    precision_QK, chance_Q = retrieval.precisions(query_QD, candidate_CD, label_QL, label_CL)
    for query, scores in enumerate(slow_scores(query_QD, candidate_CD)):
        is_true = (label_QL[query] & label_CL).any(1).tolist()
        assert chance_Q[query] == pytest.approx(sum(is_true) / num_candidates)
        for column, num_places in enumerate((1, 2, 5, 10)):
            expected = slow_precision(scores, is_true, min(num_places, num_candidates))
            assert precision_QK[query, column] == pytest.approx(expected)


# Folds


def slow_recalls(scores: Sequence[Sequence[int]], is_match: Sequence[Sequence[bool]]):
    """Return the recalls at 1, 5 and 10 of the queries with a match, and how many have none."""
    hits = []
    for row_scores, row_is_match in zip(scores, is_match, strict=True):
        matches = [place for place, right in enumerate(row_is_match) if right]
        if matches:
            hits.append([slow_hit(row_scores, matches, k) for k in RECALLS])
    recalls = np.mean(hits, axis=0).tolist()
    return recalls, len(scores) - len(hits)


def transposed(rows: Sequence[Sequence]) -> list[list]:
    return [list(column) for column in zip(*rows, strict=True)]


def test_folds_equal_five_small_evaluations():
    generator = random.Random(4)
    size = 6
    num_images = 33
    num_texts = 80
    pairs = [(start, start) for start in range(0, num_images, size)]
    for text in range(num_texts):
        for _ in range(generator.choice([0, 1, 1, 2])):
            pairs.append((generator.randrange(num_images), text))
    pairs += pairs[:5]  # some twice
    image_ID = whole_numbers(generator, num_images, 3)
    text_TD = whole_numbers(generator, num_texts, 3)

    folds = []
    for start in range(0, 5 * size, size):
        images = range(start, start + size)
        texts = sorted({text for image, text in pairs if image in images})
        is_pair = [[(image, text) in pairs for text in texts] for image in images]
        scores = slow_scores(image_ID[list(images)], text_TD[texts])
        tr, num_images_without = slow_recalls(scores, is_pair)
        ir, num_texts_without = slow_recalls(transposed(scores), transposed(is_pair))
        folds.append([*tr, *ir, num_images_without + num_texts_without])
    expected = np.mean(folds, axis=0)
    assert expected[-1] > 0

    def evaluate(images: Tensor, texts: Tensor, fold: Relevance) -> dict[str, float]:
        return retrieval.summary(
            best_ranks(image_ID[images], text_TD[texts], fold.texts_of_image),
            best_ranks(text_TD[texts], image_ID[images], fold.images_of_text),
        )

    image_of_pairs, text_of_pairs = zip(*pairs, strict=True)
    relevance = Relevance.from_pairs(image_of_pairs, text_of_pairs, num_images, num_texts)
    numbers = retrieval.folds_1k(relevance, evaluate, fold_size=size)
    names = ("tr1", "tr5", "tr10", "ir1", "ir5", "ir10", "num_queries_without_match")
    assert [numbers[name] for name in names] == pytest.approx(expected.tolist())


def test_the_ends_of_a_mean_of_folds_add_up_as_errors_do():
    folds = [
        MeasuredValue(1, n=3, low=0.7, high=1.4, method="t", groups=2),
        MeasuredValue(2, n=5, low=1.7, high=2.4, method="t", groups=2),
    ]
    number = measured(retrieval.mean_of_folds(folds))
    assert (number, number.n, number.groups, number.method) == (1.5, 8, 4, "t")
    below = math.sqrt(2 * 0.3**2) / 2
    above = math.sqrt(2 * 0.4**2) / 2
    assert ends(number) == pytest.approx((1.5 - below, 1.5 + above))
    assert retrieval.mean_of_folds([1.0, 2.0, 6.0]) == 3.0
    assert not isinstance(retrieval.mean_of_folds([1.0, folds[0]]), MeasuredValue)
