"""Hits of a search: names, captions, and why each was found."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from eve_vl.search.database import Database
from eve_vl.search.filters import Filter
from eve_vl.search.fit import BACKGROUNDS_FACT, FITS, hit_fits
from eve_vl.search.fusion import DEPTH, Ranked
from eve_vl.search.query import Query
from eve_vl.search.query_vectors import Target
from eve_vl.search.search_options import SearchOptions
from eve_vl.search.word_search import content_terms, matched_terms
from eve_vl.search.word_tables import IMAGE_WORDS, TEXT_WORDS
from eve_vl.utils.frozen import Frozen

MOST_LISTED = 100  # images with the same bytes or with one caption; captions of one image
SHARE_OF_LETTERS = 0.5  # of a query's words that an image must have to be found by words

# Rows about hits: slot, kind, three columns to order by (the second is an image's id), and a name
# or caption
_ROWS_OF_SLOTS = """
WITH asked(slot) AS (SELECT value FROM json_each(?)),
found(slot, kind, is_other, id, tie, name) AS ("""
_FIRST_OF_EACH_KIND = """)
SELECT slot, kind, id, name FROM (
    SELECT *, row_number() OVER (PARTITION BY slot, kind ORDER BY is_other, id, tie) AS place
    FROM found
) WHERE place <= ? ORDER BY slot, kind, place"""
IMAGE_ROWS = f"""{_ROWS_OF_SLOTS}
SELECT image.slot, 'image', min(NOT ({{filter}})), min(id), 0, name
FROM asked CROSS JOIN image ON image.slot = asked.slot GROUP BY image.slot, name
UNION ALL
SELECT image.slot, 'caption', 0, min(id), text.slot, text
FROM asked CROSS JOIN image ON image.slot = asked.slot JOIN caption ON caption.image = id
JOIN text ON text.slot = caption.slot GROUP BY image.slot, text.slot
UNION ALL
SELECT feature.slot, 'near', 0, min(id), 0, name
FROM asked CROSS JOIN feature ON feature.slot = asked.slot JOIN image ON image.slot = near
WHERE near != feature.slot GROUP BY feature.slot, name{_FIRST_OF_EACH_KIND}"""
CAPTION_ROWS = f"""{_ROWS_OF_SLOTS}
SELECT caption.slot, 'image', min(NOT ({{filter}})), min(id), 0, name
FROM asked CROSS JOIN caption ON caption.slot = asked.slot JOIN image ON id = image
GROUP BY caption.slot, name
UNION ALL
SELECT text.slot, 'caption', 0, 0, 0, text
FROM asked CROSS JOIN text ON text.slot = asked.slot{_FIRST_OF_EACH_KIND}"""


class Hit(Frozen):
    """One result: an image or, if captions were searched, a caption."""

    id: int
    """The image's number in the index; the first one's if several have the same bytes or the
    caption."""
    name: str
    """The image's path, or the row of a source that holds it; the caption."""
    score: float | None
    """The cosine between its features and the query's; None by words alone."""
    by: str = ""
    """How it was found: by `words`, by `vectors` or by `both`; empty: it only is the nearest, and
    does not fit."""
    words: tuple[str, ...] = ()
    """Words and phrases of the query in its captions, its file names and its columns."""
    is_literal: bool = False
    """Whether the query stands word by word in a caption or a file name."""
    fit: float | None = None
    """Share of background scores below its own, or below that of a hit with a lower cosine; None
    for captions, or without its vector."""
    match: float | None = None
    """The matching head's score, by which it was re-ranked."""
    captions: tuple[str, ...] = ()
    """An image's captions, at most MOST_LISTED."""
    images: tuple[str, ...] = ()
    """Images with the very same bytes, or with the caption: those that pass the filter first, at
    most MOST_LISTED."""
    near: str | None = None
    """The first image of the index of which this one is a near-duplicate."""

    @property
    def why(self) -> str:
        """Return in words how it was found.

        Examples are `words: red, car`, `similar`, both, or `does not fit`.
        """
        reasons = []
        if self.words:
            reasons.append(f"words: {', '.join(self.words)}")
        if self.by in ("both", "vectors"):
            reasons.append("similar")
        return " · ".join(reasons) or "does not fit"


class Hits(list[Hit]):
    """The hits of a query, best first."""

    def __init__(self, hits: Iterable[Hit] = (), *, nothing_fits: bool = False, note: str = ""):
        """nothing_fits: whether neither words nor vectors found any of the first DEPTH hits, also
        of those that were not asked for. note: a sentence about quoted phrases that no caption has;
        else empty."""
        super().__init__(hits)
        self.nothing_fits = nothing_fits
        self.note = note


class RankedQuery(NamedTuple):
    """A query and the slots that a search found for it, at least DEPTH if there are as many."""

    query: Query
    target: Target
    ranked: Ranked
    num_hits: int
    """As many hits are read."""


class NamedRow(NamedTuple):
    """An image or a caption of a slot."""

    image_id: int
    name: str


RowsOfSlots = dict[tuple[int, str], list[NamedRow]]
"""Images, captions and near-duplicates by slot and kind."""


class Reason(NamedTuple):
    """Why a hit was found. It does not depend on the number of hits."""

    score: float | None
    by: str
    words: tuple[str, ...]
    is_literal: bool
    fit: float | None


def read_hits(
    database: Database,
    ranked_queries: Sequence[RankedQuery],
    search_filter: Filter,
    options: SearchOptions,
) -> list[Hits]:
    """Return the hits of all queries, by one SQL query.

    Raises DamagedError.
    """
    backgrounds = {}
    if not options.captions:
        backgrounds = database.read_fact(BACKGROUNDS_FACT) or {}
    reasons_of_queries = []
    slots = set()
    for ranked_query in ranked_queries:
        reasons = _reasons(database, ranked_query, backgrounds, options)
        reasons_of_queries.append(reasons)
        slots.update(list(reasons)[: ranked_query.num_hits])

    rows_of_slots = _read_rows(database, slots, search_filter, options.captions)
    hits_of_queries = []
    for ranked_query, reasons in zip(ranked_queries, reasons_of_queries, strict=True):
        first_reasons = list(reasons.values())[:DEPTH]
        hits = Hits(nothing_fits=not any(reason.by for reason in first_reasons))
        for slot, reason in list(reasons.items())[: ranked_query.num_hits]:
            hit = _hit(rows_of_slots, slot, reason, is_caption=options.captions)
            if hit is not None:
                hits.append(hit)
        hits_of_queries.append(hits)
    return hits_of_queries


def _read_rows(
    database: Database, slots: Iterable[int], search_filter: Filter, captions: bool
) -> RowsOfSlots:
    """Return the images and captions of all slots of hits."""
    query = CAPTION_ROWS if captions else IMAGE_ROWS
    query = query.format(filter=search_filter.condition)
    values = [json.dumps(list(slots)), *search_filter.values, MOST_LISTED]
    rows_of_slots: RowsOfSlots = defaultdict(list)
    for slot, kind, image_id, name in database.rows(query, values):
        rows_of_slots[slot, kind].append(NamedRow(image_id, name))
    return rows_of_slots


def _hit(rows: RowsOfSlots, slot: int, reason: Reason, *, is_caption: bool) -> Hit | None:
    """Return the hit of a slot; None if an update has freed the slot meanwhile."""
    images = rows[slot, "image"]
    captions = tuple(caption.name for caption in rows[slot, "caption"])
    if not images or (is_caption and not captions):
        return None
    first_image = images[0]
    image_names = tuple(image.name for image in images)
    if is_caption:
        return Hit(
            id=first_image.image_id, name=captions[0], images=image_names, **reason._asdict()
        )
    near_names = [image.name for image in rows[slot, "near"] if image.name != first_image.name]
    return Hit(
        id=first_image.image_id,
        name=first_image.name,
        captions=captions,
        images=image_names,
        near=near_names[0] if near_names else None,
        **reason._asdict(),
    )


def _is_cut(reason: Reason, min_fit: float) -> bool:
    """Return whether a hit without the query's words fits too little."""
    has_words = reason.by in ("both", "words")
    return not has_words and reason.fit is not None and reason.fit < min_fit


def _reasons(
    database: Database,
    ranked_query: RankedQuery,
    backgrounds: Mapping[str, Any],
    options: SearchOptions,
) -> dict[int, Reason]:
    """Return why each hit was found, by slot, best first, without those below `min_score`."""
    query = ranked_query.query
    target = ranked_query.target
    ranked = ranked_query.ranked
    slots = ranked.slots_K.tolist()
    table = TEXT_WORDS if options.captions else IMAGE_WORDS
    words: dict[int, tuple[str, ...]] = dict.fromkeys(slots, ())
    if options.by != "vectors" and query.terms:
        words = matched_terms(database, table, query, slots)
    num_letters = sum(len(term) for term, _ in content_terms(query))
    has_vector = target.vector_d is not None
    fits_K = hit_fits(database, backgrounds, ranked, target)

    reasons = {}
    for place, slot in enumerate(slots):
        fit = None if fits_K is None else float(fits_K[place])
        num_matched = sum(map(len, words[slot]))
        by_words = bool(words[slot]) and num_matched >= SHARE_OF_LETTERS * num_letters
        by_vector = has_vector and (fit is None or fit >= FITS)
        reason = Reason(
            score=float(ranked.scores_K[place]) if has_vector else None,
            by=_found_by(by_words, by_vector),
            words=words[slot],
            is_literal=bool(ranked.is_literal_K[place]),
            fit=fit,
        )
        if not _is_cut(reason, options.min_score):
            reasons[slot] = reason
    return reasons


def _found_by(by_words: bool, by_vector: bool) -> str:
    """Return `Hit.by`."""
    if by_words and by_vector:
        return "both"
    if by_words:
        return "words"
    return "vectors" if by_vector else ""
