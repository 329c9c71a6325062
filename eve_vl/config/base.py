"""Kinds of sections, told apart by their `name`, and checks of values that all sections share."""

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

WIDEST, DEEPEST = 65_536, 1_000
"""Larger sizes in a file are damage; building them would take for ever."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of one of several kinds; a subclass with a `name` is a kind, known once it is defined."""

    name: ClassVar[str]
    """Name of this kind in config.json."""

    def validate(self) -> list[str]:
        """Return the problems of these values, one sentence each."""
        return wrong_choices(self)

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, by the reason."""
        return {}


Kind = TypeVar("Kind")


def subclasses(base: type[Kind]) -> Iterator[type[Kind]]:
    """Yield all subclasses and theirs, in the order of definition."""
    for kind in base.__subclasses__():
        yield kind
        yield from subclasses(kind)


def kinds_of(base: type[Kind]) -> dict[str, type[Kind]]:
    """Return all kinds of a section or of another class, by name."""
    return {vars(kind)["name"]: kind for kind in subclasses(base) if "name" in vars(kind)}


def negative(config: Any, names: str, most: float = math.inf) -> list[str]:
    """Return a sentence for each named value that is below 0, above `most` or not finite."""
    return not_positive(config, names, most, or_zero=True)


def not_positive(config: Any, names: str, most: float = math.inf, *, or_zero: bool = False) -> list[str]:
    """Return a sentence for each named value that is not above 0 (or_zero: at least 0), above `most` or not finite."""
    must, both = ("be finite and not negative", ", ") if or_zero else ("be above 0", " and ")
    return [
        f"{name} must {must}{f'{both}at most {most:,}' * (value > most)}, got {value}"
        for name, value in ((name, getattr(config, name)) for name in names.split())
        if not 0 <= value <= most or value == math.inf or (value == 0 and not or_zero)
    ]


def wrong_choices(section: Any) -> list[str]:
    """Return a sentence for each value of a dataclass that its field's Literal does not list."""
    hints = typing.get_type_hints(type(section))
    choices = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is typing.Literal}
    return [
        f"{name} {getattr(section, name)!r} is not one of {', '.join(allowed)}"
        for name, allowed in choices.items()
        if getattr(section, name) not in allowed
    ]
