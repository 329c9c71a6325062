"""What a search asks for: options, query vector, filter, matching scores.

Letters: N slots, Q queries, P image–text pairs, B of them at a time, T text tokens, d width of features.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from eve_vl.config import InputConfig
from eve_vl.data.image_refs import ImagePixels
from eve_vl.data.source_names import absolute
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.predict.inputs import GivenImage, ImageLike, chunked, given_image, given_text, is_source
from eve_vl.search.database import NO_CAPTION, Database, index_errors
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.frozen import Frozen

AT_ONCE = 64  # texts or pairs
NOTHING_LEFT = (
    1e-3  # length of a query's vector, a sum of vectors of length 1: below it, rounding decides
)
UNKNOWN = "[UNK]"
BY = ("both", "words", "vectors")
MOST_WORDS = 32  # of a query, that are looked up
PART = re.compile(
    r"""(?<!\S)(-?)(?:(\d(?:\.\d+)?):(?!(?i:[ap]\.?m)\b))?(?:"([^"]*)"(?!\S)|(\S+))"""
)
EDGES = re.compile(r"^[\W_]+|[\W_]+$")


class Query(Frozen):
    """A parsed query, such as `red car`, `"fire engine" -toy` or `2:cat grass`."""

    text: str = ""
    """Its parts without a weight."""
    parts: tuple[tuple[str, float], ...] = ()
    """Texts of its vector with their weights, negative ones of those to avoid."""
    terms: tuple[tuple[str, float], ...] = ()
    """Words and quoted phrases to look up, with their weights."""
    phrases: tuple[str, ...] = ()
    """The quoted ones of the terms."""
    is_plain: bool = True
    """Whether it has neither quotes, nor weights, nor parts to avoid."""

    @classmethod
    def of(cls, given: str) -> "Query":
        """Parse a query; every text is one."""
        plain, parts, terms, phrases, is_plain = [], [], {}, [], True
        for part in PART.finditer(given):
            minus, number, phrase, word = part.groups()
            own, weight = (word or phrase or "").strip(), float(number or 1)
            if weight == 0 or not (
                any(map(str.isalnum, own)) if phrase else own[:1].isalpha()
            ):  # as in 16:9, - or 5"
                minus, number, own, phrase, weight = "", None, part[0], None, 1.0
            is_plain &= not (minus or number or phrase)
            if minus or number:
                parts.append((own, -weight if minus else weight))
            else:
                plain.append(own)
            if not minus and (term := EDGES.sub("", own)):
                terms.setdefault(term.lower(), (term, weight))
                phrases += [term] * (bool(phrase) and term.lower() not in map(str.lower, phrases))
        text = given if is_plain else " ".join(plain)
        parts = ([(text, 1.0)] if text else []) + parts
        words = (*terms.values(),)[:MOST_WORDS]
        return cls(
            text=text,
            parts=(*parts,),
            terms=words,
            phrases=(*phrases[:MOST_WORDS],),
            is_plain=is_plain,
        )

    @property
    def excluded(self) -> list[str]:
        """The texts to avoid."""
        return [text for text, weight in self.parts if weight < 0]


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


class SearchOptions(Frozen):
    """Options of a search. Raises UserError for a number that is too small."""

    by: str = "both"
    """How to search for a text: by the `words` of captions, file names and columns, by `vectors`, or by `both`."""
    min_score: float = 0.0
    """Least `fit` of an image without the query's words, 0 to 1."""
    captions: bool = False
    """Whether to search captions instead of images."""
    top: int = 20
    """Number of hits."""
    rerank: int | None = None
    """Candidates that the matching head orders again, for a text that searches images or an image that searches captions; 0:
    none; default: as validation chose for the run."""
    folder: str | Path | None = None
    """Only images in this folder."""
    where: Mapping[str, str] | None = None
    """Only images of rows in which these columns have these values."""

    def __post_init__(self):
        if self.top < 1 or (self.rerank or 0) < 0:
            raise UserError(
                f"top {self.top} is not positive"
                if self.top < 1
                else f"rerank {self.rerank} is negative"
            )
        if self.by not in BY:
            raise UserError(f"by {nearest(self.by, BY)}")
        has_fit = not self.captions and self.by != "words"
        if not 0 <= self.min_score <= has_fit:
            fix = (
                "give a number from 0 to 1"
                if has_fit
                else "only images found by vectors have a fit"
            )
            raise UserError(f"min_score {self.min_score} has no effect; {fix}")


class Filter(NamedTuple):
    """Filter of a search, as SQL."""

    sql: str
    """Test of a row of `image`; for captions of `caption` joined to it."""
    values: tuple[Any, ...]
    """Values of its question marks."""
    slots: str
    """SQL of the slots that pass."""


def filter_of(how: SearchOptions) -> Filter:
    """Return the filter for a folder and for values of columns; neither: all pass."""
    tests, values, where = ["TRUE"], [], how.where or {}
    if how.folder is not None:
        prefix = os.path.join(absolute(Path(how.folder)), "")  # noqa: PTH118
        tests.append("substr(name, 1, ?) = ?")
        values += [len(prefix), prefix]
    if where:
        has = " AND ".join(
            ["EXISTS (SELECT 1 FROM json_each(caption.columns) WHERE key = ? AND value = ?)"]
            * len(where)
        )
        tests.append(
            has
            if how.captions
            else f"EXISTS (SELECT 1 FROM caption WHERE caption.image = image.id AND {has})"
        )
        values += [part for pair in where.items() for part in pair]
    test = " AND ".join(tests)
    slots = f"SELECT slot FROM image WHERE slot IS NOT NULL AND {test}"
    if not values:
        slots = f"SELECT slot FROM {'text' if how.captions else 'feature'}"
    elif how.captions:
        slots = "SELECT caption.slot FROM caption JOIN image ON image.id = image"
        slots += f" WHERE caption.slot != {NO_CAPTION} AND {test}"
    return Filter(test, tuple(values), slots)


_OF_CAPTIONS = (
    f"SELECT image.slot FROM caption JOIN image ON id = image WHERE caption.slot != {NO_CAPTION}"
)
CAPTIONED = Filter("TRUE", (), f"{_OF_CAPTIONS} AND image.slot IS NOT NULL")
"""Images with a caption."""


def slots_that_pass(database: Database, chosen: Filter = CAPTIONED) -> np.ndarray:
    """Return which slots pass a filter, bool (N,).

    chosen: by default the images with captions.
    """
    with index_errors(database.folder):
        slots = np.fromiter(
            (slot for (slot,) in database.db.execute(chosen.slots, chosen.values)), dtype=np.int64
        )
    is_wanted_N = np.zeros(slots.max(initial=-1) + 1, dtype=bool)
    is_wanted_N[slots] = True
    return is_wanted_N


def encode_queries(
    encoder: Any, queries: Sequence[Query], images: Sequence[ImageLike | None], captions: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of queries, float32 (Q, d), and known shares of texts, (Q,).

    A vector is the weighted sum of its parts and its image, of length 1. encoder: an `Eve`. Raises UserError.
    """
    parts = [
        (row, text, weight) for row, query in enumerate(queries) for text, weight in query.parts
    ]
    if (parts or captions) and not encoder.task.is_comparable:
        problem = "images and texts of this run do not compare, so it finds only images by an image"
        fix = "to search by text: eve finetune search_small --init RUN --data.train FOLDER"
        raise UserError(f"{encoder.run.shown}: {problem}; {fix}")
    query_Qd, known = (
        np.zeros((len(queries), encoder.task.feature_dim), np.float32),
        [[1.0] for _ in queries],
    )
    if parts:
        features, shares = encode_texts(encoder, [text for _, text, _ in parts])
        for (row, _, weight), feature_d, share in zip(parts, features, shares, strict=True):
            query_Qd[row] += weight * feature_d
            known[row] += [share] * (weight > 0)
    if by_row := {row: image for row, image in enumerate(images) if image is not None}:
        for row, image in by_row.items():
            given = given_image(image, f"image {row}" if len(images) > 1 else "image")
            if is_source(image):
                raise UserError(f"{given.where}: holds rows and is no image; name one image's file")
        only = [*by_row.values()]
        query_Qd[[*by_row]] += encoder.encode_image(only[0] if len(only) == 1 else only)
    lengths_Q1 = np.linalg.norm(query_Qd, axis=1, keepdims=True)
    if (lengths_Q1 < NOTHING_LEFT).any():
        raise UserError(
            "nothing is left to search for: the excluded words cancel the query; change one of them"
        )
    return query_Qd / lengths_Q1, np.array(
        [float(np.mean(shares[1:] or shares)) for shares in known]
    )


@torch.no_grad()
def encode_texts(encoder: Any, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of texts, float32 (n, d), and their known shares, (n,).

    Raises UserError.
    """
    inputs, names = (
        encoder.inputs,
        ["text"] if len(texts) == 1 else [f"text {number}" for number in range(len(texts))],
    )
    given = map(given_text, texts, names)
    both = [known_ids(text, encoder.tokenizer, inputs.config.max_text_tokens) for text in given]
    batches = chunked((ids for ids, _ in both), AT_ONCE)
    parts = [encoder.task.text_features(*inputs.padded(some)).cpu().numpy() for some in batches]
    return np.concatenate(parts), np.array([share for _, share in both])


def known_ids(text: str, tokenizer: Tokenizer, longest: int) -> tuple[np.ndarray, float]:
    """Return the first `longest` token ids of a text, and its known share.

    Ids are int64 (T,), [CLS] first. The known share is 1 if each word is one token, and falls with the number of pieces of a
    word: the sum of squared lengths of tokens by that of words. Raises UserError if the tokens hold no letter (of a text
    without letters: sign) as more than single bytes: features of unknown letters would match anything.
    """
    encoding, has_letters = tokenizer.encoding(text, longest), any(map(str.isalnum, text))
    tokens = zip(
        encoding.offsets, encoding.ids[:longest], encoding.special_tokens_mask, strict=False
    )
    unknown = tokenizer.backend.token_to_id(UNKNOWN)
    spans = [span for span, token, special in tokens if token != unknown and not special]
    tokens_of = Counter(place for start, end in spans for place in range(start, end))
    places = [
        place
        for place, sign in enumerate(text)
        if (sign.isalnum() if has_letters else not sign.isspace())
    ]
    if places and not any(tokens_of[place] == 1 for place in places):
        unit = "letter" if has_letters else "sign"
        problem = f"no {unit} of its first {longest - 1} tokens is known to the run's tokenizer"
        raise UserError(f"{text!r}: {problem}; use the language of its training")
    words = sum(
        len(word) ** 2
        for word in re.findall(r"\w+", text[: max((end for _, end in spans), default=0)])
    )
    pieces = sum(len(text[start:end].strip()) ** 2 for start, end in spans)
    return np.array(tokenizer.cut(encoding.ids, longest, tokenizer.end_id)), min(
        1.0, pieces / max(words, 1)
    )


def shrunk(image: GivenImage, sizes: InputConfig) -> GivenImage:
    """Return an image as the run sees it, decoded. Raises UserError."""
    return GivenImage(
        ref=ImagePixels(pixels=image.pixels(sizes).permute(1, 2, 0).contiguous().numpy()),
        where=image.where,
    )


@torch.no_grad()
def match_scores(encoder: Any, pairs: Iterable[tuple[GivenImage, str, float]]) -> np.ndarray:
    """Return re-ranking scores (task.rerank_by), float32 (P,).

    pairs: image, text and their cosine.

    encoder: an `Eve` of a run with a matching head.
    """
    task, inputs = encoder.task, encoder.inputs
    parts = [np.zeros(0, np.float32)]
    for some in chunked(pairs, AT_ONCE):
        images, texts, cosines = zip(*some, strict=True)
        batch = inputs.pairs(images, texts)
        cosine_B = torch.tensor(cosines, device=batch.ids_BT.device)
        parts.append(
            task.pair_scores(batch.images_BCHW, batch.ids_BT, batch.is_padding_BT, cosine_B)
            .cpu()
            .numpy()
        )
    return np.concatenate(parts)
