"""The fit of a hit: the share of background scores below its own.

Background scores are measured when images are indexed. Cosines of different queries do not compare: nonsense may have higher
ones than words. So the background of texts is made of nonsense: captions with the letters of each word shuffled. Their mean
vector is subtracted from a query, because some images are near to any text. The score of a hit is the sum of two z-scores among
the background: its cosine after this subtraction, and the share of the query that is known to the run's tokenizer. The
background of images is the cosines of pairs of images after their mean is subtracted.

Letters: N slots, S of them sampled, Q background queries, K hits, d width of features.
"""

import contextlib
import random
import re
from typing import Any

import numpy as np

from eve_vl.search.database import Database, index_errors
from eve_vl.search.nearest import topk_exact
from eve_vl.search.query import Target, encode_texts, known_ids
from eve_vl.search.words import Ranked
from eve_vl.utils.errors import UserError

FACT = "background"
NUM_QUERIES = 300
NUM_IMAGES = 256
NUM_CAPTIONS = 2000  # captions that the words are taken from, at most
FITS = 0.97  # a hit with a larger fit is like the query
WORD = re.compile(r"[^\W\d_]{3,}")


def measure_background(database: Database, encoder: Any, is_used_N: np.ndarray) -> None:
    """Measure and store the background of an index that has none.

    encoder: an `Eve`. Raises DamagedError.
    """
    if not is_used_N.any() or database.read_fact(FACT) is not None:
        return
    slots, rng = np.flatnonzero(is_used_N), np.random.default_rng(0)
    sample_Sd = database.images.take(np.sort(rng.choice(slots, min(NUM_IMAGES, len(slots)), replace=False)))
    mean_d = sample_Sd.mean(0)
    cosines = _cosines(sample_Sd - mean_d, sample_Sd - mean_d)[~np.eye(len(sample_Sd), dtype=bool)]
    facts: dict[str, Any] = {}
    if len(cosines):
        facts["image"] = {"mean": mean_d.tolist(), "scores": np.quantile(cosines, np.linspace(0, 1, 101)).tolist()}
    if encoder.task.is_comparable and (texts := _nonsense(database, encoder)):
        query_Qd, known_Q = encode_texts(encoder, texts)
        mean_d = query_Qd.mean(0)
        best_Q = topk_exact(database.images.first(len(is_used_N)), query_Qd - mean_d, 1, is_used_N)[1][:, 0]
        spread = [[float(each.mean()), float(each.std()) + 1e-6] for each in (best_Q, known_Q)]
        scores = sum((each - mean) / std for each, (mean, std) in zip((best_Q, known_Q), spread, strict=True))
        facts["text"] = {"mean": mean_d.tolist(), "spread": spread, "scores": np.sort(scores).tolist()}
    with index_errors(database.folder), database.db:
        database.write_fact(FACT, facts)


def _nonsense(database: Database, encoder: Any) -> list[str]:
    """Return texts of one to three words with shuffled letters.

    Words come from captions, else from the tokenizer.
    """
    rng, tokenizer = random.Random(0), encoder.tokenizer
    some = "SELECT text FROM text WHERE slot % (SELECT count(*) / ? + 1 FROM text) = 0 ORDER BY slot"
    words = [word for (text,) in database.rows(some, [NUM_CAPTIONS]) for word in WORD.findall(text.lower())]
    if len({*words}) < NUM_QUERIES:
        words += [word for token in range(tokenizer.vocab_size) for word in WORD.findall(tokenizer.word(token))]
    texts = []
    for num in rng.choices(range(1, 4), k=NUM_QUERIES) if words else ():
        text = " ".join("".join(rng.sample(word, len(word))) for word in rng.choices(words, k=num))
        with contextlib.suppress(UserError):  # the tokenizer knows none of its letters
            known_ids(text, tokenizer, encoder.inputs.config.max_text_tokens)
            texts.append(text)
    return texts


def fit_of(database: Database, background: dict[str, Any], ranked: Ranked, target: Target) -> np.ndarray | None:
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
    length_N1, other_N1 = (np.linalg.norm(each, axis=1, keepdims=True) for each in (one_Nd, other_Nd))
    return one_Nd @ other_Nd.T / np.maximum(length_N1 * other_N1.T, 1e-12)
