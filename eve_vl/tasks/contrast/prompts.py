"""Prompts: texts that describe the classes of zero-shot classification."""

import math
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from eve_vl.config.generated_sources import generator_names
from eve_vl.data.generated import find_generator
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user, read_json

MAX_PROMPTS = 100_000  # of a class, since products of long lists grow fast
FORM = 'a list of texts, or {"part": [texts], …} whose parts are put together in every combination'

Prompts = Mapping[str, tuple[str, ...]]
"""The texts of each class."""


def read_prompts(source: str | Path | Mapping[str, Any]) -> tuple[Prompts, str]:
    """Return the texts of each class, and the name of their origin.

    The origin is a JSON file, a generator with prompts such as phantoms, or a mapping. A class has
    a list of texts, or lists of parts by name, whose combinations are the texts:
    `{"Edema": {"severity": ["mild", "severe"], "what": ["edema"]}}`. A part may be "". Raises
    UserError.
    """
    built_in = built_in_prompts(source)
    if isinstance(source, Mapping):
        values = source
        where = "prompts"
    elif built_in is not None:
        return built_in(), f"prompts {source}"
    else:
        path = expand_user(source)
        values = read_json(path, dict)
        where = str(path)
    prompts = {}
    for name, parts in values.items():
        prompts[name] = _texts(parts, f"{where}: the class {name!r}")
    if len(prompts) < 2:
        raise UserError(
            f"{where}: names {len(prompts)} classes, expected at least 2, each with {FORM}"
        )
    return prompts, where


def built_in_prompts(source: object) -> Callable[[], Prompts] | None:
    """Return the function that makes the prompts of a generator, None if there is none."""
    if isinstance(source, Mapping) or str(source) not in generator_names():
        return None
    return find_generator(str(source)).class_prompts


def _texts(parts: Any, where: str) -> tuple[str, ...]:
    """Return the distinct texts of a class: all combinations of its parts."""
    lists = list(parts.values()) if isinstance(parts, Mapping) else [parts]
    num_texts = math.prod(len(texts) for texts in lists) if _are_texts(lists) else 0
    if not 0 < num_texts <= MAX_PROMPTS:
        raise UserError(f"{where} has no prompts, or more than {MAX_PROMPTS:,}; expected {FORM}")
    texts: dict[str, None] = {}  # in order, each once
    for words in product(*lists):
        texts[" ".join(" ".join(words).split())] = None
    if "" in texts:
        raise UserError(f"{where} has an empty prompt")
    return tuple(texts)


def _are_texts(lists: list[Any]) -> bool:
    """Return whether all values are lists of texts."""
    for texts in lists:
        if not isinstance(texts, list | tuple):
            return False
        if not all(isinstance(text, str) for text in texts):
            return False
    return True
