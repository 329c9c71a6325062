"""Fields of foreign JSON configs, read with their types."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import require_type

Value = TypeVar("Value", bool, int, float, str)


def read_value(
    path: Path,
    section: Mapping[str, Any],
    name: str,
    kind: type[Value],
    default: Value | None = None,
) -> Value:
    """Return a field of a config, or the default if the config lacks it.

    path: of the config. Raises UserError for another type, and without a default for no field.
    """
    if name not in section:
        if default is None:
            raise UserError(f"{path}: has no {name}")
        return default
    try:
        value = require_type(section[name], kind)
    except ValueError as error:
        raise UserError(f"{path}: {name} is {section[name]!r} ({error})") from None
    if kind is float and not abs(value) < float("inf"):  # pyright: ignore[reportArgumentType]
        raise UserError(f"{path}: {name} is {value}, expected a finite number")
    return value


def read_side(path: Path, section: Mapping[str, Any], name: str, default: int) -> int:
    """Return a size that may be written as a square, [N, N]. Raises UserError."""
    value = section.get(name)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        section = {name: value[0]}
    return read_value(path, section, name, int, default)


def read_section(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section of a config; a missing one is empty. Raises UserError for another type."""
    section = config.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise UserError(f"{path}: {name} is {section!r}, expected an object")
    return section
