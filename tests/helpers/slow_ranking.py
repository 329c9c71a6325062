"""Hits of queries in plain Python, with ties in random order."""

import math
import operator
import random
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from eve_vl.metrics.matches import Matches
from eve_vl.metrics.ranks import Ranks

RECALLS = (1, 5, 10)


def slow_hit(keys: Sequence[Any], matches: Collection[int], k: int) -> float:
    """Return how likely a match is among the first k candidates by their keys, greatest first.

    Equals stand in random order: of all ways to choose those equals that still have a place, those
    with a match.
    """
    best = max(keys[candidate] for candidate in matches)
    equals = {candidate for candidate, key in enumerate(keys) if key == best}
    num_better = sum(key > best for key in keys)
    places = min(max(k - num_better, 0), len(equals))
    num_wrong = len(equals - set(matches))
    return 1 - math.comb(num_wrong, places) / math.comb(len(equals), places)


def hits_of(ranks: Ranks) -> list[list[float] | None]:
    """Return the hits of each query at 1, 5 and 10; None for one that has no match."""
    hits_QK = torch.stack([ranks.hits(k) for k in RECALLS], dim=1)
    hits: list[list[float] | None] = []
    for query, has_match in enumerate(ranks.has_match_Q.tolist()):
        if has_match:
            hits.append(hits_QK[query].tolist())
        else:
            hits.append(None)
    return hits


def certain_ranks(*places: int) -> Ranks:
    """Return ranks without ties."""
    ones_Q = torch.ones(len(places), dtype=torch.int64)
    return Ranks(
        better_Q=torch.tensor(places),
        tied_Q=ones_Q,
        true_Q=ones_Q,
    )


def matches_of(wanted: Sequence[Sequence[int]], num_candidates: int) -> Matches:
    """Return matches from the matching candidates of each query."""
    pairs = []
    for query, candidates in enumerate(wanted):
        pairs += [(query, candidate) for candidate in candidates]
    pair_P2 = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    return Matches.from_pairs(pair_P2[:, 0], pair_P2[:, 1], len(wanted), num_candidates)


def slow_scores(query_QD: Tensor, candidate_CD: Tensor) -> list[list[int]]:
    """Return inner products of whole numbers."""
    scores = []
    for query in query_QD.int().tolist():
        scores_of_query = []
        for candidate in candidate_CD.int().tolist():
            scores_of_query.append(sum(map(operator.mul, query, candidate)))
        scores.append(scores_of_query)
    return scores


def whole_numbers(generator: random.Random, num_rows: int, width: int) -> Tensor:
    """Return whole numbers from -2 to 2, as float32."""
    rows = []
    for _ in range(num_rows):
        rows.append([generator.randint(-2, 2) for _ in range(width)])
    return torch.tensor(rows, dtype=torch.float32)
