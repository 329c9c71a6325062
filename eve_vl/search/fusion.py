"""The order of hits by words and by vectors together.

Images with a caption that is the query come first, then other literal matches. Within each of these
groups and the rest, a weighted sum of two scores decides, each scaled to 0 … 1 for the query: the
BM25 of its words, and the cosine. Sums of scores rank better than sums of reciprocal ranks, which
forget by how much one hit is better than the next (Bruch, Gai and Ingber 2023, "An Analysis of
Fusion Functions for Hybrid Retrieval").

Letters: N slots, K hits.
"""

from typing import NamedTuple

import numpy as np

from eve_vl.search.query_vectors import Target
from eve_vl.search.vector_file import VectorFile
from eve_vl.search.word_search import LITERAL, Matches

WORDS_WEIGHT = 0.6  # of the score by words; the cosine has the rest
UNKNOWN_WORDS = 0.7  # score by words of an image without captions, by its scaled cosine
DEPTH = 100  # nearest vectors whose cosines count; further ones follow by cosine
MOST_MATCHES = 1000  # matches of words that are fused
LEAST_SPREAD = 1e-6  # of scores that are scaled: less comes from rounding


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
    words for the others are not known, so their cosine stands in for them.
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

    # what counts must not depend on how many of the nearest are asked for
    is_compared_K = np.isin(slots_K, matched_slots)
    is_compared_K[:DEPTH] = True
    tier_K = matches.tier_N[slots_K]
    group_K = np.where(is_compared_K, np.minimum(tier_K, LITERAL + 1), LITERAL + 1)
    if target.by_image:
        group_K = np.zeros(len(slots_K))

    similarity_K = _scaled_cosines(scores_K, nearest)
    best_relevance = matches.relevance_N.max(initial=0.0)
    by_words_K = matches.relevance_N[slots_K] / max(best_relevance, LEAST_SPREAD)
    by_words_K[~is_compared_K] = 0
    lacks_words_K = ~has_words_N[slots_K]
    by_cosine_K = np.where(lacks_words_K, UNKNOWN_WORDS * similarity_K, 0)
    by_words_K = np.maximum(by_words_K, by_cosine_K)
    fused_K = WORDS_WEIGHT * by_words_K + (1 - WORDS_WEIGHT) * similarity_K

    best_K = np.lexsort((-scores_K, -fused_K, group_K))[:num]
    is_literal_K = tier_K[best_K] <= LITERAL
    return Ranked(slots_K[best_K], scores_K[best_K], is_literal_K, nearest.first(DEPTH))


def _scaled_cosines(scores_K: np.ndarray, nearest: Nearest) -> np.ndarray:
    """Return cosines between 1, that of the nearest slot, and 0, that of the DEPTH-th nearest.

    So they do not depend on the number of hits. Lower cosines are 0.
    """
    compared = nearest.first(DEPTH).scores_K
    if not len(compared):
        return np.zeros(len(scores_K))
    highest = float(compared[0])
    lowest = float(compared[-1])
    return np.clip((scores_K - lowest) / max(highest - lowest, LEAST_SPREAD), 0, 1)
