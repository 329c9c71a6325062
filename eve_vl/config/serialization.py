"""Read and write configs as JSON, strictly."""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Literal

from eve_vl.config.base import Section
from eve_vl.config.plugins import all_kinds, find_kind
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.file_io import require_type

FORMAT = 3
"""Version of config.json."""


class UnknownKindError(UserError):
    """A section of an unknown kind."""

    def __init__(self, where: str, kind: str, problem: str):
        self.kind = kind
        super().__init__(f"{where}: {problem}")


def to_dict(config: Any) -> Any:
    """Return a config or a value in it as JSON values."""
    if dataclasses.is_dataclass(config):
        tag = {"name": config.name} if isinstance(config, Section) else {}
        return tag | {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of `to_dict` by dotted names, e.g. `train.steps`."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        named |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return named


def from_dict(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Rebuild a config from `to_dict`; a missing key takes its default.

    Raises UserError for unknown keys, missing keys without a default and values of another type. `where` names the file,
    `prefix` the section.
    """
    all_hints = typing.get_type_hints(cls)
    hints = {field.name: all_hints[field.name] for field in dataclasses.fields(cls) if field.init}
    if unknown := [key for key in values if key not in hints]:
        raise UserError(f"{where}: unknown key {nearest(unknown[0], hints)}")
    for field in dataclasses.fields(cls):
        if field.name in hints and field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: key {field.name!r} is missing from section {cls.__name__}")
    typed = {key: read_value(hints[key], value, where, f"{prefix}{key}") for key, value in values.items()}
    try:
        return cls(**typed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_value(hint: Any, value: Any, where: str, key: str) -> Any:
    """Return a JSON value in the declared type of the field `key`. Raises UserError."""
    origin = typing.get_origin(hint) or hint
    if isinstance(hint, types.UnionType):
        return None if value is None else read_value(typing.get_args(hint)[0], value, where, key)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where}: {key} {shown(value)} is not one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    try:
        _check(value, dict if dataclasses.is_dataclass(hint) else {tuple: list, Path: str}.get(origin, origin))
    except ValueError as error:
        raise UserError(f"{where}: {key} {shown(value)}: {error}") from None
    if origin is tuple:
        return _items(typing.get_args(hint), value, where, key)
    if not dataclasses.is_dataclass(hint):
        return Path(value) if hint is Path else value
    if issubclass(typing.cast(type, hint), Section):
        return _section(typing.cast(type, hint), value, where, key)
    return from_dict(typing.cast(type, hint), value, where, f"{key}.")


def _check(value: Any, kind: type) -> None:
    """Raise ValueError with the reason if a JSON value is not of a type or cannot be used."""
    require_type(value, kind)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number")
    if isinstance(value, str):
        os.fsencode(value.replace("\0", "\ud800"))  # no file name can hold these


def _items(hints: tuple[Any, ...], values: list[Any], where: str, key: str) -> tuple[Any, ...]:
    """Return the items of a JSON list in a tuple's declared types."""
    if hints[1:] == (...,):
        hints = hints[:1] * len(values)
    if len(hints) != len(values):
        raise UserError(f"{where}: {key} {shown(values)} has {len(values)} values, expected {len(hints)}")
    return tuple(
        read_value(hint, value, where, f"{key}[{place}]") for place, (hint, value) in enumerate(zip(hints, values, strict=True))
    )


def _section(base: type[Section], value: Mapping[str, Any], where: str, key: str) -> Section:
    """Return the section of the kind that the value's `name` names."""
    name, what = value.get("name"), base.__name__.removesuffix("Config").lower()
    if not isinstance(name, str) or (kind := find_kind(base, f"{what}s", name)) is None:
        raise UnknownKindError(where, f"{what} {name!r}", f"no {what} {nearest(str(name), all_kinds(base, f'{what}s'))}")
    return from_dict(kind, {field: item for field, item in value.items() if field != "name"}, where, f"{key}.")


def check_format(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the values of a config.json without its format. Raises UserError unless the format is FORMAT."""
    form = values.get("format", 1)
    if form != FORMAT:
        fix = "update the package" if type(form) is int and form > FORMAT else "train the run again"
        raise UserError(f"{where}: config format {shown(form)} is not supported, this version reads {FORMAT}; {fix}")
    return {key: value for key, value in values.items() if key != "format"}
