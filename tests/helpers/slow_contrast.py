"""Contrast, query after query."""

import math
from collections.abc import Sequence

from torch import Tensor


def softmax(scores: Sequence[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def slow_contrastive(
    image: Tensor,
    text: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    is_match: Tensor,
    temperature: float,
) -> float:
    """One query after the other: minus the mean log-probability of its matches."""
    total = 0.0
    for queries, candidates in ((image, all_texts), (text, all_images)):
        for query, matches in zip(queries, is_match.tolist(), strict=True):
            probabilities = softmax((candidates @ query / temperature).tolist())
            logs = [math.log(p) for p, right in zip(probabilities, matches, strict=True) if right]
            total -= sum(logs) / len(logs)
    return total / (2 * len(image))
