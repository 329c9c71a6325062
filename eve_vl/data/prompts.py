"""Prompt files: the texts of each class, for zero-shot classification."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from eve_vl.data.records import find_generator
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import expand_user, read_json

BUILT_IN = ("phantoms",)  # generators with class_prompts
MAX_PROMPTS = 100_000  # of a class, since products of long lists grow fast
FORM = 'a list of texts, or {"part": [texts], …} whose parts are put together in every combination'

Prompts = Mapping[str, tuple[str, ...]]


def read_prompts(given: str | Path | Mapping[str, Any]) -> tuple[Prompts, str]:
    """Return the texts of each class, and the name of their origin: a JSON file, one of BUILT_IN, or a mapping.

    A class has a list of texts, or lists of parts by name, whose combinations are the texts: `{"Edema": {"severity":
    ["mild", "severe"], "what": ["edema"]}}`. A part may be "". Raises UserError.
    """
    if isinstance(given, Mapping):
        values, where = given, "prompts"
    elif str(given) in BUILT_IN:
        return find_generator(str(given)).class_prompts(), f"prompts {given}"
    else:
        path = expand_user(given)
        values, where = read_json(path, dict), str(path)
    prompts = {name: _texts(parts, f"{where}: the class {name!r}") for name, parts in values.items()}
    if len(prompts) < 2:
        raise UserError(f"{where}: names {len(prompts)} classes, expected at least 2, each with {FORM}")
    return prompts, where


def _texts(given: Any, where: str) -> tuple[str, ...]:
    lists = [*given.values()] if isinstance(given, Mapping) else [given]
    if not all(isinstance(each, list | tuple) and each and all(isinstance(text, str) for text in each) for each in lists):
        raise UserError(f"{where} has no prompts; expected {FORM}")
    count = 1
    for each in lists:
        count *= len(each)
    if not lists or count > MAX_PROMPTS:
        raise UserError(f"{where} has {count if lists else 0:,} prompts, expected 1 to {MAX_PROMPTS:,}")
    texts = tuple(dict.fromkeys(" ".join(" ".join(parts).split()) for parts in product(*lists)))
    if "" in texts:
        raise UserError(f"{where} has an empty prompt")
    return texts


def check_classes(prompts: Prompts, classes: set[str], where: str, data: str) -> None:
    """Raise UserError unless prompts and data have the same classes."""
    if lacking := sorted(classes - prompts.keys()):
        others = f", nor {len(lacking) - 1} others of its classes" if len(lacking) > 1 else ""
        raise UserError(f"{where}: has no prompts for the class {lacking[0]!r} of {data}{others}")
    if unknown := sorted(prompts.keys() - classes):
        raise UserError(f"{where}: no row of {data} has the class {unknown[0]!r}; its classes: {', '.join(sorted(classes))}")
