"""The numbers of a run as cards, in groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eve_vl.pages.number_formats import Format, percent
from eve_vl.pages.rendering import draw


@dataclass(frozen=True)
class Card:
    """A number with a sentence about it and a bar."""

    name: str
    value: float
    sentence: str
    is_main: bool = False
    """Whether it is the model's number, not one to compare it with."""
    show: Format = percent
    bar: float | None = None
    """Length of the bar, 0 to 1; None: the value."""

    @property
    def bar_length(self) -> float:
        """Length of the bar, 0 to 1."""
        return self.value if self.bar is None else self.bar


@dataclass(frozen=True)
class NumberGroup:
    """Cards under a heading."""

    title: str
    cards: Sequence[Card] = ()
    explanation: str = ""
    missing: str = ""
    """A sentence about numbers that are not there."""


def cards_of(values: Mapping[str, float], sentences: Mapping[str, str]) -> list[Card]:
    """Return a card for each of the sentences whose number is there."""
    return [Card(name, values[name], text) for name, text in sentences.items() if name in values]


def draw_numbers(
    groups: Sequence[NumberGroup], *, intro: str = "", charts: Sequence[Markup] = ()
) -> Markup:
    """Return groups of numbers, with charts below, as HTML."""
    return draw("numbers.html", "groups", intro_text=intro, groups=groups, charts=charts)


def missing_numbers(sentence: str) -> Markup:
    """Return a sentence in place of the numbers, as HTML."""
    return draw_numbers([NumberGroup("", missing=sentence)])


def number_table(values: Mapping[str, float]) -> Markup:
    """Return all numbers with their intervals in a table, as HTML."""
    return draw("numbers.html", "table", values=values)
