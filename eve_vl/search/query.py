"""What a search asks for: the vector of a query, the filter of a folder and of columns, and matching scores.

Letters: N slots, Q queries, P image–text pairs, B of them at a time, T text tokens, d width of features.
"""

import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from eve_vl.data.readers import absolute
from eve_vl.data.records import ImagePixels
from eve_vl.predict.inputs import GivenImage, ImageLike, chunked, given_image, given_text, is_source
from eve_vl.search.database import NO_CAPTION, Database, index_errors
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import is_text

AT_ONCE = 64  # texts or pairs
NOTHING_LEFT = 1e-3  # length of a query's vector, a sum of vectors of length 1: below it, rounding decides
MOST_MASKS = 8  # masks of the latest filters that are kept; one takes a megabyte for a million images
UNKNOWN = "[UNK]"


class Filter(NamedTuple):
    """SQL about a row of `image` (for captions: of `caption` joined to it), and the values of its question marks."""

    sql: str
    values: tuple[Any, ...]


def filter_of(folder: str | Path | None, where: Mapping[str, str], captions: bool = False) -> Filter:
    """Return the filter for images, or captions, in a folder and of rows with some values; neither: all."""
    tests, values = ["TRUE"], []
    if folder is not None:
        prefix = os.path.join(absolute(Path(folder)), "")  # noqa: PTH118
        tests.append("substr(name, 1, ?) = ?")
        values += [len(prefix), prefix]
    if where:
        has = " AND ".join(["EXISTS (SELECT 1 FROM json_each(caption.columns) WHERE key = ? AND value = ?)"] * len(where))
        tests.append(has if captions else f"EXISTS (SELECT 1 FROM caption WHERE caption.image = image.id AND {has})")
        values += [part for pair in where.items() for part in pair]
    return Filter(" AND ".join(tests), tuple(values))


class FilterMasks:
    """The slots that pass a filter, looked up once per version of the index."""

    def __init__(self, database: Database):
        self.database = database
        self._mask = functools.lru_cache(maxsize=MOST_MASKS)(self._look_up)

    def of(self, version: int, chosen: Filter, captions: bool = False) -> np.ndarray:
        """Return which slots pass a filter, bool (N,)."""
        if not chosen.values:
            query = f"SELECT slot FROM {'text' if captions else 'feature'}"
        elif captions:
            captioned = f"FROM caption JOIN image ON image.id = image WHERE caption.slot != {NO_CAPTION}"
            query = f"SELECT caption.slot {captioned} AND {chosen.sql}"
        else:
            query = f"SELECT slot FROM image WHERE slot IS NOT NULL AND {chosen.sql}"
        return self._mask(version, query, chosen.values)

    def _look_up(self, _: int, query: str, values: tuple[Any, ...]) -> np.ndarray:
        with index_errors(self.database.folder):
            slots = np.fromiter((slot for (slot,) in self.database.db.execute(query, values)), dtype=np.int64)
        is_wanted_N = np.zeros(slots.max(initial=-1) + 1, dtype=bool)
        is_wanted_N[slots] = True
        return is_wanted_N


def refuse_invalid_utf8(**given: Sequence[str]) -> None:
    """Raise UserError for a text with half of a surrogate pair: no tokenizer, database or file takes it."""
    for name, texts in given.items():
        if bad := [text for text in texts if not is_text(text)]:
            raise UserError(f"{name}: {bad[0]!r} is not valid UTF-8; correct it")


def encode_queries(
    encoder: Any, queries: Sequence[str], images: Sequence[ImageLike | None], without: str, captions: bool
) -> np.ndarray:
    """Return the vectors of queries, float32 (Q, d), each of length 1: text + image − `without`.

    encoder: an `Eve`. Raises UserError.
    """
    if not all(text or image is not None for text, image in zip(queries, images, strict=True)):
        raise UserError("nothing to search for: give a text, an image or both")
    if (any(queries) or without or captions) and not encoder.task.is_comparable:
        raise UserError(
            f"{encoder.run.shown}: images and texts of this run do not compare, so it finds only images by an image; "
            "to search by text: eve finetune retrieval (demo_retrieval for a small run) --init RUN"
        )
    query_Qd = np.zeros((len(queries), encoder.task.feature_dim), np.float32)
    if texts := {row: text for row, text in enumerate(queries) if text}:
        query_Qd[[*texts]] += _encode_texts(encoder, [*texts.values()])
    if by_row := {row: image for row, image in enumerate(images) if image is not None}:
        for row, image in by_row.items():
            given = given_image(image, f"image {row}" if len(images) > 1 else "image")
            if is_source(image):
                raise UserError(f"{given.where}: holds rows and is no image; name one image's file")
        only = [*by_row.values()]
        query_Qd[[*by_row]] += encoder.encode_image(only[0] if len(only) == 1 else only)
    query_Qd -= _encode_texts(encoder, [without]) if without else 0
    lengths_Q1 = np.linalg.norm(query_Qd, axis=1, keepdims=True)
    if (lengths_Q1 < NOTHING_LEFT).any():
        raise UserError("nothing is left to search for: `without` cancels the query; change one of them")
    return query_Qd / lengths_Q1


@torch.no_grad()
def _encode_texts(encoder: Any, texts: list[str]) -> np.ndarray:
    """Return the features of texts, float32 (n, d). Raises UserError for a text that the tokenizer does not know."""
    inputs = encoder.inputs
    names = ["text"] if len(texts) == 1 else [f"text {number}" for number in range(len(texts))]
    ids = [
        _known_ids(given_text(text, name), encoder.tokenizer.backend, inputs.config.max_text_tokens)
        for text, name in zip(texts, names, strict=True)
    ]
    parts = [encoder.task.text_features(*inputs.padded(some)).cpu().numpy() for some in chunked(ids, AT_ONCE)]
    return np.concatenate(parts)


def _known_ids(text: str, backend: Any, longest: int) -> np.ndarray:
    """Return the first `longest` token ids of a text, int64 (T,), [CLS] first.

    Raises UserError if the tokenizer knows none of the text's letters: features of such a text would match anything.
    """
    encoding, unit = backend.encode(text), "letter" if any(map(str.isalnum, text)) else "sign"
    tokens = [*zip(encoding.offsets, encoding.ids, encoding.special_tokens_mask, strict=True)]
    unknown = backend.token_to_id(UNKNOWN)
    if _knows(text, unit, unknown, tokens[:longest]):
        return np.array(encoding.ids[:longest])
    problem = f"no {unit} of this is known to the run's tokenizer; use the language of its training"
    if _knows(text, unit, unknown, tokens):
        problem = (
            f"only {longest - 1} tokens are read, and no {unit} of these is known to the run's tokenizer; "
            "begin with words of the language of its training"
        )
    raise UserError(f"{text!r}: {problem}")


def _knows(text: str, unit: str, unknown: int | None, tokens: Iterable[tuple[tuple[int, int], int, int]]) -> bool:
    """Whether tokens (span, id, is special) hold a letter, or sign, of a text as more than single bytes."""
    spans = [span for span, token, special in tokens if token != unknown and not special]
    tokens_of = Counter(place for start, end in spans for place in range(start, end))
    places = [place for place, sign in enumerate(text) if (sign.isalnum() if unit == "letter" else not sign.isspace())]
    return not places or any(tokens_of[place] == 1 for place in places)


def shrunk(image: GivenImage, size: int) -> GivenImage:
    """Return an image as the run sees it, decoded. Raises UserError."""
    return GivenImage(ref=ImagePixels(pixels=image.pixels(size).permute(1, 2, 0).contiguous().numpy()), where=image.where)


@torch.no_grad()
def match_scores(encoder: Any, pairs: Iterable[tuple[GivenImage, str, float]]) -> np.ndarray:
    """Return the re-ranking scores (task.rerank_by) of pairs of image, text and their cosine, float32 (P,).

    encoder: an `Eve` of a run with a matching head.
    """
    task, inputs = encoder.task, encoder.inputs
    parts = [np.zeros(0, np.float32)]
    for some in chunked(pairs, AT_ONCE):
        images, texts, cosines = zip(*some, strict=True)
        batch = inputs.pairs(images, texts)
        cosine_B = torch.tensor(cosines, device=batch.ids_BT.device)
        parts.append(task.pair_scores(batch.images_BCHW, batch.ids_BT, batch.is_padding_BT, cosine_B).cpu().numpy())
    return np.concatenate(parts)
