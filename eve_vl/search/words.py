"""Full-text search in an index.

SQLite FTS5 tables, their updates, and images and captions ranked by the words of a query.

`image_words` has one row per slot of an image, `text_words` one per caption. FTS5 splits words, removes accents and
stems English words (Porter). Literal matches come first; reciprocal rank fusion orders these and the others: the sum of
1 / (RRF + rank) by words and by vectors (Cormack et al. 2009).

Letters: N slots, W slots that match, K hits.
"""

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eve_vl.search.database import TOKENS, Database, VectorFile, index_errors
from eve_vl.search.query import Query, Target

EVENTS = {
    "AFTER INSERT ON image": "VALUES (new.slot)",
    "AFTER UPDATE ON image": "VALUES (old.slot), (new.slot)",
    "AFTER DELETE ON image": "VALUES (old.slot)",
    "AFTER INSERT ON caption": "SELECT slot FROM image WHERE id = new.image",
    "AFTER DELETE ON caption": "SELECT slot FROM image WHERE id = old.image",
}
WATCH = "CREATE TEMP TABLE touched (slot INTEGER);" + "".join(
    f"CREATE TEMP TRIGGER touched_{number} {event} BEGIN INSERT INTO touched {slots}; END;"
    for number, (event, slots) in enumerate(EVENTS.items())
)
UNWATCH = "".join(f"DROP TRIGGER IF EXISTS temp.touched_{number};" for number in range(len(EVENTS)))
UNWATCH += "DROP TABLE IF EXISTS temp.touched;"
_OF_IMAGE = "FROM image JOIN caption ON caption.image = image.id"
_JOINED = "(SELECT group_concat(value, char(10)) FROM (SELECT DISTINCT {} WHERE image.slot = changed.slot ORDER BY 1))"
REFRESH = f"""INSERT INTO image_words (rowid, captions, names, columns) SELECT slot,
{_JOINED.format(f"text AS value {_OF_IMAGE} JOIN text ON text.slot = caption.slot")},
{_JOINED.format("stem(CASE WHEN start IS NULL THEN path END) AS value FROM image")},
{_JOINED.format(f"value {_OF_IMAGE} JOIN json_each(caption.columns)")}
FROM (SELECT DISTINCT slot FROM touched) AS changed WHERE slot IN (SELECT slot FROM image)"""
LITERAL, ALL, SOME, NONE = range(
    4
)  # the query word by word in a caption or a name; all its words; some; none
STOP_WORDS = {
    "a",
    "an",
    "and",
    "at",
    "by",
    "for",
    "from",
    "in",
    "is",
    "it",
    "of",
    "on",
    "or",
    "the",
    "to",
    "with",
}
MOST_RANKED = 4000  # matches that are ranked by bm25, at 2 µs each; more: in the order of slots
MOST_LISTED = 20_000  # matches of one expression, at 0.3 µs each

RRF = 60.0
DEPTH = 100  # nearest vectors whose ranks are fused; further ones follow by cosine
MOST_MATCHES = 1000  # matches of words that are fused

Nearest = tuple[np.ndarray, np.ndarray]


class Matches(NamedTuple):
    """Slots that match the words of a query."""

    slots_W: np.ndarray
    """int64, best first."""
    tier_N: np.ndarray
    """LITERAL, ALL or SOME by slot; NONE: no match."""
    place_N: np.ndarray
    """Ranks from 1 by slot; equally good ones share a rank. Infinite without a match."""


class Ranked(NamedTuple):
    """Slots of hits, best first."""

    slots_K: np.ndarray
    scores_K: np.ndarray
    """Cosines with the query; NaN without its vector."""
    is_literal_K: np.ndarray


def watch(db: sqlite3.Connection) -> None:
    """Record the slots of images whose words change, for `refresh`."""
    db.create_function("stem", 1, lambda path: path and Path(path).stem, deterministic=True)
    db.executescript(WATCH)


def refresh(db: sqlite3.Connection) -> None:
    """Write the words of images that have changed since the last call.

    It runs within the open transaction.
    """
    db.execute("DELETE FROM image_words WHERE rowid IN (SELECT slot FROM touched)")
    db.execute(REFRESH)
    db.execute("DELETE FROM touched")


def quoted(text: str) -> str:
    """Return a text with any letters as a phrase of an FTS5 expression."""
    return '"' + text.replace("\0", " ").replace('"', " ") + '"'


def rank(
    database: Database, table: str, query: Query, is_wanted_N: np.ndarray, *, is_filtered: bool
) -> Matches:
    """Return the wanted slots that match a query, by tier, then by bm25.

    Raises DamagedError.
    """
    tier_N, score_N = np.full(len(is_wanted_N), NONE), np.zeros(len(is_wanted_N))
    for tier, expressions in enumerate(_expressions(table, query)):
        sum_N = np.zeros(len(is_wanted_N))
        for expression, weight in expressions:
            ((num,),) = database.rows(
                f"SELECT count(*) FROM {table} WHERE {table} MATCH ?", [expression]
            )
            if not num or (num > MOST_RANKED and tier == SOME):
                continue  # a word that common tells little about images that lack the others
            what, most = (
                "rank" if num <= MOST_RANKED else "-1.0",
                -1 if is_filtered else MOST_LISTED,
            )
            rows = database.rows(
                f"SELECT rowid, {what} FROM {table} WHERE {table} MATCH ? LIMIT ?",
                [expression, most],
            )
            slots, ranks = np.array(rows).reshape(-1, 2).T
            is_known = slots < len(sum_N)  # an update may have added others meanwhile
            sum_N[slots[is_known].astype(np.int64)] -= (
                weight * ranks[is_known]
            )  # FTS5's bm25 is negative
        is_new_N = (sum_N > 0) & (tier_N == NONE) & is_wanted_N
        tier_N[is_new_N], score_N[is_new_N] = tier, sum_N[is_new_N]
    slots_W = np.flatnonzero(tier_N != NONE)
    slots_W = slots_W[np.lexsort((-score_N[slots_W], tier_N[slots_W]))]
    is_tie_W = (np.diff(tier_N[slots_W], prepend=-1) == 0) & (
        np.diff(score_N[slots_W], prepend=0.0) == 0
    )
    place_N = np.full(len(is_wanted_N), np.inf)
    place_N[slots_W] = np.maximum.accumulate(np.where(is_tie_W, 0, np.arange(1, len(slots_W) + 1)))
    return Matches(slots_W, tier_N, place_N)


def _expressions(table: str, query: Query) -> list[list[tuple[str, float]]]:
    """Return the FTS5 expressions of each tier, with weights."""
    content = [term for term in query.terms if term[0].lower() not in STOP_WORDS] or query.terms
    phrases = [(quoted(term), weight) for term, weight in content]
    if not phrases:
        return []
    together = " AND ".join(phrase for phrase, _ in phrases)
    literal = quoted(query.text) if query.is_plain else together
    return [
        [(f"{{captions names}} : ({literal})" if table == "image_words" else literal, 1.0)],
        [(together, 1.0)],
        phrases,
    ]


def has_phrase(database: Database, table: str, phrase: str, is_wanted_N: np.ndarray) -> bool:
    """Return whether a wanted slot has a phrase. Raises DamagedError."""
    query = f"SELECT rowid FROM {table} WHERE {table} MATCH ? AND rowid < ?"
    with index_errors(database.folder):  # reads no further than the first
        return any(
            is_wanted_N[slot]
            for (slot,) in database.db.execute(query, [quoted(phrase), len(is_wanted_N)])
        )


def without(database: Database, table: str, query: Query, is_wanted_N: np.ndarray) -> np.ndarray:
    """Return which wanted slots have none of a query's excluded words and phrases.

    Raises DamagedError.
    """
    if not (match := " OR ".join(quoted(text) for text in query.excluded)):
        return is_wanted_N
    rows = database.rows(
        f"SELECT rowid FROM {table} WHERE {table} MATCH ? AND rowid < ?", [match, len(is_wanted_N)]
    )
    is_left_N = is_wanted_N.copy()
    is_left_N[[slot for (slot,) in rows]] = False
    return is_left_N


def found_words(
    database: Database, table: str, query: Query, slots: list[int]
) -> dict[int, tuple[str, ...]]:
    """Return the words and phrases of a query that some slots have.

    Raises DamagedError.
    """
    names = ("captions", "names", "columns") if table == "image_words" else ("text",)
    texts = " || char(10) || ".join(f"coalesce({name}, '')" for name in names)
    found: dict[int, tuple[str, ...]] = dict.fromkeys(slots, ())
    which = f"SELECT rowid, {texts} FROM {table} WHERE rowid IN (SELECT value FROM json_each(?))"
    with contextlib.closing(
        sqlite3.connect(":memory:")
    ) as db:  # faster than the index, where a common word has long lists
        db.execute(f"CREATE VIRTUAL TABLE words USING fts5 (text, {TOKENS})")
        db.executemany(
            "INSERT INTO words (rowid, text) VALUES (?, ?)",
            database.rows(which, [json.dumps(slots)]),
        )
        for term, _ in query.terms:
            for (slot,) in db.execute(
                "SELECT rowid FROM words WHERE words MATCH ?", [quoted(term)]
            ):
                found[slot] += (term,)
    return found


def fuse(
    near: Nearest | None,
    matches: Matches | None,
    has_words_N: np.ndarray,
    of: VectorFile,
    to: Target,
    num: int,
) -> Ranked:
    """Return the first `num` hits of a query in the fused order.

    near: slots, best first, and cosines; None: only words count. matches: None: only vectors count. has_words: bool (N,);
    the others rank as if they were the best match, because the words for these images are not known.
    """
    slots_K, score_K = near or (np.zeros(0, np.int64), np.zeros(0, np.float32))
    if matches is None:
        return Ranked(slots_K[:num], score_K[:num], np.zeros(min(num, len(slots_K)), dtype=bool))
    more = matches.slots_W[:MOST_MATCHES]
    if near is None:
        return Ranked(
            more[:num], np.full(len(more[:num]), np.nan), matches.tier_N[more[:num]] == LITERAL
        )
    more = np.setdiff1d(more, slots_K)
    slots_K, score_K = np.append(slots_K, more), np.append(score_K, of.take(more) @ to.vector_d)
    near_K = np.arange(1, len(slots_K) + 1, dtype=float)
    near_K[DEPTH:] = np.inf  # so that the order does not depend on the number of hits
    is_unknown_K = ~has_words_N[slots_K] & (near_K <= DEPTH)
    sum_K = 1 / (RRF + np.where(is_unknown_K, 1, matches.place_N[slots_K])) + 1 / (RRF + near_K)
    is_literal_K = matches.tier_N[slots_K] == LITERAL
    is_second_K = np.zeros(len(slots_K), dtype=bool) if to.by_image else ~is_literal_K
    best = np.lexsort((-score_K, -sum_K, is_second_K))[:num]
    return Ranked(slots_K[best], score_K[best], is_literal_K[best])
