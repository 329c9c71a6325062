"""Which candidates match which queries, and which images which texts.

Letters: Q queries, M matching pairs, T texts, P pairs. Lower case: q queries of one chunk,
m their matches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


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
        pair_M = (query_P * num_candidates + candidate_P).unique()
        divisor = max(num_candidates, 1)
        num_matches_Q = (pair_M // divisor).bincount(minlength=num_queries)
        return cls(
            start_Q1=F.pad(num_matches_Q.cumsum(0), (1, 0)),
            candidate_M=pair_M % divisor,
            num_candidates=num_candidates,
        )

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
        num_texts = self.images_of_text.num_queries
        text_M, image_M = self.images_of_text.rows(0, num_texts)
        no_image_T = torch.full((num_texts,), -1)
        return no_image_T.scatter_reduce(0, text_M, image_M, "amin", include_self=False)

    @classmethod
    def from_pairs(
        cls,
        image_of_pairs: Tensor | Sequence[int],
        text_of_pairs: Tensor | Sequence[int],
        num_images: int,
        num_texts: int,
    ) -> "Relevance":
        """Build it from image and text of each pair, in any order; duplicates are allowed."""
        image_P = torch.as_tensor(image_of_pairs, dtype=torch.int64).cpu()
        text_P = torch.as_tensor(text_of_pairs, dtype=torch.int64).cpu()
        return cls(
            texts_of_image=Matches.from_pairs(image_P, text_P, num_images, num_texts),
            images_of_text=Matches.from_pairs(text_P, image_P, num_texts, num_images),
        )
