"""Sections of a config: values that check themselves."""

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from eve_vl.utils.frozen import Frozen

# Types of fields with the interval of their values. Sizes end somewhere: larger ones in a file are
# damage, and building
# them would take forever.
Count = Annotated[int, "[1, inf)"]
CountOrZero = Annotated[int, "[0, inf)"]
Width = Annotated[int, "[1, 65536]"]
Depth = Annotated[int, "[1, 1000]"]
Positive = Annotated[float, "(0, inf)"]
Weight = Annotated[float, "[0, inf)"]
Share = Annotated[float, "[0, 1)"]
InnerShare = Annotated[float, "(0, 1)"]


@dataclass(frozen=True)
class UnusedFields:
    """A rule: some fields of a section have no effect while another field has a certain value."""

    when: str
    """The other field as a flag names it, e.g. `task.mim_weight`."""
    equals: object
    """Its value."""
    fields: str
    """Names of the fields without effect, separated by spaces."""


class Values(Frozen):
    """A section of a config."""

    unused: ClassVar[Sequence[UnusedFields]] = ()
    """Rules about fields without effect. A subclass lists its own rules only; those of its bases
    stay."""

    def validate(self) -> list[str]:
        """Return the problems of these values, one sentence each.

        Problems of several values together are reported only if each value lies in its range.
        """
        return self._out_of_range() or self.problems()

    def problems(self) -> list[str]:
        """Return the problems of values that do not go together, one sentence each. Each value lies
        in its range."""
        return []

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, with the reason. Earlier rules
        win."""
        reasons: dict[str, str] = {}
        for base in reversed(type(self).__mro__):
            for rule in vars(base).get("unused", ()):
                name_in_section = rule.when.partition(".")[2]
                if getattr(self, name_in_section) != rule.equals:
                    continue
                for name in rule.fields.split():
                    reasons.setdefault(name, f"as {rule.when} is {rule.equals}")
        return reasons

    def _out_of_range(self) -> list[str]:
        """Return a sentence for each value outside the range that the type of its field names."""
        problems = []
        for name, hint in _field_types(type(self)).items():
            value = getattr(self, name, None)
            kind = typing.get_origin(hint)
            arguments = typing.get_args(hint)
            if kind is Literal and value not in arguments:
                problems.append(f"{name} {value!r} is not one of {', '.join(arguments)}")
            elif kind is Annotated and isinstance(arguments[1], str):
                interval = arguments[1]
                if not _is_in(interval, value):
                    problems.append(f"{name} {value} is not in {interval}")
        return problems


class Section(Values):
    """A section of one of several kinds. A subclass with a `name` is a kind, known once it is
    defined."""

    name: ClassVar[str]
    """Name of this kind in config.json."""


@cache  # each `replace` of a config validates it
def _field_types(section: type) -> dict[str, Any]:
    """Return the types of a section's fields, with their intervals."""
    return typing.get_type_hints(section, include_extras=True)


def _is_in(interval: str, value: Any) -> bool:
    """Tell whether a value lies in an interval such as `[0, 1)`. Each item of a tuple must. NaN
    lies in none."""
    if isinstance(value, tuple):
        return all(_is_in(interval, item) for item in value)
    low, high = map(float, interval[1:-1].split(","))
    is_above_low = low <= value if interval[0] == "[" else low < value
    is_below_high = value <= high if interval[-1] == "]" else value < high
    return is_above_low and is_below_high
