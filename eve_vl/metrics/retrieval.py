"""Image–text retrieval: recalls and precisions of rankings.

Letters: Q queries, C candidates, I images, T texts, M matching pairs, P numbers of places,
K ranked candidates of each query, D width, L labels, k places of a recall. Lower case: q queries of
one chunk.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from eve_vl.metrics import intervals
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.metrics.matches import Relevance
from eve_vl.metrics.ranks import Ranks
from eve_vl.metrics.topk import count_true, scores_in_chunks

RECALLS = (1, 5, 10)
PRECISIONS = (1, 2, 5, 10)


def summary(
    ranks_I: Ranks,
    ranks_T: Ranks,
    image_T: Tensor | None = None,
    itc_only: tuple[Ranks, Ranks] | None = None,
) -> dict[str, float]:
    """Return the metrics of image→text (ranks_I) and text→image ranks.

    tr1, tr5, tr10: image→text recalls in [0, 1]. ir1, ir5, ir10: text→image. r_mean: mean of the
    six. rsum: their sum in per cent, at most 600. num_queries_without_match: images and texts
    without a match; recalls leave them out. image_T: an image of each text; it groups texts and,
    for r_mean, the image itself. itc_only: ranks with ITC only; r_mean then has the interval of its
    difference from `r_mean_itc_only`. Raises ValueError if no image or no text has a match.
    """
    image_I = torch.arange(len(ranks_I.better_Q))
    if image_T is None:
        image_T = -1 - torch.arange(len(ranks_T.better_Q))
    itc_ranks_I, itc_ranks_T = itc_only or (ranks_I, ranks_T)

    numbers: dict[str, float] = {}
    influences = []
    gains = []
    groups = []
    directions = (
        ("tr", ranks_I, itc_ranks_I, image_I),
        ("ir", ranks_T, itc_ranks_T, image_T),
    )
    for name, ranks, itc_ranks, image_Q in directions:
        images = image_Q[ranks.has_match_Q].tolist()
        if not images:
            raise ValueError("no query has a match, so there is nothing to recall")
        hits_Qk = _hits(ranks, ranks.has_match_Q)
        itc_hits_Qk = _hits(itc_ranks, ranks.has_match_Q)
        for column, k in enumerate(RECALLS):
            recall = intervals.mean(hits_Qk[:, column], images, is_share=True)
            numbers[f"{name}{k}"] = recall
        influences.append((hits_Qk - hits_Qk.mean(0)).sum(1) / (6 * len(images)))
        gains.append((hits_Qk.sum(1) - itc_hits_Qk.sum(1)) / (6 * len(images)))
        groups += images

    total = sum(numbers.values())
    r_mean = intervals.linear(total / 6, np.concatenate(influences), groups)
    assert isinstance(r_mean, MeasuredValue)
    rsum = MeasuredValue(
        total * 100,
        n=r_mean.n,
        low=600 * r_mean.low,
        high=600 * r_mean.high,
        method=r_mean.method,
        groups=r_mean.groups,
    )
    if itc_only is not None:
        intervals.with_difference(r_mean, "r_mean_itc_only", np.concatenate(gains), groups)
    num_without_match = int((~ranks_I.has_match_Q).sum()) + int((~ranks_T.has_match_Q).sum())
    return numbers | {
        "r_mean": r_mean,
        "rsum": rsum,
        "num_queries_without_match": num_without_match,
    }


def _hits(ranks: Ranks, is_counted_Q: Tensor) -> np.ndarray:
    """Return the hits of some queries at each of RECALLS, float64 (Q, k)."""
    return torch.stack([ranks.hits(k)[is_counted_Q] for k in RECALLS], dim=1).numpy()


def precisions(
    query_QD: Tensor, candidate_CD: Tensor, query_QL: Tensor, candidate_CL: Tensor
) -> tuple[Tensor, Tensor]:
    """Return precision at each of PRECISIONS by shared labels, and its chance level.

    float64 (Q, P) and (Q,). query_QL, candidate_CL: bool, labels of each. Ties for the last places
    count by their mean. Chance is the share of all candidates with a label of the query.
    """
    C = len(candidate_CD)
    precision_chunks = []
    chance_chunks = []
    for start, scores_qC in scores_in_chunks(query_QD, candidate_CD):
        labels_qL = query_QL[start : start + len(scores_qC)].float()
        is_true_qC = (labels_qL @ candidate_CL.float().T > 0).double().to(scores_qC.device)
        best_qK = scores_qC.topk(min(max(PRECISIONS), C), dim=1).values

        precision_at_k = []
        for num_places in PRECISIONS:
            k = min(num_places, C)
            kth_q1 = best_qK[:, k - 1, None]
            is_above_qC = scores_qC > kth_q1
            is_tied_qC = scores_qC == kth_q1
            # of the ties, a random share fills the last places
            share_q = (k - count_true(is_above_qC)) / count_true(is_tied_qC).double()
            num_true_above_q = (is_true_qC * is_above_qC).sum(1)
            num_true_tied_q = (is_true_qC * is_tied_qC).sum(1)
            precision_at_k.append((num_true_above_q + share_q * num_true_tied_q) / k)
        precision_chunks.append(torch.stack(precision_at_k, dim=1).cpu())
        chance_chunks.append(is_true_qC.mean(1).cpu())
    return torch.cat(precision_chunks), torch.cat(chance_chunks)


def folds_1k(
    relevance: Relevance,
    numbers: Callable[[Tensor, Tensor, Relevance], dict[str, float]],
    fold_size: int = 1000,
) -> dict[str, float]:
    """Return the means of metrics over five folds (COCO 1K).

    They are the first 5 × fold_size images in their order; there are at least that many. Each fold
    ranks its images and their texts only. numbers: metrics of a fold, from its images and texts
    (int64, indices into all) and their relevance (renumbered from 0).
    """
    folds = []
    for start in range(0, 5 * fold_size, fold_size):
        image_M, text_M = relevance.texts_of_image.rows(start, start + fold_size)
        texts, text_in_fold_M = text_M.unique(return_inverse=True)
        fold = Relevance.from_pairs(image_M, text_in_fold_M, fold_size, len(texts))
        images = torch.arange(start, start + fold_size)
        folds.append(numbers(images, texts, fold))
    return {name: mean_of_folds([fold[name] for fold in folds]) for name in folds[0]}


def mean_of_folds(numbers: Sequence[float]) -> float:
    """Return the mean of a number of several folds, with an interval if all have one."""
    value = sum(numbers) / len(numbers)
    measured = [number for number in numbers if isinstance(number, MeasuredValue)]
    if len(measured) < len(numbers):
        return value
    below = math.hypot(*(number.low - number for number in measured)) / len(measured)
    above = math.hypot(*(number.high - number for number in measured)) / len(measured)
    return MeasuredValue(
        value,
        n=sum(number.n for number in measured),
        low=value - below,
        high=value + above,
        method=measured[0].method,
        groups=sum(number.groups for number in measured),
    )
