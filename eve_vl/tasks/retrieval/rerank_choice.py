"""Recalls of a search, and how many candidates of each query are worth re-ranking.

Letters: I images, T captions, Q queries, K best candidates of a query.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from eve_vl.metrics import retrieval as metrics
from eve_vl.metrics.matches import Matches
from eve_vl.metrics.ranks import Ranks, best_ranks, reranked_ranks
from eve_vl.metrics.topk import top_candidates
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.reranking import rerank_scores
from eve_vl.tasks.retrieval.task import Retrieval

TRIED = "r_mean_k"


@dataclass(frozen=True)
class SearchResult:
    """Recalls of a search in both directions, and the ranks behind them."""

    numbers: dict[str, float]
    ranks_I: Ranks
    """Of images' captions."""
    ranks_T: Ranks
    """Of captions' images."""


@dataclass(frozen=True)
class Direction:
    """Queries of one modality and candidates of the other, with their order by contrast."""

    query_Qd: Tensor
    candidate_Cd: Tensor
    matches: Matches
    ranks_Q: Ranks
    """By contrast only."""

    def reranked(self, top_QK: Tensor, product_QK: Tensor, score_QK: Tensor) -> Ranks:
        """Return the ranks after the top K of each query are ordered by score."""
        return reranked_ranks(top_QK, product_QK, score_QK, self.matches, self.ranks_Q)


def search_gallery(
    task: Retrieval, gallery: Gallery, most: int, *, selects: bool = False
) -> SearchResult:
    """Return tr1 … rsum after re-ranking the best candidates of each query, and all ranks.

    With a matching head also `…_itc_only`, with ITC only, and `rerank_k`, the number re-ranked.
    That is `most` or, if it selects, the k of `most`, most/2, most/4 … with the highest r_mean (all
    are in `r_mean_k…`), provided that the 95 % interval of its gain over contrast, query by query,
    is above 0; else 0.
    """
    relevance = gallery.relevance
    to_captions = _direction(gallery.image_Id, gallery.caption_Td, relevance.texts_of_image)
    to_images = _direction(gallery.caption_Td, gallery.image_Id, relevance.images_of_text)
    ranks_I = to_captions.ranks_Q
    ranks_T = to_images.ranks_Q
    by_contrast = metrics.summary(ranks_I, ranks_T, relevance.image_T)
    contrast_only = SearchResult(by_contrast, ranks_I, ranks_T)
    if task.contrast.match_head is None or not task.is_comparable:
        return contrast_only

    results = {0: contrast_only}
    if most:
        numbers_of_candidates = halves(most) if selects else [most]
        results |= _rerank(task, gallery, to_captions, to_images, numbers_of_candidates)
    r_means = {k: result.numbers["r_mean"] for k, result in results.items()}
    best_k = _best_number(r_means) if selects else most

    numbers = dict(results[best_k].numbers)
    for name, value in by_contrast.items():
        if not name.startswith("num"):
            numbers[f"{name}_itc_only"] = value
    numbers["rerank_k"] = best_k
    for k, r_mean in r_means.items():
        if selects and k:
            numbers[f"{TRIED}{k}"] = r_mean
    return SearchResult(numbers, results[best_k].ranks_I, results[best_k].ranks_T)


def _direction(query_Qd: Tensor, candidate_Cd: Tensor, matches: Matches) -> Direction:
    ranks_Q = best_ranks(query_Qd, candidate_Cd, matches)
    return Direction(query_Qd, candidate_Cd, matches, ranks_Q)


def _rerank(
    task: Retrieval,
    gallery: Gallery,
    to_captions: Direction,
    to_images: Direction,
    numbers_of_candidates: list[int],
) -> dict[int, SearchResult]:
    """Return the result by the number of re-ranked candidates; each pair is scored once."""
    most = max(numbers_of_candidates)
    caption_IK, product_IK = top_candidates(to_captions.query_Qd, to_captions.candidate_Cd, most)
    image_TK, product_TK = top_candidates(to_images.query_Qd, to_images.candidate_Cd, most)
    score_IK, score_TK = rerank_scores(task, gallery, caption_IK.cpu(), image_TK.cpu())
    results = {}
    for k in numbers_of_candidates:
        ranks_I = to_captions.reranked(caption_IK[:, :k], product_IK[:, :k], score_IK[:, :k])
        ranks_T = to_images.reranked(image_TK[:, :k], product_TK[:, :k], score_TK[:, :k])
        by_contrast = (to_captions.ranks_Q, to_images.ranks_Q)
        numbers = metrics.summary(ranks_I, ranks_T, gallery.relevance.image_T, by_contrast)
        results[k] = SearchResult(numbers, ranks_I, ranks_T)
    return results


def _best_number(r_means: Mapping[int, float]) -> int:
    """Return the number of candidates with the highest r_mean of those that surely gain; else 0."""
    gaining = [k for k in r_means if gain(r_means[k])[0] > 0]
    return max(gaining, key=lambda k: (r_means[k], -k), default=0)


def halves(k: int) -> list[int]:
    """Return k, k/2, k/4 …, down to 2: one candidate has no order."""
    return [k >> times for times in range(k.bit_length() - 1)]


def r_means_tried(numbers: Mapping[str, float]) -> dict[int, float]:
    """Return r_mean by each number of re-ranked candidates that was tried, the largest first."""
    r_means = {}
    for name, value in numbers.items():
        if name.startswith(TRIED):
            r_means[int(name.removeprefix(TRIED))] = value
    return r_means


def gain(r_mean: float) -> tuple[float, float]:
    """Return both ends of the 95 % interval of the gain in r_mean by re-ranking."""
    return getattr(r_mean, "versus", {}).get("r_mean_itc_only", (0.0, 0.0))
