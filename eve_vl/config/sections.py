"""Sections of a config, and checks of their values."""

import typing
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from eve_vl.utils.frozen import Frozen

# Types of fields with the interval of their values. Sizes end somewhere: larger ones in a file are damage, and building them
# would take for ever.
Count = Annotated[int, "[1, inf)"]


CountOrZero = Annotated[int, "[0, inf)"]


Width = Annotated[int, "[1, 65536]"]


Depth = Annotated[int, "[1, 1000]"]


Positive = Annotated[float, "(0, inf)"]


Weight = Annotated[float, "[0, inf)"]


Share = Annotated[float, "[0, 1)"]


InnerShare = Annotated[float, "(0, 1)"]


class Values(Frozen):
    """A section of a config."""

    unused: ClassVar[Sequence[tuple[str, object, str]]] = ()
    """Field such as task.mim_weight, value, names of the fields without effect then; a subclass lists its own rules only."""

    def validate(self) -> list[str]:
        """Return the problems of these values, one sentence each.

        Problems of several values together are reported if each lies in its range.
        """
        found = []
        for name, hint in _hints(type(self)).items():
            value, allowed = getattr(self, name, None), typing.get_args(hint)
            if typing.get_origin(hint) is Literal and value not in allowed:
                found.append(f"{name} {value!r} is not one of {', '.join(allowed)}")
            elif (
                typing.get_origin(hint) is Annotated
                and isinstance(allowed[1], str)
                and not _is_in(allowed[1], value)
            ):
                found.append(f"{name} {value} is not in {allowed[1]}")
        return found or [sentence for sentence, holds in self.conflicts().items() if holds]

    def conflicts(self) -> dict[str, object]:
        """Return sentences about values that do not go together.

        Each comes with whether it holds.

        Each value lies in its range when this is asked.
        """
        return {}

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, with the reason."""
        found: dict[str, str] = {}
        for field, value, names in (
            rule for kind in reversed(type(self).__mro__) for rule in vars(kind).get("unused", ())
        ):
            if getattr(self, field.partition(".")[2]) == value:
                found = dict.fromkeys(names.split(), f"as {field} is {value}") | found
        return found


class Section(Values):
    """A section of one of several kinds.

    A subclass with a `name` is a kind, known once it is defined.
    """

    name: ClassVar[str]
    """Name of this kind in config.json."""


@cache  # each `replace` of a config validates it
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of a section's fields, with their intervals."""
    return typing.get_type_hints(kind, include_extras=True)


def _is_in(interval: str, value: Any) -> bool:
    """Return whether a value lies in an interval such as `[0, 1)`.

    Of a tuple, each item must. NaN lies in none.
    """
    if isinstance(value, tuple):
        return all(_is_in(interval, item) for item in value)
    low, high = map(float, interval[1:-1].split(","))
    return (low < value or (value == low and interval[0] == "[")) and (
        value < high or (value == high and interval[-1] == "]")
    )
