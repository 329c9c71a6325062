"""Recalls and precisions: tables worked out by hand and slow twins in plain Python.

Features of the twins are small whole numbers, so that scores are exact and ties are many.
Letters: Q queries, C candidates, K numbers of places, I images, T texts, D width, L labels.
"""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from eve_vl.metrics import intervals, retrieval
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.metrics.matches import Relevance
from eve_vl.metrics.ranks import NO_MATCH, Ranks, best_ranks
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


def test_recalls_without_any_match_are_refused():
    with pytest.raises(ValueError, match="no query has a match"):
        retrieval.summary(certain_ranks(0), certain_ranks(NO_MATCH))


def certainty(number: float) -> dict:
    assert isinstance(number, MeasuredValue)
    return number.certainty()


def test_intervals_of_recalls_group_the_texts_of_an_image_and_compare_with_itc_only():
    """Three images with two texts each; one text has no match, two candidates tie for another."""
    image_T = torch.tensor([0, 0, 1, 1, 2, 2])
    ranks_I = certain_ranks(0, 2, 30)
    ranks_T = Ranks(
        better_Q=torch.tensor([0, 3, 0, 7, NO_MATCH, 12]),
        tied_Q=torch.tensor([1, 1, 2, 1, 1, 1]),
        true_Q=torch.ones(6, dtype=torch.int64),
    )
    itc_only = certain_ranks(1, 2, 30), certain_ranks(0, 11, 3, 7, NO_MATCH, 12)
    numbers = retrieval.summary(ranks_I, ranks_T, image_T, itc_only)
    counted = [
        np.array([row for row in hits_of(ranks) if row is not None])
        for ranks in (ranks_I, ranks_T, *itc_only)
    ]
    assert counted[1][2].tolist() == [0.5, 1, 1]

    groups = [0, 1, 2], [0, 0, 1, 1, 2]
    for name, hits, images in zip(("tr", "ir"), counted[:2], groups, strict=True):
        for place, k in enumerate(RECALLS):
            expected = intervals.mean(hits[:, place], images, is_share=True)
            assert numbers[f"{name}{k}"] == expected
            assert certainty(numbers[f"{name}{k}"]) == certainty(expected)

    parts = [hits.sum(1) / 6 / len(hits) for hits in counted]  # of each query in the mean of six
    influence = np.concatenate([part - part.mean() for part in parts[:2]])
    gain = np.concatenate([parts[0] - parts[2], parts[1] - parts[3]])
    all_groups = groups[0] + groups[1]
    expected = intervals.linear(parts[0].sum() + parts[1].sum(), influence, all_groups)
    intervals.with_difference(expected, "r_mean_itc_only", gain, all_groups)
    ends = certainty(numbers["r_mean"])
    expected_ends = certainty(expected)
    assert numbers["r_mean"] == pytest.approx(expected)
    assert ends.pop("versus")["r_mean_itc_only"] == pytest.approx(
        expected_ends.pop("versus")["r_mean_itc_only"]
    )
    assert ends == pytest.approx(expected_ends | {"method": "wilson"})
    scaled = {"low": 600 * ends["low"], "high": 600 * ends["high"]}
    assert certainty(numbers["rsum"]) == pytest.approx(ends | scaled)
    assert "r_mean_itc_only" not in numbers
    assert "versus" not in certainty(retrieval.summary(ranks_I, ranks_T, image_T)["r_mean"])


def test_precisions_of_a_constant_score_are_chance():
    label_IL = torch.eye(3, dtype=torch.bool).repeat(2, 1)
    label_TL = torch.eye(3, dtype=torch.bool).repeat(4, 1)
    precision_QK, chance_Q = retrieval.precisions(
        torch.ones(6, 2), torch.ones(12, 2), label_IL, label_TL
    )
    assert precision_QK == pytest.approx(1 / 3)
    assert chance_Q == pytest.approx(1 / 3)


def slow_precision(scores: list[int], is_true: list[bool], k: int) -> float:
    """The mean over all orders of ties: the worth of each, times the places left for them."""
    num_true = 0.0
    places_left = k
    for score in sorted(set(scores), reverse=True):
        ties = [
            right for right, candidate in zip(is_true, scores, strict=True) if candidate == score
        ]
        num_places = min(places_left, len(ties))
        num_true += num_places * sum(ties) / len(ties)
        places_left -= num_places
    return num_true / k


@pytest.mark.parametrize("num_candidates", [3, 40])
def test_precisions_equal_a_slow_loop(num_candidates):
    generator = random.Random(num_candidates)
    query_QD = whole_numbers(generator, 30, 2)
    candidate_CD = whole_numbers(generator, num_candidates, 2)

    def random_labels(num_rows: int) -> Tensor:
        labels = torch.zeros(num_rows, 4, dtype=torch.bool)
        for row in labels:
            for _ in range(generator.randrange(3)):
                row[generator.randrange(4)] = True
        return labels

    label_QL = random_labels(30)
    label_CL = random_labels(num_candidates)
    precision_QK, chance_Q = retrieval.precisions(query_QD, candidate_CD, label_QL, label_CL)
    for query, scores in enumerate(slow_scores(query_QD, candidate_CD)):
        is_true = (label_QL[query] & label_CL).any(1).tolist()
        assert chance_Q[query] == pytest.approx(sum(is_true) / num_candidates)
        for column, num_places in enumerate((1, 2, 5, 10)):
            expected = slow_precision(scores, is_true, min(num_places, num_candidates))
            assert precision_QK[query, column] == pytest.approx(expected)


def slow_recalls(scores: list[list[int]], matches: list[list[int]]) -> list[float]:
    """Return the recalls at 1, 5 and 10 of the queries with a match."""
    recalls = []
    for k in RECALLS:
        hits = [
            slow_hit(row, wanted, k) for row, wanted in zip(scores, matches, strict=True) if wanted
        ]
        recalls.append(sum(hits) / len(hits))
    return recalls


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
        texts_of = [[place for place, right in enumerate(row) if right] for row in is_pair]
        images_of = [
            [place for place, right in enumerate(column) if right]
            for column in zip(*is_pair, strict=True)
        ]
        scores = slow_scores(image_ID[list(images)], text_TD[texts])
        columns = [list(column) for column in zip(*scores, strict=True)]
        num_without_match = texts_of.count([]) + images_of.count([])
        folds.append(
            [*slow_recalls(scores, texts_of), *slow_recalls(columns, images_of), num_without_match]
        )
    means = [sum(values) / 5 for values in zip(*folds, strict=True)]
    assert means[-1] > 0

    def evaluate(images: Tensor, texts: Tensor, fold: Relevance) -> dict[str, float]:
        return retrieval.summary(
            best_ranks(image_ID[images], text_TD[texts], fold.texts_of_image),
            best_ranks(text_TD[texts], image_ID[images], fold.images_of_text),
        )

    image_of_pairs, text_of_pairs = zip(*pairs, strict=True)
    relevance = Relevance.from_pairs(image_of_pairs, text_of_pairs, num_images, num_texts)
    numbers = retrieval.folds_1k(relevance, evaluate, fold_size=size)
    names = ("tr1", "tr5", "tr10", "ir1", "ir5", "ir10", "num_queries_without_match")
    assert [numbers[name] for name in names] == pytest.approx(means)
