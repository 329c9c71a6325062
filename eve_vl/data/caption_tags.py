"""Words and phrases of captions that people may search for."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from eve_vl.data.caption_augmentation import phrases_of

TAG_ROWS, TAG_SHARE, MAX_TAGS = (
    4,
    0.15,
    100,
)  # a tag's images: at least, at most as a share; most tags


def common_tags(captions: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """Return words and phrases that people may search for, with their images.

    captions: of each image. A tag stands in the captions of TAG_ROWS images or more, and of at most TAG_SHARE of all, which
    leaves out words such as `the`, and gives none for few images. Of more than MAX_TAGS tags some are chosen, evenly in
    alphabetical order.
    """
    words_of = [[re.findall(r"\w+", caption.casefold()) for caption in given] for given in captions]
    images_of: defaultdict[str, set[int]] = defaultdict(set)
    for image, (given, lists) in enumerate(zip(captions, words_of, strict=True)):
        parts = (
            re.findall(r"\w+", part.casefold()) for caption in given for part in phrases_of(caption)
        )
        for tag in {
            *(" ".join(part) for part in parts),
            *(word for words in lists for word in words),
        }:
            images_of[tag].add(image)
    most = TAG_SHARE * len(captions)
    tags = sorted(
        tag for tag, images in images_of.items() if TAG_ROWS <= len(images) <= most and len(tag) > 1
    )
    tags = [
        tags[place]
        for place in np.unique(np.linspace(0, len(tags) - 1, min(MAX_TAGS, len(tags))).astype(int))
    ]
    spaced = [" ".join(f" {' '.join(words)} " for words in lists) for lists in words_of]
    return {
        tag: tuple(image for image, text in enumerate(spaced) if f" {tag} " in text) for tag in tags
    }
