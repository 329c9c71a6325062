"""The order of images or captions for queries, by words and by vectors.

Letters: N slots, Q queries, d width of features.
"""

import functools
from collections.abc import Sequence

import numpy as np

from eve_vl.metrics.topk import top_candidates_of_blocks
from eve_vl.search.cells import Cells
from eve_vl.search.database import Database
from eve_vl.search.filters import CAPTIONED, slots_that_pass
from eve_vl.search.fusion import DEPTH, Nearest, Ranked, fuse
from eve_vl.search.query import Query
from eve_vl.search.query_vectors import Target
from eve_vl.search.search_options import SearchOptions
from eve_vl.search.vector_file import VectorFile
from eve_vl.search.word_search import match_words, without_excluded
from eve_vl.search.word_tables import IMAGE_WORDS, TEXT_WORDS


class Ranking:
    """Ranks the images or captions of an index for queries."""

    def __init__(self, database: Database):
        self.database = database
        self.cells = Cells(database)
        self._slots_with_captions = functools.lru_cache(maxsize=1)(
            lambda version: slots_that_pass(database, CAPTIONED)
        )

    def rank(
        self,
        queries: Sequence[Query],
        targets: Sequence[Target],
        is_wanted_N: np.ndarray,
        num: int,
        options: SearchOptions,
    ) -> list[Ranked]:
        """Return the first `num` hits of each query.

        One pass over the index serves all queries without excluded words.
        """
        has_words_N = self._has_words(is_wanted_N, options)
        num_nearest = max(num, DEPTH)
        vectors = self.database.texts if options.captions else self.database.images
        ranked: dict[int, Ranked] = {}
        for rows in _rows_of_passes(queries):
            table = TEXT_WORDS if options.captions else IMAGE_WORDS
            first_query = queries[rows[0]]
            is_searched_N = without_excluded(self.database, table, first_query, is_wanted_N)
            searches_all_images = not (
                options.is_filtered or options.captions or first_query.excluded
            )
            nearest = self._nearest(
                targets, rows, vectors, is_searched_N, num_nearest, searches_all_images
            )
            for row in rows:
                matches = None
                if options.by != "vectors" and queries[row].terms:
                    matches = match_words(
                        self.database,
                        table,
                        queries[row],
                        is_searched_N,
                        is_filtered=options.is_filtered,
                    )
                target = targets[row]
                if target.problem is not None and (matches is None or not len(matches.slots_W)):
                    raise target.problem
                ranked[row] = fuse(nearest.get(row), matches, has_words_N, vectors, target, num)
        return [ranked[row] for row in range(len(queries))]

    def _has_words(self, is_wanted_N: np.ndarray, options: SearchOptions) -> np.ndarray:
        """Return which slots have a caption whose words can be searched, bool (N,)."""
        if options.captions:
            return np.ones(len(is_wanted_N), dtype=bool)
        has_words_N = np.zeros(len(is_wanted_N), dtype=bool)
        has_caption = self._slots_with_captions(self.database.version)[: len(has_words_N)]
        has_words_N[: len(has_caption)] = has_caption
        return has_words_N

    def _nearest(
        self,
        targets: Sequence[Target],
        rows: Sequence[int],
        vectors: VectorFile,
        is_searched_N: np.ndarray,
        num: int,
        searches_all_images: bool,
    ) -> dict[int, Nearest]:
        """Return the slots nearest to the vectors of some queries, by query."""
        vector_of_row = {}
        for row in rows:
            vector_d = targets[row].vector_d
            if vector_d is not None:
                vector_of_row[row] = vector_d
        if not vector_of_row:
            return {}
        query_Qd = np.stack(list(vector_of_row.values()))
        best = None
        if searches_all_images:
            best = self.cells.topk(query_Qd, num, len(is_searched_N))
        if best is None:
            best = top_candidates_of_blocks(
                vectors.first(len(is_searched_N)), query_Qd, num, is_searched_N
            )
        slot_QK, score_QK = best
        return {
            row: Nearest(slots_K, scores_K)
            for row, slots_K, scores_K in zip(vector_of_row, slot_QK, score_QK, strict=True)
        }


def _rows_of_passes(queries: Sequence[Query]) -> list[list[int]]:
    """Return groups of rows that search the same slots: those without excluded words are one."""
    plain_rows: list[int] = []
    groups: list[list[int]] = []
    for row, query in enumerate(queries):
        if query.excluded:
            groups.append([row])
            continue
        if not plain_rows:
            groups.append(plain_rows)
        plain_rows.append(row)
    return groups
