"""The fit of a hit: the share of background scores below its own.

Background scores are measured when images are indexed. Cosines of different queries do not compare:
nonsense may have higher ones than words. So the background of texts is made of nonsense: captions
with the letters of each word shuffled. Their mean vector is subtracted from a query, because some
images are near to any text. The score of a hit is the sum of two z-scores among the background: its
cosine after this subtraction, and the share of the query that is known to the run's tokenizer. The
background of images is the cosines of pairs of images after their mean is subtracted.

Letters: N slots, S of them sampled, Q background queries, K hits, d width of features, A and B two
sets of vectors.
"""

import contextlib
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eve_vl.metrics.topk import top_candidates_of_blocks
from eve_vl.search.database import Database
from eve_vl.search.fusion import Nearest, Ranked
from eve_vl.search.index_files import index_errors
from eve_vl.search.query_vectors import Target, encode_texts, known_ids
from eve_vl.utils.errors import UserError

BACKGROUNDS_FACT = "backgrounds"
NUM_QUERIES = 300
NUM_IMAGES = 256
NUM_CAPTIONS = 2000  # captions that the words are taken from, at most
FITS = 0.97  # a hit with a larger fit is like the query
WORD = re.compile(r"[^\W\d_]{3,}")
Spread = tuple[float, float]  # mean and standard deviation


@dataclass(frozen=True, kw_only=True)
class Background:
    """Scores of queries that nothing in the index fits; stored as JSON."""

    scores: list[float]
    """In rising order."""
    mean: list[float]
    """Mean vector, which is subtracted from a query."""
    cosine_spread: Spread | None = None
    """Of texts only."""
    known_spread: Spread | None = None
    """Of texts only."""


def measure_background(database: Database, encoder: Any, is_used_N: np.ndarray) -> None:
    """Measure and store the background of an index that has none.

    encoder: an `Eve`. Raises DamagedError.
    """
    if not is_used_N.any() or database.read_fact(BACKGROUNDS_FACT) is not None:
        return
    measured = {}
    of_images = _image_background(database, is_used_N)
    if of_images is not None:
        measured["image"] = asdict(of_images)
    of_texts = _text_background(database, encoder, is_used_N)
    if of_texts is not None:
        measured["text"] = asdict(of_texts)
    with index_errors(database.folder), database.db:
        database.write_fact(BACKGROUNDS_FACT, measured)


def _image_background(database: Database, is_used_N: np.ndarray) -> Background | None:
    """Return quantiles of the cosines of pairs of images; None for a single image."""
    slots = np.flatnonzero(is_used_N)
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice(slots, min(NUM_IMAGES, len(slots)), replace=False))
    image_Sd = database.images.take(sample)
    mean_d = image_Sd.mean(0)
    cosine_SS = _cosines(image_Sd - mean_d, image_Sd - mean_d)
    cosines = cosine_SS[~np.eye(len(image_Sd), dtype=bool)]
    if not len(cosines):
        return None
    quantiles = np.quantile(cosines, np.linspace(0, 1, 101))
    return Background(mean=mean_d.tolist(), scores=quantiles.tolist())


def _text_background(database: Database, encoder: Any, is_used_N: np.ndarray) -> Background | None:
    """Return the scores of nonsense; None if the run does not compare texts with images."""
    if not encoder.task.is_comparable:
        return None
    texts = _nonsense(database, encoder)
    if not texts:
        return None
    query_Qd, known_Q = encode_texts(encoder, texts)
    mean_d = query_Qd.mean(0)
    blocks = database.images.first(len(is_used_N))
    _, score_Q1 = top_candidates_of_blocks(blocks, query_Qd - mean_d, 1, is_used_N)
    score_Q = score_Q1[:, 0]
    cosine_spread = _spread(score_Q)
    known_spread = _spread(known_Q)
    sum_Q = _z_score(score_Q, cosine_spread) + _z_score(known_Q, known_spread)
    return Background(
        mean=mean_d.tolist(),
        scores=np.sort(sum_Q).tolist(),
        cosine_spread=cosine_spread,
        known_spread=known_spread,
    )


def _spread(values_Q: np.ndarray) -> Spread:
    """Return the mean and the standard deviation of values, the latter above 0."""
    return float(values_Q.mean()), float(values_Q.std()) + 1e-6


def _z_score(values: Any, spread: Spread) -> Any:
    mean, deviation = spread
    return (values - mean) / deviation


def _nonsense(database: Database, encoder: Any) -> list[str]:
    """Return texts of one to three words with shuffled letters, none if there are no words."""
    rng = random.Random(0)
    words = _words(database, encoder)
    if not words:
        return []
    texts = []
    for num_words in rng.choices(range(1, 4), k=NUM_QUERIES):
        chosen_words = rng.choices(words, k=num_words)
        text = " ".join("".join(rng.sample(word, len(word))) for word in chosen_words)
        with contextlib.suppress(UserError):  # the tokenizer knows none of its letters
            known_ids(text, encoder.tokenizer, encoder.inputs.config.max_text_tokens)
            texts.append(text)
    return texts


def _words(database: Database, encoder: Any) -> list[str]:
    """Return words of captions, and those of the tokenizer if there are few."""
    some_captions = """
    SELECT text FROM text WHERE slot % (SELECT count(*) / ? + 1 FROM text) = 0 ORDER BY slot"""
    words = []
    for (text,) in database.rows(some_captions, [NUM_CAPTIONS]):
        words += WORD.findall(text.lower())
    if len(set(words)) < NUM_QUERIES:
        tokenizer = encoder.tokenizer
        for token in range(tokenizer.vocab_size):
            words += WORD.findall(tokenizer.word(token))
    return words


def hit_fits(
    database: Database, backgrounds: Mapping[str, Any], ranked: Ranked, target: Target
) -> np.ndarray | None:
    """Return the fits of hits, (K,), None without a background.

    A fit is at least that of each image with a lower cosine among the nearest, as many for any
    number of hits. backgrounds: the fact, by kind of query, perhaps empty.
    """
    fields = backgrounds.get("image" if target.by_image else "text")
    if fields is None or target.vector_d is None or ranked.nearest is None:
        return None
    nearest = ranked.nearest
    background = Background(**fields)
    fit_K = _fits(database, background, Nearest(ranked.slots_K, ranked.scores_K), target)
    nearest_fits = _fits(database, background, nearest, target)
    # nearest first, so the best fit among an image and those with lower cosines is to its right
    best_from_here = np.maximum.accumulate(nearest_fits[::-1])[::-1]
    first_lower_K = np.searchsorted(-nearest.scores_K, -ranked.scores_K, side="right")
    has_lower_K = first_lower_K < len(best_from_here)
    fit_K[has_lower_K] = np.maximum(fit_K[has_lower_K], best_from_here[first_lower_K[has_lower_K]])
    return fit_K


def _fits(database: Database, background: Background, slots: Nearest, target: Target) -> np.ndarray:
    """Return the share of background scores below that of each slot, (K,)."""
    assert target.vector_d is not None
    mean_d = np.array(background.mean, np.float32)
    image_Kd = database.images.take(slots.slots_K)
    if target.by_image:
        score_K = _cosines(image_Kd - mean_d, target.vector_d[None] - mean_d)[:, 0]
    else:
        assert background.cosine_spread is not None
        assert background.known_spread is not None
        cosine_K = slots.scores_K - image_Kd @ mean_d
        score_K = _z_score(cosine_K, background.cosine_spread)
        score_K += _z_score(target.known, background.known_spread)
    return np.searchsorted(background.scores, score_K) / len(background.scores)


def _cosines(first_Ad: np.ndarray, second_Bd: np.ndarray) -> np.ndarray:
    """Return the cosines of all pairs, (A, B); 0 for vectors of zeros."""
    length_A1 = np.linalg.norm(first_Ad, axis=1, keepdims=True)
    length_B1 = np.linalg.norm(second_Bd, axis=1, keepdims=True)
    return first_Ad @ second_Bd.T / np.maximum(length_A1 * length_B1.T, 1e-12)
