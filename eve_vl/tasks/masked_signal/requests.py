"""The calls of pre-trained runs."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from tyro.conf import Positional

from eve_vl.predict.request_fields import Images, ShownImage, Text, Texts
from eve_vl.predict.requests import Request


class FillMask(Request):
    """Guess the tokens behind [MASK]: eve fill-mask RUN IMAGE "a [MASK] circle".

    All masks of a caption are guessed at once. Lists are answered row by row.
    """

    name = "fill_mask"
    title = "Fill in"
    by_rows = True
    examples: ClassVar[Mapping[str, str]] = {"text": "a drawing of a [MASK]"}
    image: Positional[Images]
    """Image."""
    text: Positional[Texts]
    """Caption with one or more [MASK]."""
    top: int = 5
    """Number of guesses to show for each [MASK]."""


class Reconstruct(Request):
    """Mask and reconstruct patches: eve reconstruct RUN IMAGE "CAPTION".

    Where targets were normalised per patch, each masked patch gets its true mean and contrast.
    """

    name = "reconstruct"
    has_json = False
    image_file = "reconstruct.png"
    image: Positional[ShownImage]
    """Image."""
    text: Positional[Text]
    """Its caption."""
    share: float | None = None
    """Share of patches to mask; default: task.image_mask_ratio."""
    keep: tuple[int, ...] | None = None
    """Patches to keep instead, counted from 0 row by row."""
    seed: int = 0
    """Seed for the choice of masked patches."""

    @classmethod
    def shown_images(cls, result: Any) -> Sequence["np.ndarray"]:
        """Return the three images side by side."""
        return [result.original, result.masked, result.reconstructed]
