"""Image–text retrieval: recalls both ways from the rank of each query's best match, for any number of matches.

Letters: Q queries, C candidates, K ranked candidates of each query, M matching pairs, I images, T texts, P pairs, D width.
Lower case: q the queries at hand, m their matches.
Ranks start at 0. Among equal scores the candidate with the lower index comes first, always, so that neither the order of
queries nor the size of a batch changes a number.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.metrics import certainty
from eve_vl.metrics.certainty import Estimate

MISSED = 2**62  # rank of a query none of whose matches was ranked
NO_MATCH = -1  # rank of a query that has no match at all; recalls leave it out
RECALLS = (1, 5, 10)
QUERIES_AT_ONCE = 256  # 26 MB of scores for 25,000 candidates


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """The candidates that match each query, as compressed rows: query q has candidate_M[start_Q1[q] : start_Q1[q + 1]].

    start_Q1: int64 (Q + 1,). candidate_M: int64 (M,), ascending within a query, none twice. Both on the CPU.
    """

    start_Q1: Tensor
    candidate_M: Tensor
    num_candidates: int

    @classmethod
    def from_pairs(cls, query_P: Tensor, candidate_P: Tensor, num_queries: int, num_candidates: int) -> "Matches":
        """Build it from int64 pairs in any order; a pair may be given twice."""
        pair_M, num = (query_P * num_candidates + candidate_P).unique(), max(num_candidates, 1)
        start_Q1 = F.pad((pair_M // num).bincount(minlength=num_queries).cumsum(0), (1, 0))
        return cls(start_Q1=start_Q1, candidate_M=pair_M % num, num_candidates=num_candidates)

    @property
    def num_queries(self) -> int:
        """Queries, with or without a match."""
        return len(self.start_Q1) - 1

    @property
    def has_any_Q(self) -> Tensor:
        """Whether each query has a match: bool (Q,)."""
        return self.start_Q1.diff() > 0

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the matches of queries start to stop (exclusive): query, counted from start, and candidate of each."""
        starts_q1 = self.start_Q1[start : stop + 1]
        query_m = torch.arange(stop - start).repeat_interleave(starts_q1.diff())
        return query_m, self.candidate_M[starts_q1[0] : starts_q1[-1]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Relevance:
    """Which texts and images belong together, seen from either side."""

    texts_of_image: Matches
    images_of_text: Matches

    @property
    def image_T(self) -> Tensor:
        """The first image of each text, int64 (T,); -1 of a text that has none."""
        starts_T = self.images_of_text.start_Q1[:-1].clamp(max=max(len(self.images_of_text.candidate_M) - 1, 0))
        return self.images_of_text.candidate_M[starts_T].where(self.images_of_text.has_any_Q, -1)

    @classmethod
    def from_pairs(
        cls, image_of_pairs: Tensor | Sequence[int], text_of_pairs: Tensor | Sequence[int], num_images: int, num_texts: int
    ) -> "Relevance":
        """Build it from the image and the text of each matching pair, in any order; a pair may be given twice.

        An image or a text may be in many pairs or in none. Raises ValueError if the lengths differ or an index is out of
        range.
        """
        image_P = torch.as_tensor(image_of_pairs, dtype=torch.int64).cpu()
        text_P = torch.as_tensor(text_of_pairs, dtype=torch.int64).cpu()
        if len(image_P) != len(text_P):
            raise ValueError(f"each pair needs an image and a text, got {len(image_P)} images and {len(text_P)} texts")
        for name, index_P, num in (("image", image_P, num_images), ("text", text_P, num_texts)):
            outside = index_P[(index_P < 0) | (index_P >= num)]
            if len(outside):
                raise ValueError(f"a pair names {name} {outside[0]}, expected 0 to {num - 1}")
        return cls(
            texts_of_image=Matches.from_pairs(image_P, text_P, num_images, num_texts),
            images_of_text=Matches.from_pairs(text_P, image_P, num_texts, num_images),
        )


def _refuse_nan(scores_QC: Tensor) -> None:
    if scores_QC.isnan().any():
        raise ValueError("scores to rank by contain NaN")


def rank_by_score(scores_QC: Tensor, k: int) -> Tensor:
    """Return the k best candidates of each query, best first: int64 (Q, K) with K = min(k, C).

    Raises ValueError if a score is not a number.
    """
    _refuse_nan(scores_QC)
    k = min(k, scores_QC.shape[1])
    kth_Q1 = scores_QC.topk(k, dim=1).values[:, -1:]  # topk takes any of those that tie for the last places
    is_tied_QC = scores_QC == kth_Q1
    is_above_QC = scores_QC > kth_Q1
    num_places_Q1 = k - is_above_QC.sum(1, keepdim=True)
    is_chosen_QC = is_above_QC | (is_tied_QC & (is_tied_QC.cumsum(1, dtype=torch.int32) <= num_places_Q1))
    chosen_QK = is_chosen_QC.nonzero()[:, 1].view(-1, k)
    order_QK = scores_QC.gather(1, chosen_QK).sort(dim=1, descending=True, stable=True).indices
    return chosen_QK.gather(1, order_QK)


def _scores(query_QD: Tensor, candidate_CD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of the first query and the products with all candidates, float32, of a few queries at a time.

    Each product has the same number of rows, padded with zeros: for few rows, matrix libraries add up in another order, and
    the last digits would depend on who shares the batch.
    """
    candidate_DC = candidate_CD.detach().float().T
    for start in range(0, len(query_QD), QUERIES_AT_ONCE):
        rows = query_QD[start : start + QUERIES_AT_ONCE].detach().float()
        with torch.autocast(rows.device.type, enabled=False):
            products = F.pad(rows, (0, 0, 0, QUERIES_AT_ONCE - len(rows))) @ candidate_DC
        yield start, products[: len(rows)]


def rank_from_features(query_QD: Tensor, candidate_CD: Tensor, k: int) -> Tensor:
    """Return the k candidates with the greatest inner product for each query, best first: int64 (Q, min(k, C)).

    Never holds more than QUERIES_AT_ONCE × C scores. Raises ValueError if one is not a number.
    """
    return torch.cat([rank_by_score(scores_qC, k) for _, scores_qC in _scores(query_QD, candidate_CD)])


def best_ranks(query_QD: Tensor, candidate_CD: Tensor, matches: Matches) -> Tensor:
    """Return the exact rank of each query's best match by inner product among all candidates: int64 (Q,), on the CPU.

    NO_MATCH for queries without one. Never holds more than QUERIES_AT_ONCE × C scores. Raises ValueError if one is not a
    number.
    """
    assert (len(query_QD), len(candidate_CD)) == (matches.num_queries, matches.num_candidates)
    ranks_Q = torch.empty(len(query_QD), dtype=torch.int64)
    index_C = torch.arange(len(candidate_CD), device=query_QD.device)
    for start, scores_qC in _scores(query_QD, candidate_CD):
        _refuse_nan(scores_qC)
        stop = start + len(scores_qC)
        query_m, candidate_m = (index.to(query_QD.device) for index in matches.rows(start, stop))
        score_m = scores_qC[query_m, candidate_m]
        best_q = score_m.new_full((stop - start,), -torch.inf).scatter_reduce(0, query_m, score_m, "amax")
        is_best_m = score_m == best_q[query_m]
        first_q = candidate_m.new_full((stop - start,), len(candidate_CD))
        first_q = first_q.scatter_reduce(0, query_m[is_best_m], candidate_m[is_best_m], "amin")
        is_ahead_qC = (scores_qC > best_q[:, None]) | ((scores_qC == best_q[:, None]) & (index_C < first_q[:, None]))
        ranks_Q[start:stop] = is_ahead_qC.sum(1)
    return ranks_Q.where(matches.has_any_Q, NO_MATCH)


def ranks(order_QK: Tensor, matches: Matches) -> Tensor:
    """Return the rank of each query's best match in an order of candidates, best first: int64 (Q,), on the CPU.

    The order may stop early: MISSED if it holds no match of the query, NO_MATCH if there is none to hold.
    """
    order_QK = order_QK.cpu()
    assert len(order_QK) == matches.num_queries
    query_M, candidate_M = matches.rows(0, matches.num_queries)
    pair_M = query_M * matches.num_candidates + candidate_M
    pair_QK = torch.arange(len(order_QK))[:, None] * matches.num_candidates + order_QK
    place_QK = torch.arange(order_QK.shape[1]).where(torch.isin(pair_QK, pair_M), MISSED)
    return place_QK.amin(1).where(matches.has_any_Q, NO_MATCH)


def reranked_ranks(topk_QK: Tensor, rerank_scores_QK: Tensor, matches: Matches, rank_Q: Tensor) -> Tensor:
    """Return the rank of each query's best match once its K first candidates are ordered by a second score.

    topk_QK: candidates by the first score, best first; equal second scores keep this order. rank_Q: ranks by the first score,
    which those behind keep (officially these score -100, which no recall at K or below can tell from that). Result as for
    `ranks`. Raises ValueError if a score is not a number.
    """
    _refuse_nan(rerank_scores_QK)
    order_QK = rerank_scores_QK.sort(dim=1, descending=True, stable=True).indices
    reranked_Q = ranks(topk_QK.gather(1, order_QK.to(topk_QK.device)), matches)
    return reranked_Q.where(reranked_Q != MISSED, rank_Q)


def summary(
    image_to_text_ranks_I: Tensor,
    text_to_image_ranks_T: Tensor,
    image_T: Tensor | None = None,
    alone: tuple[Tensor, Tensor] | None = None,
) -> dict[str, float]:
    """Return the numbers of both directions.

    tr1, tr5, tr10: image→text recalls in [0, 1]. ir1, ir5, ir10: text→image. r_mean: the mean of the six. rsum: their sum
    in per cent, at most 600. num_queries_without_match: images and texts that match nothing; recalls leave them out.
    image_T: an image of each text; the texts of one image, and for r_mean the image itself, are resampled together.
    alone: ranks both ways by contrast alone; r_mean then knows its difference from theirs as that from `r_mean_itc_only`.
    Raises ValueError if no image or no text has a match.
    """
    found: dict[str, float] = {}
    influences, gains, groups = [], [], []
    both = image_to_text_ranks_I, text_to_image_ranks_T
    own_I, own_T = torch.arange(len(both[0])), -1 - torch.arange(len(both[1]))
    images_of = own_I, own_T if image_T is None else image_T
    for way, ranks_Q, before_Q, image_Q in zip(("tr", "ir"), both, alone or both, images_of, strict=True):
        is_asked_Q = ranks_Q != NO_MATCH
        if not is_asked_Q.any():
            raise ValueError("no query has a match, so there is nothing to recall")
        images, recalls = image_Q[is_asked_Q].tolist(), torch.tensor(RECALLS)
        hits_Qk, before_Qk = ((each_Q[is_asked_Q, None] < recalls).numpy() for each_Q in (ranks_Q, before_Q))
        found |= {f"{way}{k}": certainty.mean(hits_Q, images) for k, hits_Q in zip(RECALLS, hits_Qk.T, strict=True)}
        influences.append((hits_Qk - hits_Qk.mean(0)).sum(1) / (6 * len(images)))
        gains.append((hits_Qk.sum(1) - before_Qk.sum(1)) / (6 * len(images)))
        groups += images
    total = sum(found.values())
    r_mean = certainty.linear(total / 6, np.concatenate(influences), groups)
    assert isinstance(r_mean, Estimate)
    num_without = sum(int((ranks_Q == NO_MATCH).sum()) for ranks_Q in both)
    ends = {"low": 600 * r_mean.low, "high": 600 * r_mean.high}
    rsum = Estimate(total * 100, **r_mean.certainty() | ends)  # pyright: ignore[reportArgumentType]
    if alone is not None:
        certainty.over(r_mean, "r_mean_itc_only", np.concatenate(gains), groups)
    return found | {"r_mean": r_mean, "rsum": rsum, "num_queries_without_match": num_without}


def folds_1k(
    relevance: Relevance, numbers: Callable[[Tensor, Tensor, Relevance], dict[str, float]], fold_size: int = 1000
) -> dict[str, float]:
    """Return the mean of some numbers over five folds (COCO 1K): the first 5 × fold_size images in their order.

    Each fold has fold_size images and the texts of these, ranked among themselves. numbers: what a fold's images and texts
    (int64, indices into all) come to, given which of them belong together (renumbered from 0).
    Raises ValueError if there are fewer images.
    """
    num_images = relevance.texts_of_image.num_queries
    if num_images < 5 * fold_size:
        raise ValueError(f"five folds of {fold_size} images need {5 * fold_size} images, got {num_images}")
    folds = []
    for start in range(0, 5 * fold_size, fold_size):
        image_M, old_text_M = relevance.texts_of_image.rows(start, start + fold_size)
        texts, text_M = old_text_M.unique(return_inverse=True)
        fold = Relevance.from_pairs(image_M, text_M, fold_size, len(texts))
        folds.append(numbers(torch.arange(start, start + fold_size), texts, fold))
    return {name: certainty.average([fold[name] for fold in folds]) for name in folds[0]}
