"""Hits of a search: names, captions, and why each was found.

Letters: K hits.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eve_vl.search import calibration
from eve_vl.search.database import Database
from eve_vl.search.query import Filter, Query, SearchOptions, Target
from eve_vl.search.words import Ranked, found_words

MOST_LISTED = 100  # images with the same bytes or with one caption; captions of one image
SHARE_OF_LETTERS = 0.5  # of a query's words that an image must have to be found by words

# Rows about hits: slot, kind, three columns to order by (the second is an image's id), and a name or caption
_ASKED = "WITH asked(slot) AS (SELECT value FROM json_each(?)), found(slot, kind, is_other, id, tie, name) AS ("
_RANKED = """)
SELECT slot, kind, id, name FROM (
    SELECT *, row_number() OVER (PARTITION BY slot, kind ORDER BY is_other, id, tie) AS place FROM found
) WHERE place <= ? ORDER BY slot, kind, place"""
IMAGE_HITS = f"""{_ASKED}
SELECT image.slot, 'image', min(NOT ({{filter}})), min(id), 0, name
FROM asked CROSS JOIN image ON image.slot = asked.slot GROUP BY image.slot, name
UNION ALL
SELECT image.slot, 'caption', 0, min(id), text.slot, text
FROM asked CROSS JOIN image ON image.slot = asked.slot JOIN caption ON caption.image = id
JOIN text ON text.slot = caption.slot GROUP BY image.slot, text.slot
UNION ALL
SELECT feature.slot, 'near', 0, min(id), 0, name
FROM asked CROSS JOIN feature ON feature.slot = asked.slot JOIN image ON image.slot = near
WHERE near != feature.slot GROUP BY feature.slot, name{_RANKED}"""
CAPTION_HITS = f"""{_ASKED}
SELECT caption.slot, 'image', min(NOT ({{filter}})), min(id), 0, name
FROM asked CROSS JOIN caption ON caption.slot = asked.slot JOIN image ON id = image GROUP BY caption.slot, name
UNION ALL
SELECT text.slot, 'caption', 0, 0, 0, text FROM asked CROSS JOIN text ON text.slot = asked.slot{_RANKED}"""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One result: an image or, if captions were searched, a caption."""

    id: int
    """The image's number in the index; the first one's if several have the same bytes or the caption."""
    name: str
    """The image's path, or the row of a source that holds it; the caption."""
    score: float | None
    """The cosine between its features and the query's; None by words alone."""
    by: str = ""
    """How it was found: by `words`, by `vectors` or by `both`; empty: it only is the nearest, and does not fit."""
    words: tuple[str, ...] = ()
    """Words and phrases of the query in its captions, its file names and its columns."""
    is_literal: bool = False
    """Whether the query stands word by word in a caption or a file name."""
    fit: float | None = None
    """Share of background scores below its own (eve_vl/search/calibration.py); None for captions, or without its vector."""
    match: float | None = None
    """The matching head's score, by which it was re-ranked."""
    captions: tuple[str, ...] = ()
    """An image's captions, at most MOST_LISTED."""
    images: tuple[str, ...] = ()
    """Images with the very same bytes, or with the caption: those that pass the filter first, at most MOST_LISTED."""
    near: str | None = None
    """The first image of the index of which this one is a near-duplicate."""

    @property
    def why(self) -> str:
        """Return in words how it was found.

        Examples are `words: red, car`, `similar`, both, or `does not fit`.
        """
        words = [f"words: {', '.join(self.words)}"] if self.words else []
        similar = ["similar"] if self.by in ("both", "vectors") else []
        return " · ".join(words + similar) or "does not fit"


class Hits(list[Hit]):
    """The hits of a query, best first."""

    @property
    def nothing_fits(self) -> bool:
        """Whether neither words nor vectors found any of them."""
        return not any(hit.by for hit in self)


def read_hits(
    database: Database, rows: Sequence[tuple[Query, Target, Ranked]], chosen: Filter, how: SearchOptions
) -> list[list[Hit]]:
    """Return the hits of all queries, by one SQL query.

    Raises DamagedError.
    """
    slots = json.dumps([*{slot for *_, ranked in rows for slot in ranked.slots_K.tolist()}])
    query = (CAPTION_HITS if how.captions else IMAGE_HITS).format(filter=chosen.sql)
    known: dict[tuple[int, str], list[tuple[int, str]]] = defaultdict(list)
    for slot, kind, number, name in database.rows(query, [slots, *chosen.values, MOST_LISTED]):
        known[slot, kind].append((number, name))

    def hit(slot: int, why: dict[str, Any]) -> Hit | None:
        images, texts, near = (known[slot, kind] for kind in ("image", "caption", "near"))
        if not images or (how.captions and not texts):  # an update has freed the slot meanwhile
            return None
        (number, name), names = images[0], tuple(name for _, name in images)
        if how.captions:
            return Hit(id=number, name=texts[0][1], images=names, **why)
        other = next((other for _, other in near if other != name), None)
        return Hit(id=number, name=name, captions=tuple(text for _, text in texts), images=names, near=other, **why)

    background = {} if how.captions else database.read_fact(calibration.FACT) or {}
    found = []
    for one, target, ranked in rows:
        reasons = _reasons(database, one, target, ranked, background, how)
        hits = [hit(slot, why) for slot, why in zip(ranked.slots_K.tolist(), reasons, strict=True)]
        is_cut = lambda hit: hit.by not in ("both", "words") and hit.fit is not None and hit.fit < how.min_score  # noqa: E731
        found.append([each for each in hits if each is not None and not is_cut(each)])
    return found


def _reasons(
    database: Database, query: Query, target: Target, ranked: Ranked, background: dict[str, Any], how: SearchOptions
) -> list[dict[str, Any]]:
    """Return the fields of each hit that say why it was found."""
    slots, table = ranked.slots_K.tolist(), "text_words" if how.captions else "image_words"
    words = found_words(database, table, query, slots) if how.by != "vectors" and query.terms else dict.fromkeys(slots, ())
    num, has_vector = sum(len(term) for term, _ in query.terms), target.vector_d is not None
    fits_K = calibration.fit_of(database, background, ranked, target) if has_vector else None
    reasons = []
    for place, (slot, score) in enumerate(zip(slots, ranked.scores_K.tolist(), strict=True)):
        fit = None if fits_K is None else float(fits_K[place])
        by_words = bool(words[slot]) and sum(map(len, words[slot])) >= SHARE_OF_LETTERS * num
        by_vector = has_vector and (fit is None or fit >= calibration.FITS)
        by = "both" if by_words and by_vector else "words" if by_words else "vectors" if by_vector else ""
        why = {"by": by, "words": words[slot], "is_literal": bool(ranked.is_literal_K[place]), "fit": fit}
        reasons.append(why | {"score": score if has_vector else None})
    return reasons
