"""Re-ranking: the matching head orders the first hits of a search again.

Letters: P image–text pairs, B of them at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from eve_vl.config import InputConfig
from eve_vl.data.image_refs import ImagePixels
from eve_vl.predict.user_images import ImageLike, UserImage, user_image
from eve_vl.search.hits import Hit
from eve_vl.search.query import Query
from eve_vl.search.search_options import SearchOptions
from eve_vl.tasks.contrast.pair_scores import in_chunks
from eve_vl.utils.errors import BadSampleError, UserError

PAIRS_AT_ONCE = 64

ReadImage = Callable[[int], UserImage]
"""Returns an image by its number in the index."""


class Pair(NamedTuple):
    """An image and a text that may belong together."""

    image: UserImage
    text: str
    cosine: float


def num_reranked(
    encoder: Any, text: str, image: ImageLike | None, options: SearchOptions, most_by_default: int
) -> int:
    """Return the number of candidates that a search re-ranks.

    encoder: an `Eve`. most_by_default: bound on the run's own number. Raises UserError if `rerank`
    has no effect.
    """
    is_pair = _asks_for_pairs(Query.parse(text), image, options)
    if is_pair and "match" in encoder.calls:
        if options.rerank is not None:
            return options.rerank
        return min(int(getattr(encoder.run.config.task, "rerank", 0)), most_by_default)
    if options.rerank:
        reason = "the run has no matching head"
        if not is_pair:
            reason = "only searches of images by text and of captions by image have it"
        raise UserError(f"rerank {options.rerank} has no effect: {reason}")
    return 0


def _asks_for_pairs(query: Query, image: ImageLike | None, options: SearchOptions) -> bool:
    """Return whether a search is of images by one text, or of captions by an image."""
    if options.by == "words":
        return False
    if options.captions:
        return image is not None and not query.parts
    return image is None and query.parts == ((query.text, 1.0),)


def rerank(
    encoder: Any,
    hits: Sequence[Hit],
    query: ImageLike | str,
    num: int,
    read_image: ReadImage,
    *,
    captions: bool,
) -> list[Hit]:
    """Return hits with the first `num` ordered by the matching head; unreadable images follow.

    encoder: an `Eve` of a run with a matching head. captions: whether the query is an image that
    searched captions, not a text that searched images.
    """
    sizes = encoder.run.config.input
    query_image = shrunk(user_image(query), sizes) if captions else None
    readable: list[Hit] = []
    unreadable: list[Hit] = []

    def pairs() -> Iterator[Pair]:  # lazily: one batch of images in memory
        for hit in hits[:num]:
            cosine = hit.score or 0.0
            if query_image is not None:
                pair = Pair(query_image, hit.name, cosine)
            else:
                try:
                    pair = Pair(shrunk(read_image(hit.id), sizes), str(query), cosine)
                except BadSampleError:
                    unreadable.append(hit)
                    continue
            readable.append(hit)
            yield pair

    scores = match_scores(encoder, pairs())
    matched = []
    for hit, score in zip(readable, scores, strict=True):
        matched.append(replace(hit, match=float(score)))
    matched.sort(key=lambda hit: (not hit.is_literal, -(hit.match or 0.0)))
    return [*matched, *unreadable, *hits[num:]]


def shrunk(image: UserImage, sizes: InputConfig) -> UserImage:
    """Return an image as the run sees it, decoded. Raises UserError."""
    pixels_HWC = image.pixels(sizes).permute(1, 2, 0).contiguous().numpy()
    return UserImage(ref=ImagePixels(pixels=pixels_HWC), where=image.where)


@torch.no_grad()
def match_scores(encoder: Any, pairs: Iterable[Pair]) -> np.ndarray:
    """Return re-ranking scores (task.rerank_by), float32 (P,).

    encoder: an `Eve` of a run with a matching head.
    """

    def score(chunk: Sequence[Pair]) -> torch.Tensor:
        images = [pair.image for pair in chunk]
        texts = [pair.text for pair in chunk]
        batch = encoder.inputs.pairs(images, texts)
        cosine_B = torch.tensor([pair.cosine for pair in chunk], device=batch.ids_BT.device)
        return encoder.task.pair_scores(
            batch.images_BCHW, batch.ids_BT, batch.is_padding_BT, cosine_B
        )

    return in_chunks(score, pairs, PAIRS_AT_ONCE).numpy()
