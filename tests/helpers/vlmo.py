"""A tiny VLMo, and the rows of its table of relative positions, found by a slow loop."""

import dataclasses
from typing import Any

from eve_vl.config import EveModelConfig
from eve_vl.systems.vlmo.config import VlmoModelConfig
from helpers.tiny_config import tiny_config

SIDES = {"patch": "image", "word": "text"}


def tiny_vlmo(**changes: Any) -> VlmoModelConfig:
    """Return the model of `tiny_config` with networks for pairs and relative positions."""
    tiny = tiny_config().model
    shape = {field.name: getattr(tiny, field.name) for field in dataclasses.fields(EveModelConfig)}
    shape |= {"deep_ffn": "modality_vl", "pooler": False}
    return VlmoModelConfig(**shape | changes)


def slow_row(
    query: tuple[Any, ...],
    key: tuple[Any, ...],
    side: int = 4,
    longest: int = 12,
) -> int:
    """Return the row of the table for a query and a key.

    Each is ("patch", number), ("word", number) or ("cls", "image" or "text"). The rows: offsets of
    patches, three of [CLS] and image, two across, offsets of words, three of [CLS] and text.
    """
    num_offsets = 2 * side - 1
    square = num_offsets**2
    words = square + 5
    query_side = SIDES.get(query[0], query[1])
    key_side = SIDES.get(key[0], key[1])
    if query_side != key_side:
        return square + 3 if query_side == "text" else square + 4
    if "cls" in (query[0], key[0]):
        first = square if query_side == "image" else words + 2 * longest - 3
        if query[0] != "cls":
            return first + 1
        return first + 2 if key[0] == "cls" else first
    if query_side == "text":
        return words + (key[1] - query[1]) + longest - 2
    down = query[1] // side - key[1] // side
    right = query[1] % side - key[1] % side
    return (down + side - 1) * num_offsets + right + side - 1
