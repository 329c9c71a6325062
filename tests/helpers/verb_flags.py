"""The flags of a verb, from the dataclass that tyro parses."""

import dataclasses
import typing
from typing import Any


def flags_of(cls: type, default: Any = None, prefix: str = "") -> dict[str, Any]:
    """Return flag → type of a dataclass of arguments.

    default: decides between the sections of a union.
    """
    flags: dict[str, Any] = {}
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint = hints[field.name]
        value = getattr(default, field.name, None)
        section = type(value) if dataclasses.is_dataclass(value) else hint
        if dataclasses.is_dataclass(section):
            section_prefix = "" if field.name == "config" else f"{prefix}{field.name}."
            flags |= flags_of(section, value, section_prefix)
            continue
        name = name_of_flag(field.name, hint)
        if name:
            flags[f"--{prefix}{name}".replace("_", "-")] = hint
        if hint is bool:
            flags[f"--{prefix}no-{name}".replace("_", "-")] = hint
    return flags


def name_of_flag(name: str, hint: Any) -> str | None:
    """Return the name of a field's flag; None if the field is positional or fixed."""
    if typing.get_origin(hint) is not typing.Annotated:
        return name
    first_note = hint.__metadata__[0]
    if isinstance(first_note, str):  # an interval
        return name
    return getattr(first_note, "name", None)
