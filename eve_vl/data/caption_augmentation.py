"""Augmentation of training captions."""

import re

import numpy as np

WORD_DROP = 0.2  # probability
PHRASE_END = re.compile(r",(?!\d)|;|:\s")  # not in 1,000 or 10:30


def augmented_caption(caption: str, how: str, rng: np.random.Generator) -> str:
    """Return a caption with fewer words or phrases, or in another order.

    how: data.caption_augment.
    """
    words = caption.split()
    if how == "none" or not words:
        return caption
    if how == "phrases":
        parts = phrases_of(caption)
        kept = rng.permutation(len(parts))[: 1 if rng.random() < 0.5 else None]
        return ", ".join(parts[place] for place in kept) or caption
    kept = np.flatnonzero(rng.random(len(words)) >= WORD_DROP)
    kept = kept if len(kept) else rng.integers(len(words), size=1)
    return " ".join(
        words[place] for place in (rng.permutation(kept) if rng.random() < 0.5 else kept)
    )


def phrases_of(caption: str) -> list[str]:
    """Return the parts of a caption, as of a list such as `map, folded; paper`."""
    return [part for part in map(str.strip, PHRASE_END.split(caption)) if part]
