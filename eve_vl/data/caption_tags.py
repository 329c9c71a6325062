"""Words and phrases of captions that people may search for."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from eve_vl.data.caption_augmentation import phrases_of

TAG_ROWS = 4  # images that a tag needs
TAG_SHARE = 0.15  # most images of a tag, as a share of all
MAX_TAGS = 100


def common_tags(captions: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """Return words and phrases that people may search for, with the images whose captions have
    them.

    captions: of each image. A tag stands in the captions of TAG_ROWS images or more, and of at most
    TAG_SHARE of all, which leaves out words such as `the`, and gives none for few images. Of more
    than MAX_TAGS tags some are chosen, evenly in alphabetical order.
    """
    images_of_tag: defaultdict[str, set[int]] = defaultdict(set)
    for image, texts in enumerate(captions):
        for tag in _tags_of(texts):
            images_of_tag[tag].add(image)

    max_images = TAG_SHARE * len(captions)
    tags = []
    for tag, images in images_of_tag.items():
        if TAG_ROWS <= len(images) <= max_images and len(tag) > 1:
            tags.append(tag)
    tags = _spread_evenly(sorted(tags))

    # a phrase may also stand within a longer one
    texts_of_image = [_text_between_spaces(texts) for texts in captions]
    tagged_images = {}
    for tag in tags:
        images = [image for image, text in enumerate(texts_of_image) if f" {tag} " in text]
        tagged_images[tag] = tuple(images)
    return tagged_images


def _tags_of(captions: Sequence[str]) -> set[str]:
    """Return all words and phrases of an image's captions."""
    tags = set()
    for caption in captions:
        tags.update(_words(caption))
        tags.update(" ".join(_words(phrase)) for phrase in phrases_of(caption))
    return tags


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _text_between_spaces(captions: Sequence[str]) -> str:
    return " ".join(f" {' '.join(_words(caption))} " for caption in captions)


def _spread_evenly(tags: list[str]) -> list[str]:
    places = np.linspace(0, len(tags) - 1, min(MAX_TAGS, len(tags)))
    return [tags[place] for place in np.unique(places.astype(int))]
