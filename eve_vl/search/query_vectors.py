"""Vectors of queries: weighted sums of the features of texts and images.

Letters: Q queries, T text tokens, d width of features.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.predict.batching import chunked
from eve_vl.predict.inputs import is_source
from eve_vl.predict.user_images import ImageLike, user_image
from eve_vl.predict.user_texts import user_text
from eve_vl.search.query import Query
from eve_vl.search.search_options import SearchOptions
from eve_vl.utils.errors import UserError

TEXTS_AT_ONCE = 64
# length of a query's vector, a sum of vectors of length 1: below it, rounding decides
LEAST_LENGTH = 1e-3
UNKNOWN = "[UNK]"


class Target(NamedTuple):
    """What the images or captions of a query are compared with."""

    vector_d: np.ndarray | None = None
    """Its vector, float32, of length 1; None: only its words count."""
    known: float = 1.0
    """The known share of its text, see `known_ids`."""
    by_image: bool = False
    """Whether an image was given."""
    problem: UserError | None = None
    """Why it has no vector."""


def search_targets(
    encoder: Any,
    queries: Sequence[Query],
    images: Sequence[ImageLike | None],
    options: SearchOptions,
) -> list[Target]:
    """Return the targets of queries; those without a vector are searched by words alone.

    encoder: an `Eve`. Raises UserError.
    """
    for query, image in zip(queries, images, strict=True):
        if not query.parts and image is None:
            raise UserError("nothing to search for: give a text, an image or both")
    if options.by == "words":
        for query, image in zip(queries, images, strict=True):
            if image is not None or not query.terms:
                raise UserError(
                    "by words: only a query of words can be searched by words alone; give no image"
                )
        return [Target() for _ in queries]

    try:
        vectors_Qd, known_Q = encode_queries(encoder, queries, images, options.captions)
    except UserError as error:
        if len(queries) > 1:
            return _targets_one_by_one(encoder, queries, images, options, error)
        if options.by == "vectors" or images[0] is not None or not queries[0].terms:
            raise
        return [Target(problem=error)]
    return [
        Target(vector_d, known, image is not None)
        for vector_d, known, image in zip(vectors_Qd, known_Q, images, strict=True)
    ]


def _targets_one_by_one(
    encoder: Any,
    queries: Sequence[Query],
    images: Sequence[ImageLike | None],
    options: SearchOptions,
    error: UserError,
) -> list[Target]:
    """Return the targets of queries that were refused together.

    Raises the first error, which names the row.
    """
    targets = []
    for query, image in zip(queries, images, strict=True):
        try:
            targets += search_targets(encoder, [query], [image], options)
        except UserError:
            raise error from None
    return targets


def encode_queries(
    encoder: Any, queries: Sequence[Query], images: Sequence[ImageLike | None], captions: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of queries, float32 (Q, d), and known shares of texts, (Q,).

    A vector is the weighted sum of its parts and its image, of length 1. encoder: an `Eve`.
    captions: whether captions are searched. Raises UserError.
    """
    has_texts = any(query.parts for query in queries)
    if (has_texts or captions) and not encoder.task.is_comparable:
        raise UserError(
            f"{encoder.run.shown}: images and texts of this run do not compare, so it finds only "
            "images by an image; to search by text: eve finetune search_small --init RUN "
            "--data.train FOLDER"
        )
    vector_Qd = np.zeros((len(queries), encoder.task.feature_dim), np.float32)
    known_Q = np.ones(len(queries))
    if has_texts:
        _add_texts(encoder, queries, vector_Qd, known_Q)
    if any(image is not None for image in images):
        _add_images(encoder, images, vector_Qd)

    length_Q1 = np.linalg.norm(vector_Qd, axis=1, keepdims=True)
    if (length_Q1 < LEAST_LENGTH).any():
        raise UserError(
            "nothing is left to search for: the excluded words cancel the query; change one of them"
        )
    return vector_Qd / length_Q1, known_Q


def _add_texts(
    encoder: Any, queries: Sequence[Query], vector_Qd: np.ndarray, known_Q: np.ndarray
) -> None:
    """Add the features of texts to the vectors of queries, and set the known shares.

    The known share of a query is the mean of its texts with a positive weight, 1 without any.
    """
    texts = [text for query in queries for text, _ in query.parts]
    features_d, shares = encode_texts(encoder, texts)
    features_and_shares = zip(features_d, shares, strict=True)
    for index, query in enumerate(queries):
        positive_shares = []
        for _, weight in query.parts:
            feature_d, share = next(features_and_shares)
            vector_Qd[index] += weight * feature_d
            if weight > 0:
                positive_shares.append(share)
        if positive_shares:
            known_Q[index] = np.mean(positive_shares)


def _add_images(encoder: Any, images: Sequence[ImageLike | None], vector_Qd: np.ndarray) -> None:
    """Add the features of images to the vectors of queries. Raises UserError."""
    image_of_query = {row: image for row, image in enumerate(images) if image is not None}
    for row, image in image_of_query.items():
        where = user_image(image, f"image {row}" if len(images) > 1 else "image").where
        if is_source(image):
            raise UserError(f"{where}: holds rows and is no image; name one image's file")
    user_images = list(image_of_query.values())
    # a single image is named without a number in messages
    features = encoder.encode_image(user_images[0] if len(user_images) == 1 else user_images)
    vector_Qd[list(image_of_query)] += features


@torch.no_grad()
def encode_texts(encoder: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of texts, float32 (n, d), and their known shares, (n,).

    encoder: an `Eve`. Raises UserError.
    """
    ids_of_texts = []
    shares = []
    for number, text in enumerate(texts):
        where = "text" if len(texts) == 1 else f"text {number}"
        checked_text = user_text(text, where)
        max_tokens = encoder.inputs.config.max_text_tokens
        ids_T, share = known_ids(checked_text, encoder.tokenizer, max_tokens)
        ids_of_texts.append(ids_T)
        shares.append(share)
    features = []
    for batch in chunked(ids_of_texts, TEXTS_AT_ONCE):
        padded = encoder.inputs.padded(batch)
        features.append(encoder.task.text_features(*padded).cpu().numpy())
    return np.concatenate(features), np.array(shares)


def known_ids(text: str, tokenizer: Tokenizer, max_tokens: int) -> tuple[np.ndarray, float]:
    """Return the first token ids of a text, int64 (T,), [CLS] first, and its known share.

    The known share is 1 if each word is one token, and falls with the number of pieces of a word:
    the sum of squared lengths of tokens by that of words. Raises UserError if the tokens hold no
    letter (of a text without letters: sign) as more than single bytes: features of unknown letters
    would match anything.
    """
    encoding = tokenizer.encoding(text, max_tokens)
    unknown = tokenizer.backend.token_to_id(UNKNOWN)
    tokens = zip(
        encoding.offsets, encoding.ids[:max_tokens], encoding.special_tokens_mask, strict=False
    )
    spans = [span for span, token, special in tokens if token != unknown and not special]
    _require_known_letter(text, spans, max_tokens)

    end = max((end for _, end in spans), default=0)
    words = re.findall(r"\w+", text[:end])
    squares_of_words = sum(len(word) ** 2 for word in words)
    squares_of_tokens = sum(len(text[start:end].strip()) ** 2 for start, end in spans)
    share = min(1.0, squares_of_tokens / max(squares_of_words, 1))
    return np.array(tokenizer.cut(encoding.ids, max_tokens, tokenizer.end_id)), share


def _require_known_letter(text: str, spans: Sequence[tuple[int, int]], max_tokens: int) -> None:
    """Raise UserError if no letter of a text is in exactly one known token.

    spans: of the known tokens. The bytes of an unknown letter are tokens with the same span.
    """
    has_letters = any(map(str.isalnum, text))
    num_tokens = Counter(position for start, end in spans for position in range(start, end))
    if has_letters:
        positions = [position for position, letter in enumerate(text) if letter.isalnum()]
    else:
        positions = [position for position, sign in enumerate(text) if not sign.isspace()]
    if positions and not any(num_tokens[position] == 1 for position in positions):
        unit = "letter" if has_letters else "sign"
        raise UserError(
            f"{text!r}: no {unit} of its first {max_tokens - 1} tokens is known to the run's "
            "tokenizer; use the language of its training"
        )
