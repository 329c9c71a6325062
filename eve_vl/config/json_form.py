"""Configs as JSON: writing, reading with checks, and the version of the form."""

import dataclasses
import json
import os
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Literal

from eve_vl.config.config import Config
from eve_vl.config.kinds import all_kinds, find_kind
from eve_vl.config.sections import Section
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.file_io import require_type

FORMAT = 3
"""Version of config.json."""
REMOVED_FIELDS: dict[str, object] = {
    "data.pair_captions": False,
    "model.positions": "learned",
    "model.pooler": False,
    "task.image_image_weight": 0.0,
    "model.fusion_depth": 0,
    "model.pixel_layer": 0,
}
"""Fields that only earlier versions have, and the values at which their runs still load."""


def config_to_json(config: Config) -> str:
    """Return the content of a config.json."""
    return json.dumps({"format": FORMAT} | to_dict(config), indent=1)


def config_from_dict(values: dict[str, Any], where: str) -> Config:
    """Return the config in a config.json. Raises UserError; `where` names the file."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a run's config: expected a JSON object")
    code = read_value(tuple[tuple[str, str], ...], values.get("code", []), where, "code")
    try:
        return from_dict(Config, check_format(values, where), where)
    except UnknownKindError as error:
        if not code:
            raise
        made_with = ", ".join(f"{name} ({version})" for name, version in code)
        raise UserError(
            f"{where}: the {error.kind} needs {made_with}, which is not loaded: install the "
            "package; a file runs only if you name it, with --code FILE.py or in the variable "
            "EVE_CODE"
        ) from None


class UnknownKindError(UserError):
    """A section of an unknown kind."""

    def __init__(self, where: str, kind: str, problem: str):
        self.kind = kind
        super().__init__(f"{where}: {problem}")


def to_dict(config: Any) -> Any:
    """Return a config or a value in it as JSON values."""
    if dataclasses.is_dataclass(config):
        values: dict[str, Any] = {}
        if isinstance(config, Section):
            values["name"] = config.name
        for field in dataclasses.fields(config):
            if field.init:
                values[field.name] = to_dict(getattr(config, field.name))
        return values
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    if isinstance(config, Path):
        return str(config)
    return config


def check_format(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the values of a config.json without its format. Raises UserError unless the format is
    FORMAT."""
    form = values.get("format", 1)
    if form != FORMAT:
        is_newer = type(form) is int and form > FORMAT
        fix = "update the package" if is_newer else "train the run again"
        raise UserError(
            f"{where}: config format {shown(form)} is not supported, this version reads {FORMAT}; "
            f"{fix}"
        )
    return {key: value for key, value in values.items() if key != "format"}


def from_dict(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Return the config from `to_dict`; a missing key takes its default.

    `where` names the file, `prefix` the section. Raises UserError for unknown keys, missing keys
    without a default and values of another type.
    """
    fields = [field for field in dataclasses.fields(cls) if field.init]
    types_of_fields = typing.get_type_hints(cls)
    hints = {field.name: types_of_fields[field.name] for field in fields}
    values = _without_removed_fields(values, hints, prefix)
    for key in values:
        if key not in hints:
            raise UserError(f"{where}: unknown key {nearest(key, hints)}")
    for field in fields:
        has_default = not (field.default is field.default_factory is dataclasses.MISSING)
        if field.name not in values and not has_default:
            raise UserError(f"{where}: key {field.name!r} is missing from section {cls.__name__}")
    typed = {
        key: read_value(hints[key], value, where, f"{prefix}{key}") for key, value in values.items()
    }
    try:
        return cls(**typed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _without_removed_fields(
    values: Mapping[str, Any], fields: Collection[str], prefix: str
) -> dict[str, Any]:
    """Return the values without fields of earlier versions that had no effect there."""
    remaining = dict(values)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in fields and name in REMOVED_FIELDS and value == REMOVED_FIELDS[name]:
            del remaining[key]
    return remaining


def read_value(hint: Any, value: Any, where: str, key: str) -> Any:
    """Return a JSON value in the declared type of the field `key`. Raises UserError."""
    origin = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if value is None else read_value(arguments[0], value, where, key)
    if origin is Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            raise UserError(f"{where}: {key} {shown(value)} is not one of {choices}")
        return value
    _require_json_type(hint, origin, value, where, key)
    if origin is tuple:
        return _read_tuple(arguments, value, where, key)
    if dataclasses.is_dataclass(hint):
        return _read_section(typing.cast(type, hint), value, where, key)
    return Path(value) if hint is Path else value


def _require_json_type(hint: Any, origin: Any, value: Any, where: str, key: str) -> None:
    """Raise UserError unless a value has the type in which JSON stores values of the field's
    type."""
    json_types = {tuple: list, Path: str}
    json_type = dict if dataclasses.is_dataclass(hint) else json_types.get(origin, origin)
    try:
        require_type(value, json_type)
        if isinstance(value, str):
            os.fsencode(value.replace("\0", "\ud800"))  # no file name can hold these
    except ValueError as error:
        raise UserError(f"{where}: {key} {shown(value)}: {error}") from None


def _read_tuple(hints: tuple[Any, ...], value: list[Any], where: str, key: str) -> tuple[Any, ...]:
    """Return a JSON list as a tuple of declared types. Raises UserError."""
    if hints[1:] == (...,):
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise UserError(
            f"{where}: {key} {shown(value)} has {len(value)} values, expected {len(hints)}"
        )
    pairs = enumerate(zip(hints, value, strict=True))
    return tuple(read_value(hint, item, where, f"{key}[{place}]") for place, (hint, item) in pairs)


def _read_section(section: type, value: dict[str, Any], where: str, key: str) -> Any:
    """Return a JSON object as a section; one of several kinds has the `name` of its kind. Raises
    UserError."""
    if not issubclass(section, Section):
        return from_dict(section, value, where, f"{key}.")
    name = value.get("name")
    fields = {field_name: item for field_name, item in value.items() if field_name != "name"}
    noun = section.__name__.removesuffix("Config").lower()  # model, task
    kind = find_kind(section, f"{noun}s", name) if isinstance(name, str) else None
    if kind is None:
        advice = nearest(str(name), all_kinds(section, f"{noun}s"))
        raise UnknownKindError(where, f"{noun} {name!r}", f"no {noun} {advice}")
    return from_dict(kind, fields, where, f"{key}.")
