"""Hits of a search: names, captions, why each was found, and how well it fits.

The fit is the share of background scores below its own. Background scores are measured when images are indexed. Cosines of
different queries do not compare: nonsense may have higher ones than words. So the background of texts is made of nonsense:
captions with the letters of each word shuffled. Their mean vector is subtracted from a query, because some images are near to
any text. The score of a hit is the sum of two z-scores among the background: its cosine after this subtraction, and the share
of the query that is known to the run's tokenizer. The background of images is the cosines of pairs of images after their mean
is subtracted.

Letters: N slots, S of them sampled, Q background queries, K hits, d width of features.
"""

import contextlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from eve_vl.search.database import Database, index_errors
from eve_vl.search.nearest import topk_exact
from eve_vl.search.query import Filter, Query, SearchOptions, Target, encode_texts, known_ids
from eve_vl.search.words import Ranked, found_words
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen

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


class Hit(Frozen):
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
    """Share of background scores below its own, or below that of a hit with a lower cosine; None for captions, or without its
    vector."""
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

    def __init__(self, hits: Iterable[Hit] = (), note: str = ""):
        """note: a sentence about quoted phrases that no caption has; else empty."""
        super().__init__(hits)
        self.note = note

    @property
    def nothing_fits(self) -> bool:
        """Whether neither words nor vectors found any of them."""
        return not any(hit.by for hit in self)


def read_hits(
    database: Database,
    rows: Sequence[tuple[Query, Target, Ranked]],
    chosen: Filter,
    how: SearchOptions,
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
        return Hit(
            id=number,
            name=name,
            captions=tuple(text for _, text in texts),
            images=names,
            near=other,
            **why,
        )

    background = {} if how.captions else database.read_fact(BACKGROUND) or {}
    found = []
    for one, target, ranked in rows:
        reasons = _reasons(database, one, target, ranked, background, how)
        hits = [hit(slot, why) for slot, why in zip(ranked.slots_K.tolist(), reasons, strict=True)]

        def is_cut(hit):
            return (
                hit.by not in ("both", "words") and hit.fit is not None and hit.fit < how.min_score
            )

        found.append([each for each in hits if each is not None and not is_cut(each)])
    return found


def _reasons(
    database: Database,
    query: Query,
    target: Target,
    ranked: Ranked,
    background: dict[str, Any],
    how: SearchOptions,
) -> list[dict[str, Any]]:
    """Return the fields of each hit that say why it was found."""
    slots, table = ranked.slots_K.tolist(), "text_words" if how.captions else "image_words"
    words = (
        found_words(database, table, query, slots)
        if how.by != "vectors" and query.terms
        else dict.fromkeys(slots, ())
    )
    num, has_vector = sum(len(term) for term, _ in query.terms), target.vector_d is not None
    fits_K = fit_of(database, background, ranked, target) if has_vector else None
    if fits_K is not None:  # at least that of each hit with a lower cosine
        order_K = np.argsort(ranked.scores_K)
        fits_K[order_K] = np.maximum.accumulate(fits_K[order_K])
    reasons = []
    for place, (slot, score) in enumerate(zip(slots, ranked.scores_K.tolist(), strict=True)):
        fit = None if fits_K is None else float(fits_K[place])
        by_words = bool(words[slot]) and sum(map(len, words[slot])) >= SHARE_OF_LETTERS * num
        by_vector = has_vector and (fit is None or fit >= FITS)
        by = (
            "both"
            if by_words and by_vector
            else "words"
            if by_words
            else "vectors"
            if by_vector
            else ""
        )
        why = {
            "by": by,
            "words": words[slot],
            "is_literal": bool(ranked.is_literal_K[place]),
            "fit": fit,
        }
        reasons.append(why | {"score": score if has_vector else None})
    return reasons


# The fit of a hit

BACKGROUND = "background"
NUM_QUERIES = 300
NUM_IMAGES = 256
NUM_CAPTIONS = 2000  # captions that the words are taken from, at most
FITS = 0.97  # a hit with a larger fit is like the query
WORD = re.compile(r"[^\W\d_]{3,}")


def measure_background(database: Database, encoder: Any, is_used_N: np.ndarray) -> None:
    """Measure and store the background of an index that has none.

    encoder: an `Eve`. Raises DamagedError.
    """
    if not is_used_N.any() or database.read_fact(BACKGROUND) is not None:
        return
    slots, rng = np.flatnonzero(is_used_N), np.random.default_rng(0)
    sample_Sd = database.images.take(
        np.sort(rng.choice(slots, min(NUM_IMAGES, len(slots)), replace=False))
    )
    mean_d = sample_Sd.mean(0)
    cosines = _cosines(sample_Sd - mean_d, sample_Sd - mean_d)[~np.eye(len(sample_Sd), dtype=bool)]
    facts: dict[str, Any] = {}
    if len(cosines):
        facts["image"] = {
            "mean": mean_d.tolist(),
            "scores": np.quantile(cosines, np.linspace(0, 1, 101)).tolist(),
        }
    if encoder.task.is_comparable and (texts := _nonsense(database, encoder)):
        query_Qd, known_Q = encode_texts(encoder, texts)
        mean_d = query_Qd.mean(0)
        best_Q = topk_exact(database.images.first(len(is_used_N)), query_Qd - mean_d, 1, is_used_N)[
            1
        ][:, 0]
        spread = [[float(each.mean()), float(each.std()) + 1e-6] for each in (best_Q, known_Q)]
        scores = sum(
            (each - mean) / std for each, (mean, std) in zip((best_Q, known_Q), spread, strict=True)
        )
        facts["text"] = {
            "mean": mean_d.tolist(),
            "spread": spread,
            "scores": np.sort(scores).tolist(),
        }
    with index_errors(database.folder), database.db:
        database.write_fact(BACKGROUND, facts)


def _nonsense(database: Database, encoder: Any) -> list[str]:
    """Return texts of one to three words with shuffled letters.

    Words come from captions, else from the tokenizer.
    """
    rng, tokenizer = random.Random(0), encoder.tokenizer
    some = (
        "SELECT text FROM text WHERE slot % (SELECT count(*) / ? + 1 FROM text) = 0 ORDER BY slot"
    )
    words = [
        word
        for (text,) in database.rows(some, [NUM_CAPTIONS])
        for word in WORD.findall(text.lower())
    ]
    if len({*words}) < NUM_QUERIES:
        words += [
            word
            for token in range(tokenizer.vocab_size)
            for word in WORD.findall(tokenizer.word(token))
        ]
    texts = []
    for num in rng.choices(range(1, 4), k=NUM_QUERIES) if words else ():
        text = " ".join("".join(rng.sample(word, len(word))) for word in rng.choices(words, k=num))
        with contextlib.suppress(UserError):  # the tokenizer knows none of its letters
            known_ids(text, tokenizer, encoder.inputs.config.max_text_tokens)
            texts.append(text)
    return texts


def fit_of(
    database: Database, background: dict[str, Any], ranked: Ranked, target: Target
) -> np.ndarray | None:
    """Return the fits of hits, (K,), None without a background.

    background: the fact, perhaps empty.
    """
    if (facts := background.get("image" if target.by_image else "text")) is None:
        return None
    mean_d, image_Kd = np.array(facts["mean"], np.float32), database.images.take(ranked.slots_K)
    if target.by_image:
        assert target.vector_d is not None
        value_K = _cosines(image_Kd - mean_d, target.vector_d[None] - mean_d)[:, 0]
    else:
        value_K = ranked.scores_K - image_Kd @ mean_d
        (score_mean, score_std), (known_mean, known_std) = facts["spread"]
        value_K = (value_K - score_mean) / score_std + (target.known - known_mean) / known_std
    return np.searchsorted(facts["scores"], value_K) / len(facts["scores"])


def _cosines(one_Nd: np.ndarray, other_Nd: np.ndarray) -> np.ndarray:
    """Return the cosines of all pairs, (N, N); 0 for vectors of zeros."""
    length_N1, other_N1 = (
        np.linalg.norm(each, axis=1, keepdims=True) for each in (one_Nd, other_Nd)
    )
    return one_Nd @ other_Nd.T / np.maximum(length_N1 * other_N1.T, 1e-12)
