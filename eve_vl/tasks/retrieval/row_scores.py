"""Scores of the queries of a search, by which two runs are compared query by query."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eve_vl.data.row_hashes import hash_of
from eve_vl.metrics.intervals import GROUP
from eve_vl.metrics.matches import Relevance
from eve_vl.metrics.ranks import Ranks


def first_hits(
    names: Sequence[str],
    relevance: Relevance,
    ranks_I: Ranks,
    ranks_T: Ranks,
    recalls: Sequence[int] = (1,),
) -> dict[str, float]:
    """Return a score for each query by its name: whether its first hit is true.

    recalls: instead the share of these numbers of first hits with a true one.

    If several hits tie, it is the share of true ones. An image is named by its row, a caption by
    its number there, both with a hash of the set that is searched; the captions of an image belong
    together.
    """
    sides = relevance.texts_of_image
    candidates = (names, sides.start_Q1.tolist(), sides.candidate_M.tolist())
    pool = f"{hash_of(repr(candidates).encode()):x}"
    scores = {}
    for name, score in zip(names, _scores(ranks_I, recalls), strict=True):
        if score is not None:
            scores[f"tr1 {name} {pool}{GROUP}{name}"] = score
    num_captions: Counter[int] = Counter()
    for image, score in zip(relevance.image_T.tolist(), _scores(ranks_T, recalls), strict=True):
        num_captions[image] += 1
        if score is not None:
            name = names[image]
            scores[f"ir1 {name} {num_captions[image]} {pool}{GROUP}{name}"] = score
    return scores


def _scores(ranks_Q: Ranks, recalls: Sequence[int]) -> list[float | None]:
    """Return the mean hit rate over some numbers of first hits; None for a query without match."""
    total_Q = sum((ranks_Q.hits(k) for k in recalls), torch.zeros(()))
    assert isinstance(total_Q, Tensor)
    scores: list[float | None] = []
    for has_match, score in zip(
        ranks_Q.has_match_Q.tolist(), (total_Q / len(recalls)).tolist(), strict=True
    ):
        scores.append(score if has_match else None)
    return scores


def macro_averaged(*parts: Mapping[str, float]) -> dict[str, float]:
    """Return scores of rows, whose mean is the macro average of the parts.

    That is the mean of the parts' means. Empty parts do not count.
    """
    parts = tuple(part for part in parts if part)
    total = sum(len(part) for part in parts)
    scores = {}
    for part in parts:
        for row, score in part.items():
            scores[row] = score * total / len(part) / len(parts)
    return scores
