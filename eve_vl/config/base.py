"""What sections share: a run's model and task are each one of several kinds, told apart by their `name`; and what all check
themselves with."""

import importlib
import importlib.util
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

WIDEST, DEEPEST = 65_536, 1_000
"""Sizes beyond all that anybody trains: a larger one in a file is damage, and to build it would take for ever."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of one of several kinds. A kind is a subclass with a `name`; defining it is all that makes it known."""

    name: ClassVar[str]
    """What config.json calls this kind."""

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        return []

    def unused_fields(self) -> dict[str, str]:
        """Return the fields that have no effect beside the other values, by the reason why."""
        return {}


Kind = TypeVar("Kind")


def define(package: str, name: str) -> None:
    """Import the file of a package that defines what belongs to a kind; of the user's own kinds there is none."""
    if importlib.util.find_spec(module := f"{package}.{name}") is not None:
        importlib.import_module(module)


def subclasses(base: type[Kind]) -> Iterator[type[Kind]]:
    """Yield all subclasses, theirs too, in the order in which they were defined."""
    for kind in base.__subclasses__():
        yield kind
        yield from subclasses(kind)


def kinds_of(base: type[Kind]) -> dict[str, type[Kind]]:
    """Return all kinds of a section, or of another class, by name."""
    return {vars(kind)["name"]: kind for kind in subclasses(base) if "name" in vars(kind)}


def negative(config: Any, names: str, most: float = math.inf) -> list[str]:
    """Return a sentence for each of the named values that is below 0, not finite or absurd."""
    return not_positive(config, names, most, or_zero=True)


def not_positive(config: Any, names: str, most: float = math.inf, *, or_zero: bool = False) -> list[str]:
    """Return a sentence for each of the named values that is not above 0 (or_zero: nor 0), not finite or absurd."""
    must, both = ("be finite and not negative", ", ") if or_zero else ("be above 0", " and ")
    return [
        f"{name} must {must}{f'{both}at most {most:,}' * (value > most)}, got {value}"
        for name, value in ((name, getattr(config, name)) for name in names.split())
        if not 0 <= value <= most or value == math.inf or (value == 0 and not or_zero)
    ]


def not_one_of(config: Any, *names: str) -> list[str]:
    """Return a sentence for each of the named values that is none of those that its field declares as a Literal."""
    hints = typing.get_type_hints(type(config))
    return [
        f"{name} {value!r} is not one of {', '.join(choices)}"
        for name, value, choices in ((name, getattr(config, name), typing.get_args(hints[name])) for name in names)
        if value not in choices
    ]
