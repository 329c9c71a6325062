"""Configs as JSON, there and back."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from eve_vl.config.sections import Section, kinds_of
from eve_vl.errors import UserError, nearest


def to_dict(config: Any) -> dict[str, Any]:
    """Return the config as JSON-ready values."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            tag = {"name": value.name} if isinstance(value, Section) else {}
            return tag | {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of `to_dict` by names such as `train.steps`."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        named |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return named


def from_dict(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """Rebuild a config from `to_dict`; a key that an older version did not write takes its default.

    Raises UserError for keys that are unknown, or missing and without a default; `where` names the file.
    """
    hints = {name: hint for name, hint in typing.get_type_hints(cls).items() if typing.get_origin(hint) is not ClassVar}
    unknown = [key for key in values if key not in hints]
    if unknown:
        raise UserError(f"{where}: unknown key {nearest(unknown[0], hints)}")
    required = [
        field.name for field in dataclasses.fields(cls) if field.default is field.default_factory is dataclasses.MISSING
    ]
    missing = [key for key in required if key not in values]
    if missing:
        raise UserError(f"{where}: key {missing[0]!r} is missing from section {cls.__name__}")
    return cls(**{key: _typed(hints[key], value, where) for key, value in values.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Return a JSON value in the type that the field declares. Raises UserError if it cannot be one."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a section, got {value!r}")
        if issubclass(typing.cast(type, hint), Section):
            return _section(typing.cast(type, hint), value, where)
        return from_dict(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
    wanted = {tuple: list, Path: str, float: (int, float)}.get(typing.get_origin(hint) or hint, hint)
    kind = type(value)  # a bool is an int to Python, not to us
    if isinstance(wanted, type | tuple) and (not issubclass(kind, wanted) or (kind is bool and wanted is not bool)):
        raise UserError(f"{where}: {value!r} is not {getattr(hint, '__name__', hint)}")
    if isinstance(hint, types.UnionType):
        return None if value is None else _typed(typing.get_args(hint)[0], value, where)
    if typing.get_origin(hint) is tuple:
        return _items(typing.get_args(hint), value, where)
    return Path(value) if hint is Path else value


def _items(hints: tuple[Any, ...], values: list[Any], where: str) -> tuple[Any, ...]:
    """Return the items of a JSON list in the types that a tuple declares."""
    if hints[1:] == (...,):
        hints = hints[:1] * len(values)
    if len(hints) != len(values):
        raise UserError(f"{where}: {values!r} has {len(values)} values, expected {len(hints)}")
    return tuple(_typed(hint, value, where) for hint, value in zip(hints, values, strict=True))


def _section(base: type[Section], value: Mapping[str, Any], where: str) -> Section:
    """Return the section of the kind whose `name` the value has."""
    kinds, name = kinds_of(base), value.get("name")
    if name not in kinds:
        raise UserError(f"{where}: no {base.__name__.removesuffix('Config').lower()} {nearest(str(name), kinds)}")
    return from_dict(kinds[name], {key: item for key, item in value.items() if key != "name"}, where)
