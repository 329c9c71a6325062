"""Images that two splits share: copies and near-duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eve_vl.data.near_duplicates import NUM_BYTES, first_near_duplicates
from eve_vl.data.source_check import CheckedImage
from eve_vl.utils.console import pluralize

MAX_NAMED = 5  # pairs in a sentence


@dataclass(frozen=True)
class SharedImage:
    """An image that is in two splits."""

    where: str
    """The row that shows it."""
    other_where: str
    """The first such row of the other split."""
    is_copy: bool
    """Whether the bytes are equal; else it is a near-duplicate."""


def shared_images(
    images: Sequence[CheckedImage], other_images: Sequence[CheckedImage]
) -> list[SharedImage]:
    """Return the images of a split that another one has, as a copy or a near-duplicate."""
    first_with_hash: dict[int, CheckedImage] = {}
    for other in other_images:
        first_with_hash.setdefault(other.hash, other)
    near_places = _near_places(images, other_images)
    shared = []
    for image, near_place in zip(images, near_places, strict=True):
        copy = first_with_hash.get(image.hash)
        if copy is not None:
            shared.append(SharedImage(image.where, copy.where, is_copy=True))
        elif near_place < len(other_images):
            other_where = other_images[near_place].where
            shared.append(SharedImage(image.where, other_where, is_copy=False))
    return shared


def _near_places(images: Sequence[CheckedImage], other_images: Sequence[CheckedImage]) -> list[int]:
    """Return the place of each image's first near-duplicate in the other split, else more than
    its length."""
    thumbprints = [image.thumbprint for image in (*other_images, *images)]
    prints_NC = np.array(thumbprints, f"S{NUM_BYTES}").view(np.uint8)
    prints_NC = prints_NC.reshape(len(thumbprints), NUM_BYTES)
    first_N = first_near_duplicates(prints_NC, np.full(len(thumbprints), -1))
    return first_N[len(other_images) :].tolist()


def overlap_lines(shared: Sequence[SharedImage], num_images: int, other_name: str) -> list[str]:
    """Return sentences on the images that a split shares with another one."""
    lines = []
    kinds = {"copies": True, "near-duplicates": False}
    for kind, is_copy in kinds.items():
        pairs = [image for image in shared if image.is_copy == is_copy]
        if not pairs:
            continue
        named = [f"{pair.where} of {pair.other_where}" for pair in pairs[:MAX_NAMED]]
        if len(pairs) > MAX_NAMED:
            named.append("…")
        lines.append(
            f"{len(pairs):,} of {pluralize(num_images, 'image')} are {kind} of images in "
            f"{other_name}: {', '.join(named)}"
        )
    return lines
