"""Fuse the ranks of vectors and of words into one order of hits.

Literal matches come first. Reciprocal rank fusion orders these and the others: the sum of 1 / (RRF + rank) over the two lists
(Cormack et al. 2009).

Letters: N slots, K hits, W slots that match words, d width of features.
"""

from typing import NamedTuple

import numpy as np

from eve_vl.search.database import VectorFile
from eve_vl.search.query import Target
from eve_vl.search.words import LITERAL, Matches

RRF = 60.0
DEPTH = 100  # nearest vectors that are fused, at least
MOST_MATCHES = 1000  # matches of words that are fused


class Ranked(NamedTuple):
    """Slots of hits, best first."""

    slots_K: np.ndarray
    scores_K: np.ndarray
    """Cosines with the query; NaN without its vector."""
    is_literal_K: np.ndarray


def fuse(
    nearest: tuple[np.ndarray, np.ndarray] | None,
    matches: Matches | None,
    has_words_N: np.ndarray,
    vectors: VectorFile,
    target: Target,
    num: int,
) -> Ranked:
    """Return the first `num` hits of a query in the fused order.

    nearest: slots, best first, and cosines; None: only words count. matches: None: only vectors count. has_words: bool (N,); the
    others rank as if they were the best match, because the words for these images are not known.
    """
    slots_K, score_K = nearest or (np.zeros(0, np.int64), np.zeros(0, np.float32))
    if matches is None:
        return Ranked(slots_K[:num], score_K[:num], np.zeros(min(num, len(slots_K)), dtype=bool))
    more = matches.slots_W[:MOST_MATCHES]
    if nearest is None:
        return Ranked(more[:num], np.full(len(more[:num]), np.nan), matches.tier_N[more[:num]] == LITERAL)
    more = np.setdiff1d(more, slots_K)
    more_score = vectors.take(more) @ target.vector_d
    order = np.argsort(-more_score, kind="stable")
    slots_K, score_K = np.append(slots_K, more[order]), np.append(score_K, more_score[order])
    place_K = np.where(has_words_N[slots_K], matches.place_N[slots_K], np.minimum(matches.place_N[slots_K], 1))
    sum_K = 1 / (RRF + place_K) + 1 / (RRF + 1 + np.arange(len(slots_K)))
    is_literal_K = matches.tier_N[slots_K] == LITERAL
    is_second_K = np.zeros(len(slots_K), dtype=bool) if target.by_image else ~is_literal_K
    best = np.lexsort((-sum_K, is_second_K))[:num]
    return Ranked(slots_K[best], score_K[best], is_literal_K[best])
