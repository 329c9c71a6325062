"""A tiny VLMo, and the rows of its table of relative positions, found by a slow loop."""

import dataclasses
from typing import Any

from eve_vl.config import EveModelConfig
from eve_vl.systems.vlmo.config import VlmoModelConfig
from helpers.twins import tiny_config


def tiny_vlmo(**changes: Any) -> VlmoModelConfig:
    """The model of `tiny_config` with networks for pairs and relative positions."""
    tiny = tiny_config().model
    shape = {field.name: getattr(tiny, field.name) for field in dataclasses.fields(EveModelConfig)}
    shape |= {"deep_ffn": "modality_vl", "pooler": False}
    return VlmoModelConfig(**shape | changes)


def slow_row(query: tuple[Any, ...], key: tuple[Any, ...], side: int = 4, longest: int = 12) -> int:
    """The row of the table for a query and a key: ("patch", number), ("word", number) or ("cls",
    "image" or "text")."""
    square, sides = (2 * side - 1) ** 2, {"patch": "image", "word": "text"}
    of_query, of_key = (sides.get(kind, which) for kind, which in (query, key))
    words = square + 5  # where the rows of words begin: after three of images and two across
    if of_query != of_key:
        return square + 3 if of_query == "text" else square + 4
    first = square if of_query == "image" else words + 2 * longest - 3
    if query[0] == key[0] == "cls":
        return first + 2
    if key[0] == "cls":
        return first + 1
    if query[0] == "cls":
        return first
    if of_query == "text":
        return words + (key[1] - query[1]) + longest - 2
    down, right = query[1] // side - key[1] // side, query[1] % side - key[1] % side
    return (down + side - 1) * (2 * side - 1) + right + side - 1
