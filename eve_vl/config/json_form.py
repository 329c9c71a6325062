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
        how = "install the package; a file runs only if you name it, with --code FILE.py or in the variable EVE_CODE"
        raise UserError(
            f"{where}: the {error.kind} needs {made_with}, which is not loaded: {how}"
        ) from None


class UnknownKindError(UserError):
    """A section of an unknown kind."""

    def __init__(self, where: str, kind: str, problem: str):
        self.kind = kind
        super().__init__(f"{where}: {problem}")


def to_dict(config: Any) -> Any:
    """Return a config or a value in it as JSON values."""
    if dataclasses.is_dataclass(config):
        tag = {"name": config.name} if isinstance(config, Section) else {}
        return tag | {
            each.name: to_dict(getattr(config, each.name))
            for each in dataclasses.fields(config)
            if each.init
        }
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def from_dict(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Return the config from `to_dict`; a missing key takes its default.

    Raises UserError for unknown keys, missing keys without a default and values of another type. `where` names the file,
    `prefix` the section.
    """
    all_hints = typing.get_type_hints(cls)
    hints = {each.name: all_hints[each.name] for each in dataclasses.fields(cls) if each.init}
    values = _without_removed_fields(values, hints, prefix)
    if unknown := [key for key in values if key not in hints]:
        raise UserError(f"{where}: unknown key {nearest(unknown[0], hints)}")
    for each in dataclasses.fields(cls):
        if (
            each.name in hints
            and each.name not in values
            and each.default is each.default_factory is dataclasses.MISSING
        ):
            raise UserError(f"{where}: key {each.name!r} is missing from section {cls.__name__}")
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
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if value is None else read_value(args[0], value, where, key)
    if origin is Literal:
        if value not in args:
            raise UserError(
                f"{where}: {key} {shown(value)} is not one of {', '.join(map(str, args))}"
            )
        return value
    try:
        require_type(
            value,
            dict
            if dataclasses.is_dataclass(hint)
            else {tuple: list, Path: str}.get(origin, origin),
        )
        if isinstance(value, str):
            os.fsencode(value.replace("\0", "\ud800"))  # no file name can hold these
    except ValueError as error:
        raise UserError(f"{where}: {key} {shown(value)}: {error}") from None
    if origin is tuple:
        hints = args[:1] * len(value) if args[1:] == (...,) else args
        if len(hints) != len(value):
            raise UserError(
                f"{where}: {key} {shown(value)} has {len(value)} values, expected {len(hints)}"
            )
        return tuple(
            read_value(hints[place], item, where, f"{key}[{place}]")
            for place, item in enumerate(value)
        )
    if not dataclasses.is_dataclass(hint):
        return Path(value) if hint is Path else value
    kind, value = typing.cast(type, hint), typing.cast(dict[str, Any], value)
    what = kind.__name__.removesuffix("Config").lower()
    if issubclass(kind, Section):
        name, value = (
            value.get("name"),
            {field_name: item for field_name, item in value.items() if field_name != "name"},
        )
        found = find_kind(kind, f"{what}s", name) if isinstance(name, str) else None
        if found is None:
            known = nearest(str(name), all_kinds(kind, f"{what}s"))
            raise UnknownKindError(where, f"{what} {name!r}", f"no {what} {known}")
        kind = found
    return from_dict(kind, value, where, f"{key}.")


def check_format(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the values of a config.json without its format.

    Raises UserError unless the format is FORMAT.
    """
    form = values.get("format", 1)
    if form != FORMAT:
        fix = "update the package" if type(form) is int and form > FORMAT else "train the run again"
        raise UserError(
            f"{where}: config format {shown(form)} is not supported, this version reads {FORMAT}; {fix}"
        )
    return {key: value for key, value in values.items() if key != "format"}
