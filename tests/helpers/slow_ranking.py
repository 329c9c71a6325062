"""Hits of queries in plain Python, with ties in random order."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch

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
    hits = torch.stack([ranks.hits(k) for k in RECALLS], dim=1).tolist()
    has_match = ranks.has_match_Q.tolist()
    return [row if is_counted else None for row, is_counted in zip(hits, has_match, strict=True)]


def certain_ranks(*places: int) -> Ranks:
    """Return ranks without ties."""
    ones_Q = torch.ones(len(places), dtype=torch.int64)
    return Ranks(better_Q=torch.tensor(places), tied_Q=ones_Q, true_Q=ones_Q)
