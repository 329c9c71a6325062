"""Images and captions that match the words of a query.

Letters: N slots, W slots that match.
"""

import contextlib
import json
import re
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eve_vl.search.database import Database
from eve_vl.search.index_files import index_errors
from eve_vl.search.query import Query
from eve_vl.search.schema import TOKENIZER
from eve_vl.search.word_tables import IMAGE_WORDS, TEXT_WORDS, quoted

# Tiers of matches: a caption is the query; the query stands word by word in a caption or a name;
# all its words; some; none
EQUAL = 0
LITERAL = 1
ALL = 2
SOME = 3
NONE = 4

STOP_WORDS = re.findall(r"\w+", "a an and at by for from in is it of on or the to with")
MOST_RANKED = 4000  # matches that are ranked by bm25, at 2 µs each; more: in the order of slots
MOST_LISTED = 20_000  # matches of one expression, at 0.3 µs each


class Matches(NamedTuple):
    """Slots that match the words of a query."""

    slots_W: np.ndarray
    """int64, best first."""
    tier_N: np.ndarray
    """EQUAL, LITERAL, ALL or SOME by slot; NONE: no match."""
    relevance_N: np.ndarray
    """BM25 of the query's words by slot, comparable across tiers; 0 without a match."""


class Expression(NamedTuple):
    """An FTS5 expression, and what its matches count."""

    match: str
    weight: float


def match_words(
    database: Database, table: str, query: Query, is_wanted_N: np.ndarray, *, is_filtered: bool
) -> Matches:
    """Return the wanted slots that match a query, by tier, then by bm25.

    Raises DamagedError.
    """
    tier_N = np.full(len(is_wanted_N), NONE)
    score_N = np.zeros(len(is_wanted_N))
    relevance_N = np.zeros(len(is_wanted_N))
    most_listed = -1 if is_filtered else MOST_LISTED
    for tier, expressions in _expressions_of_tiers(table, query).items():
        sum_N = np.zeros(len(is_wanted_N))
        for expression in expressions:
            _add_scores(database, table, expression, tier, most_listed, sum_N)
        is_new_N = (sum_N > 0) & (tier_N == NONE) & is_wanted_N
        tier_N[is_new_N] = tier
        score_N[is_new_N] = sum_N[is_new_N]
        # the BM25 of a whole phrase does not compare with that of its words
        if tier != LITERAL:
            relevance_N = np.maximum(relevance_N, sum_N)
    for slot in _slots_with_equal_caption(database, table, query):
        if slot < len(tier_N) and tier_N[slot] == LITERAL:
            tier_N[slot] = EQUAL
    slots_W = np.flatnonzero(tier_N != NONE)
    slots_W = slots_W[np.lexsort((-score_N[slots_W], tier_N[slots_W]))]
    relevance_N[tier_N == NONE] = 0
    return Matches(slots_W, tier_N, relevance_N)


def content_terms(query: Query) -> list[tuple[str, float]]:
    """Return the words and phrases to look up with their weights: without stop words, if others
    remain."""
    terms = [term for term in query.terms if term[0].lower() not in STOP_WORDS]
    return terms or list(query.terms)


def _expressions_of_tiers(table: str, query: Query) -> dict[int, list[Expression]]:
    """Return the FTS5 expressions of each tier."""
    phrases = [Expression(quoted(text), weight) for text, weight in content_terms(query)]
    if not phrases:
        return {}
    all_phrases = " AND ".join(phrase.match for phrase in phrases)
    literal = quoted(query.text) if query.is_plain else all_phrases
    if table == IMAGE_WORDS:
        literal = f"{{captions names}} : ({literal})"
    return {
        LITERAL: [Expression(literal, 1.0)],
        ALL: [Expression(all_phrases, 1.0)],
        SOME: phrases,
    }


def _add_scores(
    database: Database,
    table: str,
    expression: Expression,
    tier: int,
    most_listed: int,
    sum_N: np.ndarray,
) -> None:
    """Add the scores of an expression's matches to `sum`."""
    count = f"SELECT count(*) FROM {table} WHERE {table} MATCH ?"
    ((num_matches,),) = database.rows(count, [expression.match])
    is_common = num_matches > MOST_RANKED
    if not num_matches or (is_common and tier == SOME):
        return  # a word that common tells little about images that lack the others
    score = "-1.0" if is_common else "rank"
    select = f"SELECT rowid, {score} FROM {table} WHERE {table} MATCH ? LIMIT ?"
    rows = database.rows(select, [expression.match, most_listed])
    slots, scores = np.array(rows).reshape(-1, 2).T
    is_known = slots < len(sum_N)  # an update may have added others meanwhile
    # FTS5's bm25 is negative
    sum_N[slots[is_known].astype(np.int64)] -= expression.weight * scores[is_known]


def _slots_with_equal_caption(database: Database, table: str, query: Query) -> list[int]:
    """Return the slots with a caption of the query's words only, in any case."""
    query_words = _words(query.text)
    if not query.is_plain or not query_words:
        return []
    if table == IMAGE_WORDS:
        slot = "image.slot"
        tables = f"{TEXT_WORDS} JOIN caption ON caption.slot = {TEXT_WORDS}.rowid "
        tables += "JOIN image ON image.id = caption.image"
    else:
        slot = "rowid"
        tables = TEXT_WORDS
    select = f"SELECT {slot}, text FROM {tables} WHERE {TEXT_WORDS} MATCH ? LIMIT ?"
    # ^: captions that begin with the query
    rows = database.rows(select, [f"^ {quoted(query.text)}", MOST_LISTED])
    return [slot for slot, caption in rows if slot is not None and _words(caption) == query_words]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def has_phrase(database: Database, table: str, phrase: str, is_wanted_N: np.ndarray) -> bool:
    """Return whether a wanted slot has a phrase. Raises DamagedError."""
    query = f"SELECT rowid FROM {table} WHERE {table} MATCH ? AND rowid < ?"
    with index_errors(database.folder):  # reads no further than the first
        slots = database.db.execute(query, [quoted(phrase), len(is_wanted_N)])
        return any(is_wanted_N[slot] for (slot,) in slots)


def without_excluded(
    database: Database, table: str, query: Query, is_wanted_N: np.ndarray
) -> np.ndarray:
    """Return which wanted slots have none of a query's excluded words and phrases.

    Raises DamagedError.
    """
    if not query.excluded:
        return is_wanted_N
    match = " OR ".join(quoted(text) for text in query.excluded)
    select = f"SELECT rowid FROM {table} WHERE {table} MATCH ? AND rowid < ?"
    rows = database.rows(select, [match, len(is_wanted_N)])
    is_wanted_N = is_wanted_N.copy()
    is_wanted_N[[slot for (slot,) in rows]] = False
    return is_wanted_N


def matched_terms(
    database: Database, table: str, query: Query, slots: Sequence[int]
) -> dict[int, tuple[str, ...]]:
    """Return the words and phrases of a query that some slots have.

    Raises DamagedError.
    """
    columns = ("captions", "names", "columns") if table == IMAGE_WORDS else ("text",)
    text = " || char(10) || ".join(f"coalesce({column}, '')" for column in columns)
    wanted = "rowid IN (SELECT value FROM json_each(?))"
    rows = database.rows(f"SELECT rowid, {text} FROM {table} WHERE {wanted}", [json.dumps(slots)])
    terms: dict[int, tuple[str, ...]] = dict.fromkeys(slots, ())
    # faster than the index, where a common word has long lists
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute(f"CREATE VIRTUAL TABLE words USING fts5 (text, {TOKENIZER})")
        db.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", rows)
        for term, _ in content_terms(query):
            select = "SELECT rowid FROM words WHERE words MATCH ?"
            for (slot,) in db.execute(select, [quoted(term)]):
                terms[slot] += (term,)
    return terms
