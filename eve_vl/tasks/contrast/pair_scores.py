"""Scores of many image–text pairs, a chunk at a time."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from eve_vl.predict.batching import chunked

PAIRS_AT_ONCE = 256  # per pass, however many images are matched with each text

Pair = TypeVar("Pair")


def in_chunks(
    score: Callable[[Sequence[Pair]], Tensor], pairs: Iterable[Pair], pairs_at_once: int
) -> Tensor:
    """Return the scores of pairs, float32 (P,) on the CPU.

    Pairs are read when their chunk is scored, so that one chunk of images is in memory.
    """
    scores = [torch.empty(0)]
    for chunk in chunked(pairs, pairs_at_once):
        scores.append(score(chunk).cpu())
    return torch.cat(scores)
