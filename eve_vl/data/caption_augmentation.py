"""Augmentation of training captions (data.caption_augment)."""

import re

import numpy as np

WORD_DROP = 0.2  # probability
PHRASE_END = re.compile(r",(?!\d)|;|:\s")  # not in 1,000 or 10:30


def augmented_caption(caption: str, how: str, rng: np.random.Generator) -> str:
    """Return a caption with fewer words or phrases, or in another order.

    how: data.caption_augment.
    """
    if how == "none" or not caption.split():
        return caption
    if how == "phrases":
        return _augment_phrases(caption, rng)
    return _augment_words(caption, rng)


def _augment_phrases(caption: str, rng: np.random.Generator) -> str:
    phrases = phrases_of(caption)
    order = rng.permutation(len(phrases))
    if rng.random() < 0.5:
        order = order[:1]
    return ", ".join(phrases[place] for place in order) or caption


def _augment_words(caption: str, rng: np.random.Generator) -> str:
    words = caption.split()
    places = np.flatnonzero(rng.random(len(words)) >= WORD_DROP)
    if not len(places):
        places = rng.integers(len(words), size=1)
    if rng.random() < 0.5:
        places = rng.permutation(places)
    return " ".join(words[place] for place in places)


def phrases_of(caption: str) -> list[str]:
    """Return the parts of a caption, as of a list such as `map, folded; paper`."""
    phrases = [phrase.strip() for phrase in PHRASE_END.split(caption)]
    return [phrase for phrase in phrases if phrase]
