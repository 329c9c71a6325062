"""Reciprocal rank fusion of the hits by words and by vectors.

Images with a caption that is the query come first, then other literal matches; fusion orders each
of these groups and the rest by the sum of 1 / (RRF + rank) by words and by vectors (Cormack et al.
2009).

Letters: N slots, K hits.
"""

from typing import NamedTuple

import numpy as np

from eve_vl.search.query_vectors import Target
from eve_vl.search.vector_file import VectorFile
from eve_vl.search.word_search import LITERAL, Matches

RRF = 60.0
DEPTH = 100  # nearest vectors whose ranks are fused; further ones follow by cosine
MOST_MATCHES = 1000  # matches of words that are fused


class Nearest(NamedTuple):
    """The slots nearest to a query's vector, best first."""

    slots_K: np.ndarray
    scores_K: np.ndarray
    """Cosines with the query."""

    def first(self, num: int) -> "Nearest":
        """Return the best `num`."""
        return Nearest(self.slots_K[:num], self.scores_K[:num])


class Ranked(NamedTuple):
    """Slots of hits, best first."""

    slots_K: np.ndarray
    scores_K: np.ndarray
    """Cosines with the query; NaN without its vector."""
    is_literal_K: np.ndarray
    nearest: Nearest | None = None
    """The DEPTH slots nearest to the query's vector, for any number of hits; None without
    one."""


def fuse(
    nearest: Nearest | None,
    matches: Matches | None,
    has_words_N: np.ndarray,
    vectors: VectorFile,
    target: Target,
    num: int,
) -> Ranked:
    """Return the first `num` hits of a query in the fused order.

    nearest: None: only words count. matches: None: only vectors count. has_words: bool (N,); the
    others rank as if they were the best match, because the words for these images are not known.
    """
    if matches is None:
        if nearest is None:
            return Ranked(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, dtype=bool))
        slots_K = nearest.slots_K[:num]
        is_literal_K = np.zeros(len(slots_K), dtype=bool)
        return Ranked(slots_K, nearest.scores_K[:num], is_literal_K, nearest.first(DEPTH))
    matched_slots = matches.slots_W[:MOST_MATCHES]
    if nearest is None:
        slots_K = matched_slots[:num]
        no_scores_K = np.full(len(slots_K), np.nan)
        return Ranked(slots_K, no_scores_K, matches.tier_N[slots_K] <= LITERAL)

    further_slots = np.setdiff1d(matched_slots, nearest.slots_K)
    further_scores = vectors.take(further_slots) @ target.vector_d
    slots_K = np.append(nearest.slots_K, further_slots)
    scores_K = np.append(nearest.scores_K, further_scores)

    vector_place_K = np.arange(1, len(slots_K) + 1, dtype=float)
    vector_place_K[DEPTH:] = np.inf  # so that the order does not depend on the number of hits
    lacks_words_K = ~has_words_N[slots_K] & (vector_place_K <= DEPTH)
    word_place_K = np.where(lacks_words_K, 1, matches.place_N[slots_K])
    fused_K = 1 / (RRF + word_place_K) + 1 / (RRF + vector_place_K)

    group_K = np.minimum(matches.tier_N[slots_K], LITERAL + 1)
    is_literal_K = group_K <= LITERAL
    if target.by_image:
        group_K = np.zeros(len(slots_K))
    best_K = np.lexsort((-scores_K, -fused_K, group_K))[:num]
    return Ranked(slots_K[best_K], scores_K[best_K], is_literal_K[best_K], nearest.first(DEPTH))
