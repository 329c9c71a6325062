"""The flags of a verb, from the dataclass that tyro parses."""

import dataclasses
import typing
from typing import Any


def flags_of(cls: type, default: Any = None, prefix: str = "") -> dict[str, Any]:
    """Return flag → type of a dataclass of arguments.

    default: decides between the sections of a union.
    """
    flags, hints = {}, typing.get_type_hints(cls, include_extras=True)
    for field in (each for each in dataclasses.fields(cls) if each.init):
        hint, value = hints[field.name], getattr(default, field.name, None)
        section = type(value) if dataclasses.is_dataclass(value) else hint
        if dataclasses.is_dataclass(section):
            flags |= flags_of(
                section, value, "" if field.name == "config" else f"{prefix}{field.name}."
            )
        elif typing.get_origin(hint) is not typing.Annotated or isinstance(
            hint.__metadata__[0], str
        ):  # an interval
            # other annotated ones are positional or fixed
            flags[f"--{prefix}{field.name}".replace("_", "-")] = hint
            if hint is bool:
                flags[f"--{prefix}no-{field.name}".replace("_", "-")] = hint
        elif name := getattr(hint.__metadata__[0], "name", None):
            flags[f"--{prefix}{name}"] = hint
    return flags
