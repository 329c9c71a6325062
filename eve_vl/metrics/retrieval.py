"""Image–text retrieval: recalls from the rank of each query's best match.

Ranks start at 0. Among equal scores the candidate with the lower index comes first, in any batch. Metrics count ties as in
random order.

Letters: Q queries, C candidates, K ranked candidates of each query, M matching pairs, I images, T texts, P pairs, D width,
L labels. Lower case: q queries of one chunk, m their matches, o queries whose last places tie.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.metrics import intervals
from eve_vl.metrics.intervals import MeasuredValue

NO_MATCH = -1  # rank of a query without any match; recalls leave it out
RECALLS = (1, 5, 10)
PRECISIONS = (1, 2, 5, 10)
QUERIES_AT_ONCE = 256  # 26 MB of scores for 25,000 candidates


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """Matching candidates of each query as compressed rows, on the CPU."""

    start_Q1: Tensor
    """int64 (Q + 1,): query q has candidate_M[start_Q1[q] : start_Q1[q + 1]]."""
    candidate_M: Tensor
    """int64, ascending within a query, none twice."""
    num_candidates: int

    @classmethod
    def from_pairs(
        cls, query_P: Tensor, candidate_P: Tensor, num_queries: int, num_candidates: int
    ) -> "Matches":
        """Build it from int64 pairs in any order; duplicates are allowed."""
        pair_M, num = (query_P * num_candidates + candidate_P).unique(), max(num_candidates, 1)
        start_Q1 = F.pad((pair_M // num).bincount(minlength=num_queries).cumsum(0), (1, 0))
        return cls(start_Q1=start_Q1, candidate_M=pair_M % num, num_candidates=num_candidates)

    @property
    def num_queries(self) -> int:
        """Number of queries, with or without a match."""
        return len(self.start_Q1) - 1

    @property
    def has_any_Q(self) -> Tensor:
        """Bool (Q,), queries with a match."""
        return self.start_Q1.diff() > 0

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the matches of queries start to stop (exclusive).

        They are the query's index from start, and the candidate.
        """
        starts_q1 = self.start_Q1[start : stop + 1]
        query_m = torch.arange(stop - start).repeat_interleave(starts_q1.diff())
        return query_m, self.candidate_M[starts_q1[0] : starts_q1[-1]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Relevance:
    """Matching images and texts, in both directions."""

    texts_of_image: Matches
    images_of_text: Matches

    @property
    def image_T(self) -> Tensor:
        """First image of each text, int64 (T,); -1 without any."""
        text_M, image_M = self.images_of_text.rows(0, num := self.images_of_text.num_queries)
        return torch.full((num,), -1).scatter_reduce(0, text_M, image_M, "amin", include_self=False)

    @classmethod
    def from_pairs(
        cls,
        image_of_pairs: Tensor | Sequence[int],
        text_of_pairs: Tensor | Sequence[int],
        num_images: int,
        num_texts: int,
    ) -> "Relevance":
        """Build it from image and text of each pair, in any order; duplicates are allowed."""
        image_P, text_P = (
            torch.as_tensor(each, dtype=torch.int64).cpu()
            for each in (image_of_pairs, text_of_pairs)
        )
        return cls(
            texts_of_image=Matches.from_pairs(image_P, text_P, num_images, num_texts),
            images_of_text=Matches.from_pairs(text_P, image_P, num_texts, num_images),
        )


def _checked(scores_QC: Tensor) -> Tensor:
    """Return scores. Raises ValueError for NaN."""
    if scores_QC.numel() and scores_QC.amax().isnan():  # NaN is greater than any
        raise ValueError("scores to rank by contain NaN")
    return scores_QC


def _count(is_true_QC: Tensor) -> Tensor:
    """Return the number of true values per row, int32 (Q,), much faster than int64."""
    return is_true_QC.sum(1, dtype=torch.int32)


def rank_by_score(scores_QC: Tensor, k: int) -> Tensor:
    """Return the k best candidates of each query, best first: int64 (Q, min(k, C))."""
    k, num = min(k, scores_QC.shape[1]), scores_QC.shape[1]
    best = scores_QC.topk(min(k + 1, num), dim=1)
    chosen_QK = best.indices[:, :k].sort(dim=1).values
    if (
        k < num and (is_open_Q := best.values[:, k - 1] == best.values[:, k]).any()
    ):  # topk picks any of the ties
        scores_oC, kth_o1 = scores_QC[is_open_Q], best.values[is_open_Q, k - 1, None]
        is_above_oC, is_tied_oC = scores_oC > kth_o1, scores_oC == kth_o1
        is_first_oC = is_tied_oC.cumsum(1, dtype=torch.int32) <= (k - _count(is_above_oC))[:, None]
        chosen_QK[is_open_Q] = (
            (is_above_oC | (is_tied_oC & is_first_oC)).nonzero()[:, 1].view(-1, k)
        )
    order_QK = scores_QC.gather(1, chosen_QK).sort(dim=1, descending=True, stable=True).indices
    return chosen_QK.gather(1, order_QK)


def _scores(query_QD: Tensor, candidate_CD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each chunk of queries: first index and products with all candidates.

    Zero rows pad each chunk to one size: matrix libraries sum in another order for few rows, and the last digits would depend
    on the batch. Raises ValueError for NaN.
    """
    candidate_DC = candidate_CD.detach().float().T
    for start in range(0, len(query_QD), QUERIES_AT_ONCE):
        rows = query_QD[start : start + QUERIES_AT_ONCE].detach().float()
        with torch.autocast(rows.device.type, enabled=False):
            products = F.pad(rows, (0, 0, 0, QUERIES_AT_ONCE - len(rows))) @ candidate_DC
        yield start, _checked(products[: len(rows)])


def top_candidates(query_QD: Tensor, candidate_CD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the top-k candidates by inner product and their products.

    Best first, int64 and float32 (Q, min(k, C)). Holds at most QUERIES_AT_ONCE × C scores. Raises ValueError for NaN.
    """
    parts = []
    for _, scores_qC in _scores(query_QD, candidate_CD):
        order_qK = rank_by_score(scores_qC, k)
        parts.append((order_qK, scores_qC.gather(1, order_qK)))
    order_QK, score_QK = (torch.cat(each) for each in zip(*parts, strict=True))
    return order_QK, score_QK


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
    def is_asked_Q(self) -> Tensor:
        """Bool (Q,), queries with a match."""
        return self.better_Q != NO_MATCH

    def hits(self, k: int) -> Tensor:
        """Return the probability of a match in the first k candidates, float64 (Q,).

        Ties stand in random order. Without ties it is 0 or 1, for a constant score exactly chance, so that the order of files
        does not matter.
        """
        missed_Q = torch.ones(len(self.better_Q), dtype=torch.float64)
        for place in range(k):  # of the ties, the first k - better count
            wrong_Q, left_Q = (
                (self.tied_Q - self.true_Q - place).clamp(min=0),
                (self.tied_Q - place).clamp(min=1),
            )
            missed_Q *= torch.where(self.better_Q + place < k, wrong_Q / left_Q.double(), 1.0)
        return 1 - missed_Q


def best_ranks(query_QD: Tensor, candidate_CD: Tensor, matches: Matches) -> Ranks:
    """Return the exact rank of each query's best match by inner product.

    Holds at most QUERIES_AT_ONCE × C scores. Raises ValueError for NaN.
    """
    assert (len(query_QD), len(candidate_CD)) == (matches.num_queries, matches.num_candidates)
    better_Q, tied_Q, true_Q = (torch.empty(len(query_QD), dtype=torch.int64) for _ in range(3))
    for start, scores_qC in _scores(query_QD, candidate_CD):
        stop = start + len(scores_qC)
        query_m, candidate_m = (index.to(query_QD.device) for index in matches.rows(start, stop))
        score_m = scores_qC[query_m, candidate_m]
        best_q = score_m.new_full((stop - start,), -torch.inf).scatter_reduce(
            0, query_m, score_m, "amax"
        )
        better_Q[start:stop] = _count(scores_qC > best_q[:, None])
        tied_Q[start:stop] = _count(scores_qC == best_q[:, None])
        true_Q[start:stop] = query_m[score_m == best_q[query_m]].bincount(minlength=stop - start)
    return Ranks(better_Q=better_Q.where(matches.has_any_Q, NO_MATCH), tied_Q=tied_Q, true_Q=true_Q)


def reranked_ranks(
    topk_QK: Tensor, first_QK: Tensor, second_QK: Tensor, matches: Matches, before: Ranks
) -> Ranks:
    """Return the rank of each query's best match after re-ranking its top K.

    topk_QK: candidates by the first score, first_QK, best first. second_QK: the score to re-rank by; the first breaks its ties.
    before: ranks by the first score, which candidates behind the top K keep. (Officially these score -100, with equal recalls
    at K or below.) Candidates that tie with the last of the top K stand behind them. Raises ValueError for NaN.
    """
    first_QK, second_QK = first_QK.cpu(), _checked(second_QK)
    query_M, candidate_M = matches.rows(0, matches.num_queries)
    pair_QK = torch.arange(len(topk_QK))[:, None] * matches.num_candidates + topk_QK.cpu()
    is_match_QK = torch.isin(pair_QK, query_M * matches.num_candidates + candidate_M)
    best_Q1 = second_QK.where(is_match_QK, -torch.inf).amax(1, keepdim=True)
    is_best_QK = second_QK == best_Q1
    first_Q1 = first_QK.where(is_match_QK & is_best_QK, -torch.inf).amax(1, keepdim=True)
    is_better_QK = (second_QK > best_Q1) | (is_best_QK & (first_QK > first_Q1))
    is_tied_QK = is_best_QK & (first_QK == first_Q1)
    is_inside_Q = is_match_QK.any(1)
    behind_Q = before.better_Q.clamp(min=topk_QK.shape[1]).where(before.is_asked_Q, NO_MATCH)
    return Ranks(
        better_Q=is_better_QK.sum(1).where(is_inside_Q, behind_Q),
        tied_Q=is_tied_QK.sum(1).where(is_inside_Q, before.tied_Q - (behind_Q - before.better_Q)),
        true_Q=(is_tied_QK & is_match_QK).sum(1).where(is_inside_Q, before.true_Q),
    )


def precisions(
    query_QD: Tensor, candidate_CD: Tensor, query_QL: Tensor, candidate_CL: Tensor
) -> tuple[Tensor, Tensor]:
    """Return precision at each of PRECISIONS by shared labels, and its chance level.

    float64 (Q, P) and (Q,). query_QL, candidate_CL: bool, labels of each. Ties for the last places count by their mean. Chance
    is the share of all candidates with a label of the query.
    """
    found, chance = [], []
    for start, scores_qC in _scores(query_QD, candidate_CD):
        labels_qL = query_QL[start : start + len(scores_qC)].float()
        is_true_qC = (labels_qL @ candidate_CL.float().T > 0).double().to(scores_qC.device)
        best_qK = scores_qC.topk(min(max(PRECISIONS), len(candidate_CD)), dim=1).values
        at_k = []
        for k in (min(k, len(candidate_CD)) for k in PRECISIONS):
            is_above_qC, is_tied_qC = (
                scores_qC > best_qK[:, k - 1, None],
                scores_qC == best_qK[:, k - 1, None],
            )
            share_q = (k - _count(is_above_qC)) / _count(is_tied_qC).double()
            at_k.append(
                ((is_true_qC * is_above_qC).sum(1) + share_q * (is_true_qC * is_tied_qC).sum(1)) / k
            )
        found.append(torch.stack(at_k, dim=1).cpu())
        chance.append(is_true_qC.mean(1).cpu())
    return torch.cat(found), torch.cat(chance)


def summary(
    ranks_I: Ranks,
    ranks_T: Ranks,
    image_T: Tensor | None = None,
    alone: tuple[Ranks, Ranks] | None = None,
) -> dict[str, float]:
    """Return the metrics of image→text (ranks_I) and text→image ranks.

    tr1, tr5, tr10: image→text recalls in [0, 1]. ir1, ir5, ir10: text→image. r_mean: mean of the six. rsum: their sum in per
    cent, at most 600. num_queries_without_match: images and texts without a match; recalls leave them out. image_T: an image of
    each text; it groups texts and, for r_mean, the image itself. alone: ranks with ITC only; r_mean then has the interval of
    its difference from `r_mean_itc_only`.
    Raises ValueError if no image or no text has a match.
    """
    found: dict[str, float] = {}
    influences, gains, groups, both = [], [], [], (ranks_I, ranks_T)
    own_I, own_T = torch.arange(len(ranks_I.better_Q)), -1 - torch.arange(len(ranks_T.better_Q))
    images_of = own_I, own_T if image_T is None else image_T
    for way, of_way, before, image_Q in zip(
        ("tr", "ir"), both, alone or both, images_of, strict=True
    ):
        images = image_Q[of_way.is_asked_Q].tolist()
        if not images:
            raise ValueError("no query has a match, so there is nothing to recall")
        hits_Qk, before_Qk = (
            torch.stack([each.hits(k)[of_way.is_asked_Q] for k in RECALLS], dim=1).numpy()
            for each in (of_way, before)
        )
        found |= {
            f"{way}{k}": intervals.mean(hits_Qk[:, i], images, is_share=True)
            for i, k in enumerate(RECALLS)
        }
        influences.append((hits_Qk - hits_Qk.mean(0)).sum(1) / (6 * len(images)))
        gains.append((hits_Qk.sum(1) - before_Qk.sum(1)) / (6 * len(images)))
        groups += images
    total = sum(found.values())
    r_mean = intervals.linear(total / 6, np.concatenate(influences), groups)
    assert isinstance(r_mean, MeasuredValue)
    ends = {"low": 600 * r_mean.low, "high": 600 * r_mean.high}
    rsum = MeasuredValue(total * 100, **r_mean.certainty() | ends)  # pyright: ignore[reportArgumentType]
    if alone is not None:
        intervals.over(r_mean, "r_mean_itc_only", np.concatenate(gains), groups)
    num_without = sum(int((~each.is_asked_Q).sum()) for each in both)
    return found | {"r_mean": r_mean, "rsum": rsum, "num_queries_without_match": num_without}


def folds_1k(
    relevance: Relevance,
    numbers: Callable[[Tensor, Tensor, Relevance], dict[str, float]],
    fold_size: int = 1000,
) -> dict[str, float]:
    """Return the means of metrics over five folds (COCO 1K).

    They are the first 5 × fold_size images in their order; there are at least that many. Each fold ranks its images and their
    texts only. numbers: metrics of a fold, from its images and texts (int64, indices into all) and their relevance (renumbered
    from 0).
    """
    folds = []
    for start in range(0, 5 * fold_size, fold_size):
        image_M, old_text_M = relevance.texts_of_image.rows(start, start + fold_size)
        texts, text_M = old_text_M.unique(return_inverse=True)
        fold = Relevance.from_pairs(image_M, text_M, fold_size, len(texts))
        folds.append(numbers(torch.arange(start, start + fold_size), texts, fold))
    return {name: mean_of_folds([fold[name] for fold in folds]) for name in folds[0]}


def mean_of_folds(numbers: Sequence[float]) -> float:
    """Return the mean of a number of several folds, with an interval if all have one."""
    value, known = (
        sum(numbers) / len(numbers),
        [number for number in numbers if isinstance(number, MeasuredValue)],
    )
    if len(known) < len(numbers):
        return value
    below, above = (
        math.hypot(*(getattr(each, end) - each for each in known)) / len(known)
        for end in ("low", "high")
    )
    n, groups = (sum(getattr(each, name) for each in known) for name in ("n", "groups"))
    return MeasuredValue(
        value, n=n, low=value - below, high=value + above, method=known[0].method, groups=groups
    )
